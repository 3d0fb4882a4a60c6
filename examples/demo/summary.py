"""The last lines of the demo: held-out metrics, the fine-tuned score, its baselines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def last_evaluation(run: Path) -> dict[str, Any]:
    """The newest held-out metrics of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval" in line][-1]


def main() -> None:
    """Print what the run folder and the two fine-tunings say."""
    folder = Path(sys.argv[1])
    line = last_evaluation(folder / "run")
    held_out = line["eval"]
    print(f"held out, after {line['step']} steps, on recorded masks and noise:")
    print(
        f"  generator      loss {held_out['generator_loss']:.3f} nats "
        f"(unigram {held_out['baseline_unigram_loss']:.3f}), "
        f"accuracy {held_out['generator_accuracy']:.1%} "
        f"(commonest token {held_out['baseline_commonest_token_share']:.1%})"
    )
    print(
        f"  discriminator  AUC {held_out['own_disc_auc']:.3f} on its generator's samples, "
        f"{held_out['unigram_disc_auc']:.3f} on unigram samples (0.5 is chance; it learns late)"
    )
    results = {
        name: json.loads((folder / f"finetuned_{name}" / "results.json").read_text())
        for name in ("pretrained", "untrained")
    }
    metric = results["pretrained"]["metric"]
    print(f"fine-tuned on 4 newsgroups, dev {metric}:")
    for name, result in results.items():
        print(f"  {name + ' encoder':<20} {result['mean']['dev'][metric]:.3f}")
    print(
        f"  {'majority label':<20} {results['pretrained']['constant_baseline']['dev'][metric]:.3f}"
    )
    print(f"run folder: {folder / 'run'}")


if __name__ == "__main__":
    main()
