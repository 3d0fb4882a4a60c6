"""`checkpoint`: list, check, compare and convert what a run has saved."""

from __future__ import annotations

import argparse
import json
from typing import Any

from electra_dist.commands.run import require_run
from electra_dist.errors import UserError


def checkpoint_list(args: argparse.Namespace, _: list[str]) -> int:
    """List the complete checkpoints of a run."""
    from electra_dist.checkpoint.layout import CorruptCheckpoint, list_checkpoints, read_manifest

    require_run(args.run)
    rows: list[dict[str, Any]] = []
    for info in list_checkpoints(args.run):
        row: dict[str, Any] = {"step": info.step, "folder": str(info.folder)}
        try:
            manifest = read_manifest(info.folder)
            row |= {"bytes": manifest.num_bytes, "shards": len(manifest.shards), "problem": None}
        except CorruptCheckpoint as error:
            row |= {"bytes": None, "shards": None, "problem": str(error)}
        rows.append(row)
    if args.json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print(f"{args.run} holds no complete checkpoint")
    else:
        for row in rows:
            size = f"{(row['bytes'] or 0) / 2**20:>10,.1f} MiB  {row['shards'] or 0:>4} shards"
            print(f"step {row['step']:>10,}  {row['problem'] or size + '  ' + row['folder']}")
    return 0


def checkpoint_verify(args: argparse.Namespace, _: list[str]) -> int:
    """Check every byte against the hashes; with --repair rebuild what the parity file can."""
    from electra_dist.checkpoint.layout import CorruptCheckpoint, resolve
    from electra_dist.checkpoint.parity import repair
    from electra_dist.checkpoint.reshard import CheckpointReader

    folder = resolve(args.checkpoint).folder
    try:
        for name in repair(folder) if args.repair else ():
            print(f"{folder / name}: rebuilt")
        with CheckpointReader(folder) as reader:
            reader.verify()
    except CorruptCheckpoint as error:
        print(error)
        return 1
    print(f"{folder}: every block is what was written")
    return 0


def checkpoint_diff(args: argparse.Namespace, _: list[str]) -> int:
    """Compare weights and moments bit by bit; exit 1 if they differ."""
    from electra_dist.checkpoint.layout import CorruptCheckpoint, resolve
    from electra_dist.checkpoint.reshard import differences

    try:
        found = differences(resolve(args.one).folder, resolve(args.other).folder)
    except CorruptCheckpoint as error:
        raise UserError(f"{error}; compare checkpoints that verify") from None
    print("\n".join(found) if found else "identical: every weight and moment, bit for bit")
    return 1 if found else 0


def checkpoint_export(args: argparse.Namespace, _: list[str]) -> int:
    """Write the model in another format."""
    from electra_dist.train.export import export_hf

    print(export_hf(args.checkpoint, args.out))
    return 0
