"""`pretrain`, `stop`, `status` and `config`: a run and its settings."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

from electra_dist.commands import ranks
from electra_dist.config import variables
from electra_dist.errors import UserError


def pretrain(args: argparse.Namespace, overrides: list[str]) -> int:
    """Start a run, or resume it if --out holds a complete checkpoint."""
    from electra_dist.config import files

    # Before torch is loaded: its store would warn on the console of each 500 ms of waiting.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    ranks.check_launch(args)
    path = files.config_of(args.out, args.config, args.recipe)
    if path is None and args.recipe is None:
        path = _config_of_source(args)
    config = files.load(path, overrides, recipe=args.recipe)
    beginning_words = _beginning_words(args)
    if args.time_limit is not None:
        from electra_dist.runtime.job_end import parse_time_limit

        os.environ[variables.END_TIME] = repr(time.time() + parse_time_limit(args.time_limit))
    if args.launcher == "node":
        return ranks.one_node(args, path, beginning_words, overrides)
    if args.launcher == "none":
        from electra_dist.train.beginning import Beginning
        from electra_dist.train.main import pretrain

        source = args.resume_from or args.init_from
        beginning = Beginning(
            source=source, is_fork=args.resume_from is not None, keep_moments=args.keep_moments
        )
        return pretrain(config, args.out, beginning if source else None)
    return ranks.supervised(args, config, path, beginning_words, overrides)


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
    if source is None:
        return None
    if not source.exists():
        word = "--resume-from" if args.resume_from else "--init-from"
        raise UserError(f"{word} {source} does not exist; give a run, a checkpoint or a model")
    if not (args.resume_from or _is_ours(source)):
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
    """Say what a run is doing, by its folder, and its jobs, where Slurm is there."""
    from electra_dist.launch.jobs import JOB_ID, job_statuses, run_of_job
    from electra_dist.launch.run_folder import as_json, render, run_status

    is_job = JOB_ID.fullmatch(str(args.run)) and not args.run.exists()
    run = run_of_job(str(args.run)) if is_job else args.run
    status = replace(run_status(run), slurm=job_statuses(run))
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
