"""The words of `checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from electra_dist.cli.parser import command, group
from electra_dist.commands import checkpoint


def add_checkpoint(parent: Any) -> None:
    """Declare `checkpoint` and what stands under it."""
    words = group(parent, "checkpoint", "list, check, compare, average, prune, export and import")
    listing = command(words, "list", checkpoint.checkpoint_list)
    listing.add_argument("run", type=Path, metavar="RUN")
    listing.add_argument("--json", action="store_true", help="one JSON document")
    verify = command(words, "verify", checkpoint.checkpoint_verify)
    verify.add_argument("checkpoint", type=Path, metavar="CKPT")
    verify.add_argument(
        "--repair", action="store_true", help="rebuild a lost or damaged shard from parity.xor"
    )
    diff = command(
        words,
        "diff",
        checkpoint.checkpoint_diff,
    )
    diff.add_argument("one", type=Path, metavar="CKPT")
    diff.add_argument("other", type=Path, metavar="CKPT")
    export = command(words, "export", checkpoint.checkpoint_export)
    export.add_argument("format", choices=("hf", "universal"), help="universal: DeepSpeed's")
    export.add_argument("checkpoint", type=Path, metavar="CKPT|RUN")
    export.add_argument("--out", required=True, type=Path)
    _add_average(words)
    _add_prune(words)
    _add_import(words)


def _add_average(words: Any) -> None:
    average = command(words, "average", checkpoint.checkpoint_average)
    average.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="RUN|CKPT",
        help="one run, or several checkpoints, oldest first",
    )
    average.add_argument("--out", required=True, type=Path, metavar="CKPT", help="a new folder")
    average.add_argument(
        "--last", type=int, metavar="K", help="of a run: its K newest (default all)"
    )
    average.add_argument(
        "--ema",
        type=float,
        metavar="DECAY",
        help="exponential moving average from the oldest on (default: all count the same)",
    )


def _add_prune(words: Any) -> None:
    prune = command(words, "prune", checkpoint.checkpoint_prune)
    prune.add_argument("run", type=Path, metavar="RUN")
    prune.add_argument(
        "--keep-last", type=int, required=True, metavar="K", help="keep the K newest, 1 or more"
    )
    prune.add_argument(
        "--keep-every", type=int, metavar="N", help="keep steps that are multiples of N"
    )
    prune.add_argument(
        "--keep-best", type=int, default=0, metavar="K", help="keep the K best on held-out text"
    )
    prune.add_argument(
        "--metric",
        metavar="NAME",
        help="of the held-out evaluation (default unigram_disc_loss, for mlm generator_loss)",
    )
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")


def _add_import(words: Any) -> None:
    imports = command(words, "import", checkpoint.checkpoint_import)
    imports.add_argument("format", choices=("hf", "deepspeed"))
    imports.add_argument("path", type=Path, metavar="PATH", help="folder in that format")
    imports.add_argument("--out", required=True, type=Path, metavar="CKPT", help="a new folder")
    imports.add_argument(
        "--generator", type=Path, metavar="PATH", help="hf: the generator (default PATH/generator)"
    )
    imports.add_argument("--recipe", help="the model's sizes, as in pretrain")
    imports.add_argument(
        "--config", type=Path, metavar="CONFIG.toml|RUN/config.json", help="the model's sizes"
    )
