"""Sections on how a run is computed, saved and measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from electra_dist.config.checks import require, require_positive


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Who computes a step and how its state is sharded."""

    kind: Literal["deepspeed", "reference"] = "deepspeed"
    """deepspeed is the product; reference is plain PyTorch, nothing sharded: the tests' oracle."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO: 0 replicates, 1 shards the optimizer, 2 also gradients, 3 also parameters."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What the model computes in; the weights that the optimizer updates are fp32 in any case."""
    initial_loss_scale: float = 65536.0
    """fp16: what losses are multiplied by at first; each overflow halves it and skips an update."""
    loss_scale_window: int = 2000
    """fp16: steps without an overflow after which the scale is doubled."""
    deepspeed_config: str | None = None
    """JSON of ZeRO and communication keys (see deepspeed_configs/); any other key is refused."""
    threads_per_rank: int | None = None
    """CPU threads of a rank, part of a run's bits. Left out: settled once, kept in config.json."""
    timeout_seconds: float = 1800.0
    """Deadline of a collective operation: then the missing rank is named and the attempt ends."""
    deterministic: bool = False
    """On CUDA: deterministic kernels only, so that a resumed run has the same bits, as on a CPU."""
    activation_checkpointing: bool = False
    """Keep layers' inputs only and compute layers again for gradients: slower, the same bits."""
    compile: bool = False
    """Run layers through torch.compile: a minute or two at first, other bits, 0.85 of the time."""

    def __post_init__(self) -> None:
        require_positive(
            "engine",
            timeout_seconds=self.timeout_seconds,
            threads_per_rank=self.threads_per_rank,
            loss_scale_window=self.loss_scale_window,
        )
        scale = self.initial_loss_scale
        require(
            1.0 <= scale <= 2.0**32 and math.frexp(scale)[0] == 0.5,
            "engine.initial_loss_scale",
            scale,
            "must be a power of two from 1 to 2**32, so that scaling rounds nothing",
            "65536 is usual",
        )
        require(
            not (self.kind == "deepspeed" and self.zero_stage == 0 and self.precision != "fp32"),
            "engine.precision",
            self.precision,
            "DeepSpeed's own optimizer for it is wrong at engine.zero_stage = 0",
            f"use zero_stage 1, 2 or 3 for {self.precision}",
        )
        require(
            not (self.kind == "deepspeed" and self.zero_stage == 3 and self.compile),
            "engine.compile",
            self.compile,
            "ZeRO-3 gathers weights in hooks of the layers, which compiled ones do not call",
            "use zero_stage 0, 1 or 2, or leave it out",
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When state goes to disk and how much of it stays."""

    every_steps: int = 1000
    """Save after every so many steps; a stop and the end save as well."""
    keep_last: int = 3
    """Newest checkpoints to keep; older ones go once a newer one has been verified."""
    asynchronous: bool = True
    """Train on while a save is written: takes host memory of twice what a rank saves."""
    parity: bool = False
    """Write a file as large as the largest shard, from which one lost shard can be rebuilt."""

    def __post_init__(self) -> None:
        require_positive("checkpoint", every_steps=self.every_steps, keep_last=self.keep_last)


@dataclass(frozen=True, kw_only=True)
class ResilienceConfig:
    """What a run does when something goes wrong."""

    commit_timeout_seconds: float = 600.0
    """Deadline for all ranks' files of one checkpoint to be complete on disk."""
    on_anomaly: Literal["rollback", "skip", "stop"] = "rollback"
    """At a broken or spiking loss or gradient: go back and leave samples out; skip it; or stop."""
    spike_deviations: float | None = None
    """So many robust deviations above its median a loss or gradient is a spike. None: no limit."""
    spike_window_steps: int = 128
    """Recent healthy steps that a spike is measured against; with fewer of them there is none."""
    max_rollbacks: int = 10
    """Roll-backs in a run: the next anomaly ends the attempt. A resumed run may raise it."""
    compare_replicas_every: int | None = 100
    """Steps between two comparisons of what ranks hold in common. None: only before a save."""
    max_restarts: int = 3
    """Restarts in a row without a new checkpoint, by --nproc or --launcher srun; 0: never."""
    min_world_size: int | None = None
    """Ranks that a restart may go on with once nodes are gone. Left out: no fewer than before."""
    term_grace_seconds: float = 30.0
    """How long a process lives after SIGTERM (Slurm's KillWait): what does not fit is left out."""
    hang_floor_seconds: float | None = 300.0
    """A rank hangs that stays in a phase for so long at least. None: no watchdog (a debugger)."""
    hang_factor: float = 10.0
    """And for so many times the 99th percentile of the run's own durations of that phase."""
    hang_start_up_seconds: float = 1800.0
    """How long a phase may last that was measured fewer than five times: it compiles then."""
    straggler_every: int | None = 50
    """Steps between two comparisons of the ranks' own times, collectives left out. None: never."""
    straggler_ratio: float = 1.3
    """A rank whose own time is so many times that of the median rank is named, with the phase."""
    end_margin_seconds: float = 20.0
    """Be gone so long before the end of the job (Slurm's time limit, or --time-limit)."""

    def __post_init__(self) -> None:
        require_positive(
            "resilience",
            commit_timeout_seconds=self.commit_timeout_seconds,
            spike_deviations=self.spike_deviations,
            max_rollbacks=self.max_rollbacks,
            compare_replicas_every=self.compare_replicas_every,
            min_world_size=self.min_world_size,
            term_grace_seconds=self.term_grace_seconds,
            hang_floor_seconds=self.hang_floor_seconds,
            hang_factor=self.hang_factor,
            hang_start_up_seconds=self.hang_start_up_seconds,
            straggler_every=self.straggler_every,
            end_margin_seconds=self.end_margin_seconds,
        )
        require(
            self.spike_window_steps >= 8,
            "resilience.spike_window_steps",
            self.spike_window_steps,
            "must be at least 8",
            "a median and a deviation of fewer steps say little; 128 is usual",
        )
        require(
            1.0 < self.straggler_ratio < math.inf,
            "resilience.straggler_ratio",
            self.straggler_ratio,
            "must be above 1",
            "1.3 names a rank that is 30 % later than the others",
        )
        require(
            self.max_restarts >= 0,
            "resilience.max_restarts",
            self.max_restarts,
            "is a number of restarts",
            "give 0 for none",
        )


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """What is measured and how often."""

    log_every: int = 10
    """Steps between two lines of metrics.jsonl and of the console."""
    eval_every: int = 1000
    """Steps between two held-out evaluations (frozen corruption); the last step evaluates too."""
    eval_num_samples: int = 1024
    """Held-out rows in one evaluation (or all there are)."""
    tensorboard: bool = True
    """Write TensorBoard event files under RUN/tensorboard."""
    peak_tflops: float | None = None
    """Peak of a device in 10^12 FLOP/s, for MFU. None: what a GPU's maker states; a CPU's own."""
    alarm_recall: float | None = 0.01
    """Alarm: the discriminator finds at most this share of what is replaced, and ... None: none."""
    alarm_auc: float = 0.55
    """... ranks tokens with at most this AUC (0.5 is chance)."""
    alarm_sampled_accuracy: float | None = 0.85
    """Alarm: so many of the generator's samples are the original that little is replaced."""
    alarms_from_step: int | None = None
    """Evaluations before it raise no alarm. Left out: the end of the warm-up."""

    def __post_init__(self) -> None:
        require_positive(
            "metrics",
            log_every=self.log_every,
            eval_every=self.eval_every,
            eval_num_samples=self.eval_num_samples,
            peak_tflops=self.peak_tflops,
        )
        for name in ("alarm_recall", "alarm_auc", "alarm_sampled_accuracy"):
            value = getattr(self, name)
            require(
                value is None or 0.0 <= value <= 1.0,
                f"metrics.{name}",
                value,
                "must lie in [0, 1]",
                "see docs/howto/training.md, the tug of war",
            )
        require(
            self.alarms_from_step is None or self.alarms_from_step >= 0,
            "metrics.alarms_from_step",
            self.alarms_from_step,
            "is a step",
            "give 0 for the first one",
        )
