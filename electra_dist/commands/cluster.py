"""`submit` and `requeue`: a run under a scheduler."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from electra_dist.errors import UserError


def submit_slurm(args: argparse.Namespace, overrides: list[str]) -> int:
    """Write RUN/submit.sbatch and hand it to sbatch: the run then goes on until it is finished."""
    from electra_dist.config import files
    from electra_dist.launch.clusters import load_cluster, require_time
    from electra_dist.launch.slurm import Request, batch_script
    from electra_dist.launch.submit import check_with_slurm, submit_chain, write_script
    from electra_dist.resilience.resume import resumed_config

    for name, value in (("--nodes", args.nodes), ("--chain", args.chain)):
        if value < 1:
            raise UserError(f"{name} {value} must be at least 1")
    if args.gpus_per_node is not None and args.gpus_per_node < 0:
        raise UserError(f"--gpus-per-node {args.gpus_per_node} must be at least 0")
    if args.time is not None:
        require_time("--time", args.time)
    run = args.out.absolute()
    path = args.config
    if path is None and args.recipe is None and (run / "config.json").is_file():
        path = run / "config.json"
    config = files.load(path, overrides, recipe=args.recipe)
    resumed_config(config, run)  # a config that can't go on with RUN is refused here and now
    request = Request(
        config=run / "submit.json",
        run=run,
        work_folder=Path.cwd(),
        num_nodes=args.nodes,
        gpus_per_node=args.gpus_per_node,
        time=args.time,
        survives_nodes=config.resilience.min_world_size is not None,
        is_chained=args.chain > 1,
        num_micro_batches=config.batch.num_micro_batches,
    )
    text = batch_script(request, load_cluster(args.cluster))
    script = write_script(run, text, files.to_json(config))
    if args.dry_run:
        print(text, end="")
        print(f"electra-dist: wrote {script}; nothing was submitted", file=sys.stderr)
    elif args.test_only:
        print(check_with_slurm(script))
    else:
        print("\n".join(f"job {job_id}" for job_id in submit_chain(script, args.chain)))
    return 0


def requeue(args: argparse.Namespace, _: list[str]) -> int:
    """Say whether this Slurm job goes on, and requeue it if so: the last line of a batch script."""
    from electra_dist.launch.requeue import Event
    from electra_dist.launch.slurm_job import Job, end_job, ending_of

    job_id = os.environ.get("SLURM_JOB_ID")
    if not job_id:
        raise UserError(
            "requeue is for a Slurm batch script (SLURM_JOB_ID is not set); to go on with a run "
            "give pretrain the same --out"
        )
    signals = args.signals.split()
    known = [event.value for event in Event]
    for word in signals:
        if word not in known:
            raise UserError(f"--signals {word!r} is unknown; known are {' '.join(known)}")
    decision = end_job(
        args.run,
        Job(job_id=job_id, restart_count=int(os.environ.get("SLURM_RESTART_COUNT") or 0)),
        ending_of(args.run, args.after_attempt, args.launcher_code),
        signals,
        max_fruitless=args.max_fruitless,
    )
    action = "requeued" if decision.requeue else "not requeued"
    print(f"electra-dist: job {job_id} of {args.run} {action}: {decision.why}")
    return decision.exit_code
