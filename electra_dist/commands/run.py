"""`pretrain`, `stop`, `status` and `config`: a run and its settings."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from electra_dist.errors import UserError


def pretrain(args: argparse.Namespace, overrides: list[str]) -> int:
    """Start a run, or resume it if --out holds a complete checkpoint."""
    from electra_dist.config import files

    # Before torch is loaded: its store would warn on the console of each 500 ms of waiting.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    path = args.config
    if path is None and args.recipe is None and (args.out / "config.json").is_file():
        path = args.out / "config.json"  # a resume needs no other words than --out
    elif path is None and args.recipe is None:
        path = _config_of_source(args)
    config = files.load(path, overrides, recipe=args.recipe)
    beginning_words = _beginning_words(args)
    if args.nproc is None:
        from electra_dist.train.beginning import Beginning
        from electra_dist.train.main import pretrain

        source = args.resume_from or args.init_from
        beginning = Beginning(
            source=source, is_fork=args.resume_from is not None, keep_moments=args.keep_moments
        )
        return pretrain(config, args.out, beginning if source else None)
    if args.nproc < 1:
        raise UserError(f"--nproc {args.nproc} must be at least 1")
    from electra_dist.launch.local import run_ranks
    from electra_dist.runtime.world import without_launcher_variables

    words = [str(path)] if path else []
    words += ["--recipe", args.recipe] if args.recipe else []
    words += ["--out", str(args.out), *beginning_words, *overrides]
    command = [sys.executable, "-m", "electra_dist", "pretrain", *words]
    return run_ranks(command, args.nproc, without_launcher_variables(os.environ), args.out)


def _beginning_words(args: argparse.Namespace) -> list[str]:
    """--init-from and the like, for the ranks: each is started with the same words."""
    if args.init_from is not None and args.resume_from is not None:
        raise UserError(
            "--init-from begins anew and --resume-from goes on: give one of them, not both"
        )
    if args.keep_moments and args.init_from is None:
        raise UserError("--keep-moments goes with --init-from RUN|CKPT; leave it out")
    words = [] if args.init_from is None else ["--init-from", str(args.init_from)]
    words += ["--keep-moments"] if args.keep_moments else []
    return words + ([] if args.resume_from is None else ["--resume-from", str(args.resume_from)])


def _config_of_source(args: argparse.Namespace) -> Path | None:
    """The config of the run that a new one begins from, where neither CONFIG nor --recipe is given.

    A Hugging Face folder, an average and an import have none.
    """
    from electra_dist.checkpoint.layout import resolve, run_folder_of

    source = args.resume_from or args.init_from
    if source is None or not (source.exists() and (args.resume_from or _is_ours(source))):
        return None
    run = run_folder_of(resolve(source).folder)
    return run / "config.json" if run else None


def _is_ours(folder: Path) -> bool:
    return (folder / "checkpoints").is_dir() or (folder / "manifest.json").is_file()


def stop(args: argparse.Namespace, _: list[str]) -> int:
    """Ask a run to save and finish, without a requeue."""
    from electra_dist.launch.run_folder import run_status

    require_run(args.run)
    attempts = run_status(args.run).attempts
    if attempts and attempts[-1].reason is not None:
        raise UserError(
            f"{args.run} is not running: its last attempt ended ({attempts[-1].reason}) "
            f"at step {attempts[-1].step}; there is nothing to stop"
        )
    (args.run / "STOP").touch()
    print(f"{args.run}: will save and finish at its next step")
    return 0


def status(args: argparse.Namespace, _: list[str]) -> int:
    """Say what a run is doing, from its folder alone."""
    from electra_dist.launch.run_folder import as_json, render, run_status

    status = run_status(args.run)
    print(json.dumps(as_json(status), indent=2) if args.json else render(status))
    return 0


def config_show(args: argparse.Namespace, overrides: list[str]) -> int:
    """Print the resolved config as JSON."""
    from electra_dist.config import files

    print(files.to_json(files.load(args.config, overrides, recipe=args.recipe)), end="")
    return 0


def config_docs(_args: argparse.Namespace, _: list[str]) -> int:
    """Print every knob with its default and meaning."""
    from electra_dist.config.docs import knobs

    print(knobs())
    return 0


def require_run(folder: Path) -> None:
    """Refuse a folder that holds no run."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is not a run folder (it has no config.json); "
            "give the folder that pretrain got as --out"
        )
