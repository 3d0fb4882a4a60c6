"""`submit deepspeed | mpi | torchrun`: a run on the hosts of a hostfile."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import shutil
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from electra_dist.errors import UserError
from electra_dist.launch.hosts import PDSH, HostsJob


def submit_deepspeed(args: argparse.Namespace, overrides: list[str]) -> int:
    """Run on the hosts of a hostfile through the deepspeed launcher."""
    from electra_dist.launch.hosts import deepspeed_command

    _check_quotes("--launcher-args", args.launcher_args)
    job = _job(args, overrides, address_needed=args.launcher in ("openmpi", "slurm"))
    if args.launcher == PDSH and re.search(r"[^\w@%+=:,./-]", str(job.folder)):
        raise UserError(
            f"the folder {str(job.folder)!r} can't be handed to pdsh by deepspeed (it quotes "
            "nothing there); start from a folder without blanks and the like"
        )
    needs = {PDSH: "pdsh", "slurm": "srun"}.get(args.launcher, "mpirun")
    command = deepspeed_command(job, args.launcher, args.launcher_args)
    return _run(args, job, [command], needs=("deepspeed", needs))


def submit_mpi(args: argparse.Namespace, overrides: list[str]) -> int:
    """Run on the hosts of a hostfile through Open MPI's mpirun."""
    from electra_dist.launch.hosts import mpirun_command

    _check_quotes("--mpirun-args", args.mpirun_args)
    job = _job(args, overrides)
    return _run(args, job, [mpirun_command(job, args.mpirun_args)], needs=("mpirun",))


def submit_torchrun(args: argparse.Namespace, overrides: list[str]) -> int:
    """Run on the hosts of a hostfile: torchrun on each, through ssh."""
    from electra_dist.launch.hosts import torchrun_commands, torchrun_ends

    job = _job(args, overrides)
    return _run(args, job, torchrun_commands(job), torchrun_ends(job), needs=("ssh",))


def _job(
    args: argparse.Namespace, overrides: list[str], *, address_needed: bool = True
) -> HostsJob:
    """What is to be run, checked as far as can be here.

    Raises:
        UserError: a file or config that does not fit, or rank 0's address is needed and not known.
    """
    from electra_dist.config import files
    from electra_dist.launch.hostfile import read_hostfile, read_variables, variables_files
    from electra_dist.resilience.resume import resumed_config
    from electra_dist.runtime.world import derived_port

    run = args.out.absolute()
    path = files.config_of(run, args.config, args.recipe)
    config = files.load(path, overrides, recipe=args.recipe)
    hosts = read_hostfile(args.hostfile)
    num_ranks = sum(host.slots for host in hosts)
    if num_ranks > config.batch.num_micro_batches:
        raise UserError(
            f"{args.hostfile} has {num_ranks} slots, but a step has "
            f"{config.batch.num_micro_batches} micro-batches, one a rank at least; take fewer, or "
            "lower batch.micro_batch_size"
        )
    resumed_config(config, run)  # refused here and now if it can't go on with RUN
    given = files.config_words(args.config and args.config.absolute(), args.recipe)
    variables = read_variables(variables_files(os.environ))
    if os.environ.get("PYTHONPATH"):  # as DeepSpeed's launcher hands it on
        variables = {"PYTHONPATH": os.environ["PYTHONPATH"], **variables}
    address = args.master_addr or _if_it_resolves(hosts[0].address)
    if address is None and address_needed:
        raise UserError(
            f"{hosts[0].address}, the first host of {args.hostfile}, does not resolve here; give "
            "--master-addr, a name or address of it that all hosts know"
        )
    return HostsJob(
        hosts=hosts,
        hostfile=args.hostfile.absolute(),
        words=("pretrain", *given, "--out", str(run), *overrides),
        python=sys.executable,
        master_addr=address,
        # Of its own for each run: two of them may share a host.
        master_port=args.master_port or derived_port(str(run)),
        folder=Path.cwd(),
        variables=variables,
    )


def _check_quotes(flag: str, words: str) -> None:
    try:
        shlex.split(words)
    except ValueError:
        raise UserError(f"{flag} {words!r} opens a quote that it does not close") from None


def _if_it_resolves(name: str) -> str | None:
    with suppress(OSError):
        socket.getaddrinfo(name, None)
        return name
    return None


def _run(
    args: argparse.Namespace,
    job: HostsJob,
    commands: list[list[str]],
    ends: Sequence[Sequence[str]] = (),
    *,
    needs: Sequence[str],
) -> int:
    from electra_dist.launch.hosts import ALIVE
    from electra_dist.launch.hosts_run import run_on_hosts
    from electra_dist.runtime.world import LAUNCHER_VARIABLES

    if args.dry_run:
        for command in commands:
            print(shlex.join(command))
        return 0
    logging.basicConfig(format="%(levelname)s: %(message)s")
    # Not the families of names: OMPI_MCA_* and SLURM_* are for mpirun and srun.
    stale = {name for name in LAUNCHER_VARIABLES if not name.startswith("SLURM_")}
    environ = {name: value for name, value in os.environ.items() if name not in stale}
    environ |= {name: x for name, x in job.variables.items() if not name.endswith("PATH")}
    if job.master_addr:  # srun hands on what is here; the others have it in their words
        environ |= {"MASTER_ADDR": job.master_addr, "MASTER_PORT": str(job.master_port)}
    # deepspeed and mpirun of this environment, and what they start by name.
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', '')}"
    environ.setdefault("PDSH_SSH_ARGS_APPEND", " ".join(ALIVE))
    for program in needs:
        if shutil.which(program, path=environ["PATH"]) is None:
            raise UserError(
                f"{program} is not on the PATH of this machine; install it, or take another way"
            )
    return run_on_hosts(commands, environ, args.out.absolute(), ends)
