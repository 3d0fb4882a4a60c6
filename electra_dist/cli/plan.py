"""The words of `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from electra_dist.cli.parser import command
from electra_dist.commands import plan


def add_plan(parent: Any) -> None:
    """Declare `plan`."""
    parser = command(parent, "plan", plan.plan)
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml|RUN/config.json")
    parser.add_argument("--recipe", help="as in pretrain; so are --section.field value")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="(default 1)")
    parser.add_argument(
        "--gpus-per-node", type=int, metavar="M", help="ranks of a node (default: one, on a CPU)"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="what a rank computes on (default: cuda with --gpus-per-node, else cpu)",
    )
    parser.add_argument(
        "--tflops", type=float, help="peak of a device in 10^12 FLOP/s (assumed: an A100's)"
    )
    parser.add_argument("--mfu", type=float, help="share of the peak that is reached (assumed 0.4)")
    parser.add_argument(
        "--mtbf-hours", type=float, help="between two failures of one node (assumed 10,000)"
    )
    parser.add_argument(
        "--write-gb-per-s", type=float, help="each rank to disk, all at once (assumed 1)"
    )
    parser.add_argument(
        "--copy-gb-per-s", type=float, help="each rank to its host buffers (assumed 4)"
    )
    parser.add_argument(
        "--restart-minutes", type=float, help="from a failure to the next step (assumed 5)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")
