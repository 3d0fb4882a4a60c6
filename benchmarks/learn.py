"""Does it learn? `tiny` until the discriminator's AUC on unigram samples reaches 0.60.

    electra-dist corpus build --input TEXTS --tokenizer train --vocab-size 2048 --out CORPUS
    electra-dist corpus pack CORPUS --length 32
    python benchmarks/learn.py --corpus CORPUS --out RUN [--target 0.60] [--json]

It takes about 20 minutes of one core on 24 M tokens of English prose with a vocabulary of 2,048 (a
larger one learns later); a corpus of few documents needs --held-out-share 0.02. Stop it with Ctrl-C
and start it again with the same words, as often as needed, and it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).with_suffix(".toml")
POLL_SECONDS = 5.0


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that hold a held-out evaluation."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if "eval" in line]


def reached(run: Path, target: float) -> bool:
    """Whether an evaluation has met the target."""
    return any(line["eval"]["unigram_disc_auc"] >= target for line in evaluations(run))


def train(corpus: Path, run: Path, target: float, overrides: list[str]) -> None:
    """Start or resume the run; ask it to stop once the target is met."""
    command = [sys.executable, "-m", "electra_dist", "pretrain", str(CONFIG), "--out", str(run)]
    trainer = subprocess.Popen([*command, "--data.corpus", str(corpus), *overrides])
    try:
        while trainer.poll() is None:
            if reached(run, target):
                (run / "STOP").touch()
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        trainer.wait()  # the signal reached it too: it saves and leaves


def report(run: Path, target: float) -> dict[str, Any]:
    """The curve, and whether and when the target was met."""
    names = ("generator_loss", "generator_accuracy", "own_disc_auc", "unigram_disc_auc")
    curve = [
        {"step": line["step"], **{name: line["eval"][name] for name in names}}
        for line in evaluations(run)
    ]
    met = [row["step"] for row in curve if row["unigram_disc_auc"] >= target]
    return {"target": target, "met_at_step": met[0] if met else None, "curve": curve}


def main() -> None:
    """Train until the target, then print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", type=float, default=0.60)
    parser.add_argument("--json", action="store_true")
    args, overrides = parser.parse_known_args()
    if not reached(args.out, args.target):
        train(args.corpus, args.out, args.target, overrides)
    result = report(args.out, args.target)
    if args.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{'step':>8}{'gen. loss':>12}{'gen. acc.':>12}{'own AUC':>12}{'unigram AUC':>14}")
    for row in result["curve"]:
        print("{:>8,}{:>12.3f}{:>12.3f}{:>12.3f}{:>14.3f}".format(*row.values()))
    met = result["met_at_step"]
    print(f"target {args.target}: " + (f"met at step {met:,}" if met else "not met yet"))


if __name__ == "__main__":
    main()
