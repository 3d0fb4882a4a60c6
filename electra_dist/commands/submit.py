"""`submit` and `requeue`: a run as a job of a cluster."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from electra_dist.errors import UserError

if TYPE_CHECKING:
    from electra_dist.config.cluster import ClusterConfig
    from electra_dist.launch.slurm import Job


def submit_slurm(args: argparse.Namespace, overrides: list[str]) -> int:
    """Write RUN/submit.sbatch and submit it."""
    from electra_dist.launch.jobs import note_submissions
    from electra_dist.launch.slurm import batch_script, submit

    job, cluster = job_and_cluster(args, overrides)
    text = batch_script(job, cluster)
    if args.dry_run:
        print(text, end="")
        return 0
    job.run.mkdir(parents=True, exist_ok=True)
    script = job.run / "submit.sbatch"
    script.write_text(text, encoding="utf-8")
    answers = submit(script, test_only=args.test_only, num_jobs=args.chain)
    if not args.test_only:
        note_submissions(job.run, answers, "submit slurm")
    for answer in answers:
        print(answer)
    return 0


def submit_submitit(args: argparse.Namespace, overrides: list[str]) -> int:
    """Submit a run through submitit, to Slurm or (--cluster local) to this machine."""
    from electra_dist.config.cluster import ClusterConfig
    from electra_dist.launch.jobs import note_submissions
    from electra_dist.launch.submitit import LOCAL, submission_text, submit_local, submit_slurm

    if args.cluster == LOCAL:
        if args.nodes != 1 or args.dry_run:
            raise UserError("--cluster local is one node and writes no script; leave the rest out")
        job, cluster = job_and_cluster(args, overrides, ClusterConfig())
        job.run.mkdir(parents=True, exist_ok=True)
        job_id = submit_local(job, cluster.num_tasks_per_node)
    else:
        job, cluster = job_and_cluster(args, overrides)
        if args.dry_run:
            print(submission_text(job, cluster), end="")
            return 0
        job.run.mkdir(parents=True, exist_ok=True)
        job_id = submit_slurm(job, cluster)
        note_submissions(job.run, [job_id], "submit submitit")
    print(job_id)
    return 0


def job_and_cluster(
    args: argparse.Namespace, overrides: list[str], cluster: ClusterConfig | None = None
) -> tuple[Job, ClusterConfig]:
    """What is to be submitted and where to, from the words of `submit`.

    Args:
        args: config, recipe, out, cluster, nodes, gpus_per_node, time, and chain or not.
        overrides: of the config.
        cluster: in place of the one that `args` names.

    Raises:
        UserError: no such cluster, no such time, more ranks than a step can use, or a config that
            RUN refuses.
    """
    from electra_dist.config import files
    from electra_dist.config.cluster import find_cluster, read_cluster
    from electra_dist.config.slurm_names import slurm_minutes
    from electra_dist.launch.preflight import lately_bad
    from electra_dist.launch.slurm import Job
    from electra_dist.resilience.resume import resumed_config

    run = args.out.absolute()
    path = files.config_of(run, args.config, args.recipe)
    config = files.load(path, overrides, recipe=args.recipe)
    num_jobs = getattr(args, "chain", 1)
    for name, value in (("--nodes", args.nodes), ("--chain", num_jobs)):
        if value < 1:
            raise UserError(f"{name} {value} must be at least 1")
    if args.time is not None:
        slurm_minutes(args.time)  # refused here and now, not by sbatch after a dry run
    cluster = cluster or read_cluster(find_cluster(args.cluster))
    if args.gpus_per_node is not None:
        cluster = replace(cluster, gpus_per_node=args.gpus_per_node)
    num_ranks = args.nodes * cluster.num_ranks_per_node
    if num_ranks > config.batch.num_micro_batches:
        raise UserError(
            f"{args.nodes} nodes of {cluster.num_ranks_per_node} ranks are {num_ranks} ranks, but "
            f"a step has {config.batch.num_micro_batches} micro-batches; take fewer, or lower "
            "batch.micro_batch_size"
        )
    given = files.config_words(args.config and args.config.absolute(), args.recipe)
    resumed_config(config, run)  # refused here and now if it can't go on with RUN
    job = Job(
        run=run,
        words=(*given, *overrides),
        num_nodes=args.nodes,
        python=sys.executable,
        time=args.time,
        no_kill=config.resilience.min_world_size is not None,
        is_chained=num_jobs > 1,
        left_out=lately_bad(run) if cluster.exclude_bad_nodes else (),
    )
    return job, cluster


def requeue(args: argparse.Namespace, _: list[str]) -> int:
    """For batch scripts: have Slurm requeue this job if its run should go on."""
    from electra_dist.launch.requeue import Event
    from electra_dist.launch.slurm_job import Job, end_job, ending_of

    logging.basicConfig(format="%(levelname)s: %(message)s")
    job_id = os.environ.get("SLURM_JOB_ID")
    if not job_id:
        raise UserError(
            "requeue is for a Slurm batch script (SLURM_JOB_ID is not set); to go on with a run, "
            "give pretrain the same --out"
        )
    known = [event.value for event in Event]
    signals = args.signals.split()
    for word in signals:
        if word not in known:
            raise UserError(f"--signals {word!r} is unknown; known are {' '.join(known)}")
    job = Job(job_id=job_id, restart_count=int(os.environ.get("SLURM_RESTART_COUNT") or 0))
    ending = ending_of(args.run, args.after_attempt, args.code, job)
    decision = end_job(args.run, job, ending, signals, max_fruitless=args.max_fruitless)
    action = "requeued" if decision.requeue else "not requeued"
    print(f"electra-dist: job {job_id} of {args.run} {action}: {decision.why}")
    return decision.exit_code
