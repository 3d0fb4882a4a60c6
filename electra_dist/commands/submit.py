"""`submit` and `requeue`: a run as a job of a cluster."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import replace

from electra_dist.errors import UserError


def submit_slurm(args: argparse.Namespace, overrides: list[str]) -> int:
    """Write RUN/submit.sbatch and submit it."""
    from electra_dist.config import files
    from electra_dist.config.cluster import find_cluster, read_cluster
    from electra_dist.launch.slurm import Job, batch_script, submit
    from electra_dist.resilience.resume import resumed_config

    config = files.load(args.config, overrides, recipe=args.recipe)
    for name, value in (("--nodes", args.nodes), ("--chain", args.chain)):
        if value < 1:
            raise UserError(f"{name} {value} must be at least 1")
    cluster = read_cluster(find_cluster(args.cluster))
    if args.gpus_per_node is not None:
        cluster = replace(cluster, gpus_per_node=args.gpus_per_node)
    num_ranks = args.nodes * cluster.num_tasks_per_node
    if num_ranks > config.batch.num_micro_batches:
        raise UserError(
            f"{args.nodes} nodes of {cluster.num_tasks_per_node} ranks are {num_ranks} ranks, but "
            f"a step has {config.batch.num_micro_batches} micro-batches; take fewer, or lower "
            "batch.micro_batch_size"
        )
    given = [str(args.config.absolute())] if args.config else []
    given += ["--recipe", args.recipe] if args.recipe else []
    run = args.out.absolute()
    resumed_config(config, run)  # refused here and now if it can't go on with RUN
    job = Job(
        run=run,
        words=(*given, *overrides),
        num_nodes=args.nodes,
        python=sys.executable,
        time=args.time,
        no_kill=config.resilience.min_world_size is not None,
        is_chained=args.chain > 1,
    )
    text = batch_script(job, cluster)
    if args.dry_run:
        print(text, end="")
        return 0
    run.mkdir(parents=True, exist_ok=True)
    script = run / "submit.sbatch"
    script.write_text(text, encoding="utf-8")
    for answer in submit(script, test_only=args.test_only, num_jobs=args.chain):
        print(answer)
    return 0


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
    ending = ending_of(args.run, args.after_attempt, args.code)
    decision = end_job(args.run, job, ending, signals, max_fruitless=args.max_fruitless)
    action = "requeued" if decision.requeue else "not requeued"
    print(f"electra-dist: job {job_id} of {args.run} {action}: {decision.why}")
    return decision.exit_code
