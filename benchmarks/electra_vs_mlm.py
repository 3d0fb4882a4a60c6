"""ELECTRA against BERT's masked language model: same encoder, same text, equal FLOPs, fine-tuned.

    electra-dist corpus build --input TEXTS --tokenizer train --vocab-size 2048 \
        --held-out-share 0.02 --out CORPUS
    electra-dist corpus pack CORPUS --length 32
    python benchmarks/electra_vs_mlm.py --corpus CORPUS --out FOLDER \
        --task sst2 TRAIN DEV --task banking77 TRAIN DEV [--json] [--plot FILE.svg]

Both runs are `benchmarks/learn.toml` with another `objective.name`; the masked language model gets
as many steps as cost what ELECTRA's steps cost, by the usual count of FLOPs (backward = 2 forward,
sparse lookup). google's count stands beside it. Each encoder, and an untrained one as the floor, is
fine-tuned with the same seeds and epochs. Rate and layer decay are chosen for each encoder and task
by itself, among the same ones: every tenth training example is kept back, and what does best on
those with one seed is taken. The comparison says something only if the discriminator has learnt:
its AUC on the frozen unigram corruption stands in the table, 0.60 is asked for.

It takes hours. Stop it with Ctrl-C and start it again with the same words, as often as needed:
what is finished is not done again. Words such as --optim.learning_rate 5e-4 go to both runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).with_name("learn.toml")
OBJECTIVES = ("electra", "mlm")
ENCODERS = (*OBJECTIVES, "untrained")
SETTINGS = ("3e-4/0.8", "3e-4/1", "6e-4/1")
"""Learning rate / layer decay."""
CHOOSING_SEED, EVERY = "101,", 10
"""Of the runs that choose a rate; of the examples that they are judged by."""
ASKED_AUC = 0.60
PRODUCT = [sys.executable, "-m", "electra_dist"]


def flops(corpus: Path, objective: str, num_steps: int, words: list[str]) -> dict[str, float]:
    """Of a whole run, in both conventions: `plan` counts them without running anything."""
    vocab_size = json.loads((corpus / "manifest.json").read_text())["vocab_size"]
    given = [
        f"--model.vocab_size={vocab_size}",
        f"--objective.name={objective}",
        f"--schedule.num_steps={num_steps}",
    ]
    plan = subprocess.run(
        [*PRODUCT, "plan", str(CONFIG), "--json", *given, *words],
        check=True,
        capture_output=True,
        text=True,
    )
    counted: dict[str, float] = json.loads(plan.stdout)["flops"]
    return counted


def equal_steps(corpus: Path, num_steps: int, words: list[str]) -> dict[str, int]:
    """Steps of each objective that cost as much as `num_steps` of ELECTRA, to half a step."""
    step_flops = {name: flops(corpus, name, num_steps, words)["usual"] for name in OBJECTIVES}
    return {name: round(num_steps * step_flops["electra"] / x) for name, x in step_flops.items()}


def pretrain(args: argparse.Namespace, objective: str, num_steps: int, words: list[str]) -> None:
    """Start or resume one run; a finished one ends at once."""
    given = [
        "--data.corpus",
        str(args.corpus),
        "--objective.name",
        objective,
        "--schedule.num_steps",
        str(num_steps),
        "--metrics.eval_every",
        "500",
    ]
    command = [*PRODUCT, "pretrain", str(CONFIG), "--out", str(args.out / objective)]
    subprocess.run([*command, *given, *words], check=True)


def is_finished(out: Path) -> bool:
    """Whether results.json says so: it is there from the start."""
    path = out / "results.json"
    return path.exists() and bool(json.loads(path.read_text())["finished"])


def finetune(
    args: argparse.Namespace, encoder: str, task: list[str], out: Path, setting: str, seeds: str
) -> dict[str, Any]:
    """results.json of one encoder on one task, made unless it is there."""
    name, train, dev = task
    rate, decay = setting.split("/")
    if not is_finished(out):
        is_untrained = encoder == "untrained"
        model = args.out / ("electra" if is_untrained else encoder)
        command = [*PRODUCT, "finetune", "--model", str(model), "--out", str(out)]
        command += ["--train", train, "--dev", dev, "--task", name]
        command += ["--lr", rate, "--layer-decay", decay]
        command += ["--max-length", "32", "--seeds", seeds, "--threads", "1"]
        command += ["--epochs", str(args.epochs)]
        subprocess.run(command + ["--reinitialize"] * is_untrained, check=True)
    result: dict[str, Any] = json.loads((out / "results.json").read_text())
    return result


def out_name(encoder: str, setting: str, epochs: int) -> str:
    """A folder for each way of fine-tuning."""
    return f"{encoder}_{setting.replace('/', '_')}_{epochs}"


def keep_back(folder: Path, task: list[str]) -> list[str]:
    """The task on its training examples alone: all but every tenth, judged by these."""
    name, source, _ = task
    suffix = Path(source).suffix
    is_csv = suffix == ".csv"
    form: dict[str, Any] = (
        {} if is_csv else {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
    )
    with Path(source).open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, **form))
    head = rows[:1] if is_csv else []
    examples = rows[len(head) :]
    parts = {
        "train": [row for number, row in enumerate(examples) if number % EVERY],
        "choose": examples[::EVERY],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for part, chosen in parts.items():
        with (folder / f"{part}{suffix}").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, **form).writerows([*head, *chosen])
    return [name, *(str(folder / f"{part}{suffix}") for part in parts)]


def try_settings(args: argparse.Namespace, encoder: str, task: list[str]) -> dict[str, float]:
    """What every setting came to on the examples kept back, the best one first."""
    folder: Path = args.out / "finetune" / f"choose_{task[0]}"
    small = keep_back(folder, task)
    found = {}
    for setting in args.settings:
        out = folder / out_name(encoder, setting, args.epochs)
        result = finetune(args, encoder, small, out, setting, CHOOSING_SEED)
        found[setting] = result["mean"]["dev"][result["metric"]]
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def curve(run: Path) -> list[dict[str, float]]:
    """Held-out evaluations of a run: what exists for its objective."""
    names = ("generator_loss", "generator_accuracy", "own_disc_auc", "unigram_disc_auc")
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        {"step": line["step"], **{n: line["eval"][n] for n in names if n in line["eval"]}}
        for line in lines
        if "eval" in line
    ]


def measure(args: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    """Everything, from what is on disk and what is still to do."""
    steps = equal_steps(args.corpus, args.num_steps, words)
    for objective in OBJECTIVES:
        pretrain(args, objective, steps[objective], words)
    scores = {}
    for task in args.task:
        for encoder in ENCODERS:
            tried = try_settings(args, encoder, task)
            setting = next(iter(tried))
            out = args.out / "finetune" / task[0] / out_name(encoder, setting, args.epochs)
            result = finetune(args, encoder, task, out, setting, str(args.seeds))
            metric = result["metric"]
            scores[f"{encoder} {task[0]}"] = {
                "metric": metric,
                "setting": setting,
                "tried": tried,
                "mean": result["mean"]["dev"][metric],
                "standard_deviation": result["standard_deviation"]["dev"][metric],
                "seeds": [seed["dev"][metric] for seed in result["seeds"]],
                "constant": result["constant_baseline"]["dev"][metric],
            }
    runs = {
        name: {
            "steps": steps[name],
            "flops": flops(args.corpus, name, steps[name], words),
            "curve": curve(args.out / name),
        }
        for name in OBJECTIVES
    }
    return {"runs": runs, "scores": scores}


def show(result: dict[str, Any]) -> None:
    """The table."""
    print(f"{'run':<10}{'steps':>8}{'usual FLOPs':>14}{'google FLOPs':>14}  held out at the end")
    for name, run in result["runs"].items():
        last = "  ".join(f"{k} {v:.4f}" for k, v in run["curve"][-1].items() if k != "step")
        usual, google = run["flops"]["usual"], run["flops"]["google"]
        print(f"{name:<10}{run['steps']:>8,}{usual:>14.4e}{google:>14.4e}  {last}")
    print(
        f"\n{'encoder, task':<24}{'metric':<12}{'setting':>10}{'mean':>8}{'deviation':>11}"
        f"{'constant':>10}  seeds"
    )
    for name, row in result["scores"].items():
        seeds = " ".join(f"{score:.3f}" for score in row["seeds"])
        print(
            f"{name:<24}{row['metric']:<12}{row['setting']:>10}{row['mean']:>8.4f}"
            f"{row['standard_deviation']:>11.4f}{row['constant']:>10.4f}  {seeds}"
        )
    auc = result["runs"]["electra"]["curve"][-1]["unigram_disc_auc"]
    verdict = "so the comparison counts" if auc >= ASKED_AUC else "so the comparison says nothing"
    print(
        f"\nunigram AUC of the discriminator at the end: {auc:.4f} ({ASKED_AUC} asked), {verdict}"
    )


def plot(result: dict[str, Any], path: Path) -> None:
    """Curves over the share of the FLOPs spent, and every seed's score."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    panels = (
        ("generator_loss", "masked language model, held out (nats)"),
        ("unigram_disc_auc", "discriminator's AUC, unigram corruption"),
    )
    tasks = list(dict.fromkeys(name.split()[1] for name in result["scores"]))
    figure, axes = plt.subplots(1, 2 + len(tasks), figsize=(4.2 * (2 + len(tasks)), 3.4))
    for axis, (name, title) in zip(axes, panels, strict=False):
        for objective, run in result["runs"].items():
            rows = [row for row in run["curve"] if name in row]
            share = [row["step"] / run["steps"] for row in rows]
            if rows:
                axis.plot(share, [row[name] for row in rows], label=objective)
        axis.set(title=title, xlabel="share of the FLOPs")
        axis.legend(frameon=False)
    for axis, task in zip(axes[2:], tasks, strict=True):
        rows = {n.split()[0]: r for n, r in result["scores"].items() if n.split()[1] == task}
        for place, row in enumerate(rows.values()):
            axis.plot([place] * len(row["seeds"]), row["seeds"], "o", alpha=0.6)
            axis.plot([place - 0.2, place + 0.2], [row["mean"]] * 2, "k-")
        constant = next(iter(rows.values()))["constant"]
        axis.axhline(constant, linestyle=":", color="grey", label="commonest label")
        axis.set(title=f"{task}, {next(iter(rows.values()))['metric']}")
        axis.set_xticks(range(len(rows)), list(rows))
        axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Pretrain both, fine-tune all, print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", nargs=3, action="append", metavar="WORD", required=True)
    parser.add_argument("--num-steps", type=int, default=12_000, help="of ELECTRA")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3, help="of every fine-tuning")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="RATE/LAYER_DECAY each")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    args, words = parser.parse_known_args()
    result = measure(args, words)
    if args.plot:
        plot(result, args.plot)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
