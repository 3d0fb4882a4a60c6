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
    config = files.load(path, overrides, recipe=args.recipe)
    if args.nproc is None:
        from electra_dist.train.main import pretrain

        return pretrain(config, args.out)
    if args.nproc < 1:
        raise UserError(f"--nproc {args.nproc} must be at least 1")
    from electra_dist.launch.local import run_ranks
    from electra_dist.runtime.world import without_launcher_variables

    words = [str(path)] if path else []
    words += ["--recipe", args.recipe] if args.recipe else []
    words += ["--out", str(args.out), *overrides]
    command = [sys.executable, "-m", "electra_dist", "pretrain", *words]
    return run_ranks(command, args.nproc, without_launcher_variables(os.environ), args.out)


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


def doctor(args: argparse.Namespace, _: list[str]) -> int:
    """Say whether this node is fit to train: a line for each check, exit 1 if it is not."""
    from electra_dist.launch.doctor import Patient, as_json, examine, verdict
    from electra_dist.runtime.world import without_launcher_variables

    if args.ranks < 1:
        raise UserError(f"--ranks {args.ranks} must be at least 1")
    patient = Patient(
        environ=os.environ,
        rank_environ=without_launcher_variables(os.environ),
        shared=args.shared,
        num_ranks=args.ranks,
        seconds=args.seconds,
    )
    findings = []
    for finding in examine(patient):
        findings.append(finding)
        if not (args.json or args.verdict):
            print(
                f"{'ok ' if finding.is_good else 'BAD'}  {finding.name:14} {finding.words}",
                flush=True,
            )
    if args.json:
        print(as_json(findings))
    elif args.verdict:
        print(verdict(findings))
    return 0 if all(finding.is_good for finding in findings) else 1
