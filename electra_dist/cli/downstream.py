"""The words of `finetune` and `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from electra_dist.cli.parser import command
from electra_dist.commands import downstream

DEVICES = ("auto", "cpu", "cuda")


def add_downstream(parent: Any) -> None:
    """Declare `finetune` and `predict`."""
    tune = command(parent, "finetune", downstream.run_finetune)
    tune.add_argument("--model", required=True, type=Path, metavar="HF_DIR|RUN")
    for name in ("train", "dev"):
        tune.add_argument(
            f"--{name}", required=True, type=Path, metavar="FILE", help="TSV, CSV or JSONL"
        )
    tune.add_argument("--test", type=Path, metavar="FILE")
    tune.add_argument(
        "--task", help="a known task, which names the columns and metrics (sst2, cola, mrpc, ...)"
    )
    tune.add_argument("--text", metavar="COLUMN")
    tune.add_argument("--text-b", metavar="COLUMN", help="second segment of a pair")
    tune.add_argument("--label", metavar="COLUMN")
    tune.add_argument("--kind", choices=("classification", "regression"))
    tune.add_argument("--head", default="google", choices=("google", "hf"))
    for name, kind in (("epochs", int), ("lr", float), ("layer-decay", float)):
        tune.add_argument(f"--{name}", type=kind, help="default: by task and model size")
    tune.add_argument("--layer-decay-rule", default="fixed", choices=("fixed", "google"))
    tune.add_argument("--batch-size", type=int, default=32)
    tune.add_argument("--max-length", type=int, default=128)
    tune.add_argument("--seeds", default="1", help="how many, or a list such as 3,5,8")
    tune.add_argument(
        "--reinitialize",
        action="store_true",
        help="the same head on an untrained encoder: a baseline",
    )
    tune.add_argument("--device", default="auto", choices=DEVICES)
    tune.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    tune.add_argument(
        "--out", required=True, type=Path, help="new folder, or one of a run that did not finish"
    )
    predict = command(parent, "predict", downstream.run_predict)
    predict.add_argument("--model", required=True, type=Path, metavar="DIR")
    predict.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="FILE",
        help="a text a line, or TSV, CSV, JSONL",
    )
    predict.add_argument("--device", default="auto", choices=DEVICES)
    predict.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
