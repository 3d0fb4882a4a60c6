"""The words of a small run on the reference engine: a step takes some hundredths of a second."""

from __future__ import annotations

from pathlib import Path


def words(corpus: Path | str, *, steps: int, save_every: int) -> list[str]:
    """What follows `electra-dist pretrain --out RUN`."""
    values = {
        "engine.kind": "reference",
        "data.corpus": corpus,
        "data.sequence_length": 32,
        "model.num_layers": 2,
        "model.generator_num_layers": 2,
        "schedule.num_steps": steps,
        "schedule.warmup_steps": 5,
        "batch.global_batch_size": 8,
        "batch.micro_batch_size": 2,
        "engine.threads_per_rank": 1,
        "checkpoint.every_steps": save_every,
        "metrics.log_every": 1,
        "metrics.eval_every": 20,
    }
    options = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return ["--recipe", "tiny", *options, "--metrics.no-tensorboard"]
