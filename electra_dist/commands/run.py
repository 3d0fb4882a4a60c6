"""`pretrain`, `stop`, `status` and `config`: a run and its settings."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from electra_dist.config import variables
from electra_dist.errors import UserError

if TYPE_CHECKING:
    from electra_dist.config.schema import RunConfig


def pretrain(args: argparse.Namespace, overrides: list[str]) -> int:
    """Start a run, or resume it if --out holds a complete checkpoint."""
    from electra_dist.config import files

    # Before torch is loaded: its store would warn on the console of each 500 ms of waiting.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    _check_launch(args)
    path = args.config
    if path is None and args.recipe is None and (args.out / "config.json").is_file():
        path = args.out / "config.json"  # a resume needs no other words than --out
    elif path is None and args.recipe is None:
        path = _config_of_source(args)
    config = files.load(path, overrides, recipe=args.recipe)
    beginning_words = _beginning_words(args)
    if args.time_limit is not None:
        from electra_dist.runtime.job_end import parse_time_limit

        os.environ[variables.END_TIME] = repr(time.time() + parse_time_limit(args.time_limit))
    if args.launcher == "none":
        if args.max_restarts is not None:
            raise UserError(
                f"--max-restarts {args.max_restarts} needs ranks that electra-dist starts itself: "
                "give --nproc N, or --launcher srun"
            )
        from electra_dist.train.beginning import Beginning
        from electra_dist.train.main import pretrain

        source = args.resume_from or args.init_from
        beginning = Beginning(
            source=source, is_fork=args.resume_from is not None, keep_moments=args.keep_moments
        )
        return pretrain(config, args.out, beginning if source else None)
    return _supervised(args, config, path, beginning_words, overrides)


def _supervised(
    args: argparse.Namespace,
    config: RunConfig,
    path: Path | None,
    beginning_words: list[str],
    overrides: list[str],
) -> int:
    """Start the ranks of a run, and again after a crash."""
    from electra_dist.launch.restarts import Limits
    from electra_dist.launch.srun import SrunLauncher
    from electra_dist.launch.supervisor import Launcher, LocalLauncher, supervise
    from electra_dist.runtime.world import without_launcher_variables

    limits = Limits(
        max_restarts=(
            config.resilience.max_restarts if args.max_restarts is None else args.max_restarts
        ),
        min_world_size=config.resilience.min_world_size,
    )
    if limits.max_restarts < 0:
        raise UserError(f"--max-restarts {limits.max_restarts} must be at least 0")
    environ = without_launcher_variables(os.environ)
    launcher: Launcher
    if args.launcher == "srun":
        # A site's own word for the network comes from the batch script and is no rank's.
        kept = ("SLURM_", "MASTER_ADDR", "MASTER_PORT")
        slurm = {name: value for name, value in os.environ.items() if name.startswith(kept)}
        launcher = SrunLauncher(
            {**environ, **slurm}, args.out, no_kill=limits.min_world_size is not None
        )
    else:
        launcher = LocalLauncher(args.nproc, environ, args.out)
    program = shlex.split(os.environ.get(variables.RANK_COMMAND, ""))
    rank = [*(program or [sys.executable, "-m", "electra_dist"]), "pretrain"]
    given = [str(path)] if path else []
    given += ["--recipe", args.recipe] if args.recipe else []
    # The beginning's words again at each restart: the run may have crashed before it saved what it
    # took from there; afterwards they are ignored.
    out = ["--out", str(args.out), *beginning_words]
    return supervise(
        launcher,
        args.out,
        limits,
        [*rank, *given, *out, *overrides],
        resume_command=[*rank, str(args.out / "config.json"), *out],
    )


def _check_launch(args: argparse.Namespace) -> None:
    """Settle who starts the ranks: `none` (this process is one), `local` or `srun`."""
    if args.nproc is not None and args.nproc < 1:
        raise UserError(f"--nproc {args.nproc} must be at least 1")
    if args.launcher is None:
        args.launcher = "none" if args.nproc is None else "local"
    elif args.launcher == "srun" and args.nproc is not None:
        raise UserError(
            f"--nproc {args.nproc} does not go with --launcher srun, which starts a rank on each "
            "task of the allocation; leave one of them out"
        )
    elif args.launcher == "local" and args.nproc is None:
        raise UserError("--launcher local needs --nproc N, the number of ranks")


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
    status = run_status(args.run)
    attempts = status.attempts
    if attempts and attempts[-1].reason is not None and status.state != "restarting":
        raise UserError(
            f"{args.run} is not running: its last attempt ended ({attempts[-1].reason}) "
            f"at step {attempts[-1].step}; there is nothing to stop"
        )
    (args.run / "STOP").touch()
    if status.state == "restarting":
        print(f"{args.run}: will not be restarted")
    else:
        print(f"{args.run}: will save and finish at its next step")
    return 0


def status(args: argparse.Namespace, _: list[str]) -> int:
    """Say what a run is doing, from its folder alone."""
    from electra_dist.launch.run_folder import as_json, render, run_status

    status = run_status(args.run)
    print(json.dumps(as_json(status), indent=2) if args.json else render(status))
    return 0


def report(args: argparse.Namespace, _: list[str]) -> int:
    """Write RUN/report.html: curves, where the time went, attempts, events."""
    from electra_dist.launch.report import write_report

    print(write_report(args.run))
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
