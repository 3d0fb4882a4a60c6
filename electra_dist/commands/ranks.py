"""Who starts the ranks of `pretrain`: this machine, srun, or the launcher of one node."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from electra_dist.config import variables
from electra_dist.config.files import config_words
from electra_dist.errors import UserError

if TYPE_CHECKING:
    from electra_dist.config.schema import RunConfig
    from electra_dist.launch.restarts import Limits
    from electra_dist.launch.srun import SrunLauncher


def check_launch(args: argparse.Namespace) -> None:
    """Settle who starts the ranks: `none` (this process is one), `local`, `srun` or `node`."""
    if args.nproc is not None and args.nproc < 1:
        raise UserError(f"--nproc {args.nproc} must be at least 1")
    if args.launcher is None:
        args.launcher = "none" if args.nproc is None else "local"
    elif args.launcher != "srun" and args.nproc is None:
        raise UserError(f"--launcher {args.launcher} needs --nproc N, the number of ranks")
    if args.max_restarts is not None and args.launcher in ("none", "node"):
        raise UserError(
            f"--max-restarts {args.max_restarts} needs ranks that electra-dist starts itself: "
            "give --nproc N, or --launcher srun"
        )
    if args.exclude_bad_nodes and args.launcher != "srun":
        raise UserError("--exclude-bad-nodes goes with --launcher srun; leave it out")


def supervised(
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
    # The beginning's words again at each restart: the run may have crashed before it saved what it
    # took from there; afterwards they are ignored.
    out = ["--out", str(args.out), *beginning_words]
    if args.launcher == "srun":
        # A site's own word for the network comes from the batch script and is no rank's.
        kept = ("SLURM_", "MASTER_ADDR", "MASTER_PORT")
        slurm = {name: value for name, value in os.environ.items() if name.startswith(kept)}
        srun_environ = {**environ, **slurm}
        launcher = SrunLauncher(
            srun_environ,
            args.out,
            no_kill=limits.min_world_size is not None,
            ranks_per_task=args.nproc or 1,
        )
        if args.exclude_bad_nodes and not _has_fit_nodes(args, launcher, limits, srun_environ):
            return 1
        out += ["--launcher", "node", "--nproc", str(args.nproc)] if args.nproc else []
    else:
        if args.nproc > config.batch.num_micro_batches:  # before so many processes load torch
            raise UserError(
                f"--nproc {args.nproc}: a step has {config.batch.num_micro_batches} "
                "micro-batches, one a rank at least; take fewer ranks, or a smaller "
                "batch.micro_batch_size in a new run"
            )
        launcher = LocalLauncher(args.nproc, environ, args.out)
    rank = [*_program(), "pretrain"]
    given = config_words(path, args.recipe)
    return supervise(
        launcher,
        args.out,
        limits,
        [*rank, *given, *out, *overrides],
        resume_command=[*rank, str(args.out / "config.json"), *out],
    )


def _program() -> list[str]:
    """What a rank is started with."""
    given = shlex.split(os.environ.get(variables.RANK_COMMAND, ""))
    return given or [sys.executable, "-m", "electra_dist"]


def one_node(
    args: argparse.Namespace,
    path: Path | None,
    beginning_words: list[str],
    overrides: list[str],
) -> int:
    """Start the ranks of this node, as one task of several of srun's, or of mpirun's."""
    from electra_dist.launch.node import Node, run_node
    from electra_dist.runtime.world import DEFAULT_PORT, World, without_launcher_variables

    world = World.from_environment(os.environ)
    node = Node(
        number=world.rank,
        num_nodes=world.world_size,
        num_ranks=args.nproc,
        master_addr=world.master_addr,
        master_port=world.master_port or DEFAULT_PORT,
    )
    words = config_words(path, args.recipe)
    # This program again, and not _program(): a container's words stand in front of this one too.
    command = [sys.executable, "-m", "electra_dist", "pretrain", *words, "--out", str(args.out)]
    environ = without_launcher_variables(os.environ)
    return run_node([*command, *beginning_words, *overrides], node, environ)


def _has_fit_nodes(
    args: argparse.Namespace, launcher: SrunLauncher, limits: Limits, environ: dict[str, str]
) -> bool:
    """Have the doctor look at each node, keep the ranks off the bad ones; False: none are left."""
    from electra_dist.launch import preflight

    allocation = launcher.allocation
    ranks_per_node = (allocation.tasks_per_node or 1) * (args.nproc or 1)
    doctor = [*_program(), "doctor", "--verdict", "--shared", str(args.out)]
    doctor += ["--ranks", str(ranks_per_node)]
    bad = preflight.examine_nodes(doctor, allocation, environ)
    preflight.forget_the_visit(args.out)
    least = allocation.num_nodes
    if limits.min_world_size is not None and allocation.tasks_per_node is not None:
        least = math.ceil(limits.min_world_size / ranks_per_node)
    examined = preflight.judged(bad, allocation, least)
    job_id, restarts = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT") or 0
    preflight.write_down(args.out, examined, job_id, int(restarts))
    if examined.why_not is None and examined.left_out:
        launcher.leave_out(examined.left_out)
    return examined.why_not is None
