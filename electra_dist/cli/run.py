"""The words of `pretrain`, `trace`, `stop`, `status`, `report`, `config` and `doctor`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from electra_dist.cli.parser import command, group
from electra_dist.commands import corpus, run

_KNOBS = """common knobs (--section.field value; `electra-dist config docs` lists all):
  --data.corpus CORPUS              --data.sequence_length 128
  --data.blend CORPUS 3 CORPUS 1    --data.num_lanes 1              --data.skips FIRST LAST ...
  --batch.global_batch_size 128     --batch.micro_batch_size 32
  --schedule.num_steps 1000000      --schedule.warmup_steps 10000   --schedule.stop_step N
  --optim.learning_rate 5e-4        --optim.weight_decay 0.01       --optim.name lamb|adamw|...
  --objective.name electra|mlm|...  --objective.mask_prob 0.15      --objective.disc_weight 50
  --model.backbone bert|modern      --model.pad_vocab_to_multiple_of 64
  --model.hidden_size 256           --model.num_layers 12           --model.generator_hidden_size 64
  --engine.kind deepspeed|reference --engine.zero_stage 0|1|2|3     --engine.threads_per_rank N
  --engine.deepspeed_config JSON    --engine.precision fp32|bf16|fp16
  --checkpoint.every_steps 1000     --checkpoint.keep_last 3
  --metrics.log_every 10            --metrics.eval_every 1000       --seed 0
  --resilience.max_restarts 3       --resilience.min_world_size N
sections: model objective data batch optim schedule engine checkpoint resilience metrics"""


def add_run(parent: Any) -> None:
    """Declare `pretrain`, `trace`, `stop`, `status`, `report`, `config` and `doctor`."""
    pretrain = command(
        parent,
        "pretrain",
        run.pretrain,
        epilog=_KNOBS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pretrain.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml")
    pretrain.add_argument("--recipe", help="tiny, small, small_pp, base or large")
    pretrain.add_argument("--out", required=True, type=Path, metavar="RUN")
    pretrain.add_argument("--nproc", type=int, help="start this many ranks on this machine")
    pretrain.add_argument(
        "--launcher",
        choices=("local", "srun", "node"),
        help="who starts the ranks: local with --nproc (default); srun in a Slurm batch script, a "
        "rank on each task, or with --nproc so many; node: --nproc ranks as one task of several",
    )
    pretrain.add_argument(
        "--exclude-bad-nodes",
        action="store_true",
        help="with --launcher srun: let the doctor look at each node first, leave bad ones out",
    )
    pretrain.add_argument(
        "--max-restarts",
        type=int,
        metavar="K",
        help="with --nproc or --launcher: restart after a crash, at most K times in a row without "
        "a new checkpoint (default resilience.max_restarts)",
    )
    pretrain.add_argument(
        "--time-limit",
        metavar="TIME",
        help="save and leave (exit code 75) before that: seconds, H:MM:SS or D-HH:MM:SS; "
        "in a Slurm job its own limit is known",
    )
    pretrain.add_argument(
        "--init-from",
        type=Path,
        metavar="RUN|CKPT|HF_DIR",
        help="a new run begins with these weights, at step 0",
    )
    pretrain.add_argument(
        "--keep-moments", action="store_true", help="--init-from: and with Adam's moments"
    )
    pretrain.add_argument(
        "--resume-from", type=Path, metavar="CKPT", help="a new run goes on where this one was"
    )
    trace = command(parent, "trace", corpus.trace)
    trace.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml|RUN/config.json")
    trace.add_argument("--recipe", help="as in pretrain; so are --section.field value")
    trace.add_argument(
        "--steps", required=True, metavar="A:B", help="updates A to B - 1, counted from 0"
    )
    trace.add_argument("--world-size", type=int, default=1, metavar="W", help="ranks (default 1)")
    trace.add_argument(
        "--ranks-per-node", type=int, metavar="N", help="for data.num_lanes > 1 (default: W)"
    )
    trace.add_argument("--json", action="store_true", help="one JSON document, nothing cut")
    stop = command(parent, "stop", run.stop)
    stop.add_argument("run", type=Path, metavar="RUN")
    status = command(parent, "status", run.status)
    status.add_argument("run", type=Path, metavar="RUN|JOB", help="a folder, or a Slurm job's id")
    status.add_argument("--json", action="store_true", help="one JSON document")
    report = command(parent, "report", run.report)
    report.add_argument("run", type=Path, metavar="RUN")
    config = group(parent, "config", "look at configs")
    show = command(config, "show", run.config_show)
    show.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml")
    show.add_argument("--recipe")
    command(config, "docs", run.config_docs)
    doctor = command(parent, "doctor", run.doctor)
    doctor.add_argument("--shared", type=Path, metavar="DIR", help="a folder that all nodes share")
    doctor.add_argument(
        "--ranks", type=int, default=2, help="of the all-reduce on this node (default %(default)s)"
    )
    doctor.add_argument(
        "--seconds", type=float, default=60.0, help="deadline of a check (default %(default)s)"
    )
    doctor.add_argument("--verdict", action="store_true", help="one line in all")
    doctor.add_argument("--json", action="store_true", help="one JSON document")
