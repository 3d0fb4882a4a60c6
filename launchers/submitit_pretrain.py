#!/usr/bin/env python3
"""Pretraining as a submitit job: your own executor, with what a run needs to go on by itself.

    NNODES=2 NPROC=8 GPUS=8 launchers/submitit_pretrain.py CONFIG.toml --out RUN
    CLUSTER=local NPROC=2 launchers/submitit_pretrain.py --recipe tiny --data.corpus C --out RUN

NNODES, NPROC   nodes, and ranks on each; default: 1
GPUS            to ask for on each node; default: 0
CLUSTER         slurm or local; default: slurm where there is one
MINUTES         time limit; default: 1440
SBATCH_PARTITION, SBATCH_ACCOUNT and the like are read by sbatch itself.

`electra-dist submit submitit` does the same with the facts of a site from a file.
"""

import os
import sys
from pathlib import Path

import submitit

from electra_dist.launch.submitit_job import Pretraining

place = sys.argv.index("--out")
run, words = Path(sys.argv[place + 1]).absolute(), sys.argv[1:place] + sys.argv[place + 2 :]
cluster = os.environ.get("CLUSTER")
executor = submitit.AutoExecutor(run / "submitit", cluster, slurm_max_num_timeout=1_000_000)
executor.update_parameters(
    nodes=int(os.environ.get("NNODES", "1")),
    tasks_per_node=int(os.environ.get("NPROC", "1")),
    gpus_per_node=int(os.environ.get("GPUS", "0")),
    timeout_min=int(os.environ.get("MINUTES", "1440")),
    slurm_signal_delay_s=300,  # over 30 s + the longest step + two saves
    slurm_srun_args=["--kill-on-bad-exit=1", "--wait=0"],  # one that fails ends the others
    slurm_additional_parameters={"requeue": True},
)
print(executor.submit(Pretraining(words, run)).job_id)
