"""The words of `checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from electra_dist.cli.parser import command, group
from electra_dist.commands import checkpoint


def add_checkpoint(parent: Any) -> None:
    """Declare `checkpoint` and what stands under it."""
    words = group(parent, "checkpoint", "list, check, compare and export checkpoints")
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
    export.add_argument("format", choices=("hf",))
    export.add_argument("checkpoint", type=Path, metavar="CKPT|RUN")
    export.add_argument("--out", required=True, type=Path)
