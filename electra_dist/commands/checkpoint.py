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
    """Write the model in another format, for DeepSpeed with its moments."""
    if args.format == "hf":
        from electra_dist.train.export import export_hf

        print(export_hf(args.checkpoint, args.out))
    else:
        from electra_dist.checkpoint.layout import resolve
        from electra_dist.checkpoint.universal import export_universal

        print(export_universal(resolve(args.checkpoint).folder, args.out))
    return 0


def checkpoint_average(args: argparse.Namespace, _: list[str]) -> int:
    """Average the weights of several checkpoints, for export and fine-tuning."""
    from electra_dist.checkpoint.average import average, sources_of

    sources = sources_of(args.sources, args.last)
    print(average(sources, args.out, args.ema))
    print(f"average of steps {', '.join(f'{info.step:,}' for info in sources)}; moments are zero")
    return 0


def checkpoint_prune(args: argparse.Namespace, _: list[str]) -> int:
    """Remove checkpoints of a run that has ended, but for those that are asked for."""
    from electra_dist.checkpoint.prune import carry_out, plan_pruning
    from electra_dist.launch.run_folder import run_status

    require_run(args.run)
    if run_status(args.run).is_running and not args.dry_run:
        raise UserError(
            f"{args.run} is running and keeps checkpoint.keep_last itself; stop it first "
            "(electra-dist stop), or wait two minutes if it has crashed"
        )
    pruning = plan_pruning(
        args.run,
        keep_last=args.keep_last,
        keep_every=args.keep_every,
        keep_best=args.keep_best,
        metric=args.metric,
    )
    for folder, why in sorted(pruning.kept.items()):
        print(f"keep    {folder.name}  {why}")
    for folder, num_bytes in sorted(pruning.removed.items()):
        print(f"remove  {folder.name}  {num_bytes / 2**20:,.1f} MiB")
    if not args.dry_run:
        carry_out(pruning, args.run)
    total = sum(pruning.removed.values())
    would = "would remove" if args.dry_run else "removed"
    print(f"{would} {len(pruning.removed)} checkpoints, {total:,} bytes")
    return 0


def checkpoint_import(args: argparse.Namespace, _: list[str]) -> int:
    """Make a checkpoint of a model in another format, for pretrain --init-from."""
    from electra_dist.config import files

    if args.config is not None and args.recipe is not None and args.config.suffix != ".json":
        raise UserError(f"--recipe {args.recipe}: name it in {args.config}, or leave --config out")
    config = None
    if args.config is not None or args.recipe is not None:
        config = files.load(args.config, recipe=args.recipe)
    from electra_dist.train.imports import import_deepspeed, import_hf

    if args.format == "hf":
        made = import_hf(args.path, args.out, generator=args.generator, config=config)
    elif args.generator is not None:
        raise UserError("--generator goes with `import hf`; a joint model of DeepSpeed's holds it")
    else:
        made = import_deepspeed(args.path, args.out, config=config)
    print(made)
    return 0
