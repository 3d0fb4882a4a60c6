"""Complete runs by name: a recipe is a function that returns a config.

A variant replaces fields of another.

Sizes, rates, batches and steps are those of the paper's appendix and of google-research/electra,
where ``model_size=base`` alone trains base with small's rate and length: recipes here are whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from electra_dist.config.schema import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    MetricsConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
)


def small() -> RunConfig:
    """ELECTRA-Small: 12 layers of 256, generator of a quarter, L 128, batch 128, 1 M steps."""
    return RunConfig(recipe="small")


def small_pp() -> RunConfig:
    """ELECTRA-Small++: the published small checkpoint, with a generator of full width and L 512."""
    run = small()
    return replace(
        run,
        recipe="small_pp",
        model=replace(run.model, generator_hidden_size=256),
        data=DataConfig(sequence_length=512),
    )


def base() -> RunConfig:
    """ELECTRA-Base: 12 layers of 768, generator of a third, L 512, batch 256, 766 k steps."""
    return RunConfig(
        recipe="base",
        model=ModelConfig(hidden_size=768, embedding_size=768, generator_hidden_size=256),
        data=DataConfig(sequence_length=512),
        batch=BatchConfig(global_batch_size=256, micro_batch_size=8),
        optim=OptimConfig(learning_rate=2e-4),
        schedule=ScheduleConfig(num_steps=766_000),
    )


def large() -> RunConfig:
    """ELECTRA-Large: 24 layers of 1024, generator of a quarter, 25 % masked, L 512, batch 2048.

    400 k steps; the longer published run has 1.75 M.
    """
    return RunConfig(
        recipe="large",
        model=ModelConfig(
            num_layers=24,
            hidden_size=1024,
            embedding_size=1024,
            generator_num_layers=24,
            generator_hidden_size=256,
        ),
        objective=ObjectiveConfig(mask_prob=0.25),
        data=DataConfig(sequence_length=512),
        batch=BatchConfig(global_batch_size=2048, micro_batch_size=8),
        optim=OptimConfig(learning_rate=2e-4),
        schedule=ScheduleConfig(num_steps=400_000),
    )


def tiny() -> RunConfig:
    """For tests, the demo and a first look: 4 layers of 128; 300 steps take minutes on a laptop.

    Without bias correction Adam's early updates are several times the rate (5.8 times at step 30),
    so even 300 steps warm up over 100: over 30, the discriminator's vectors collapse into one.
    """
    return RunConfig(
        recipe="tiny",
        model=ModelConfig(
            num_layers=4,
            hidden_size=128,
            embedding_size=64,
            generator_num_layers=4,
            generator_hidden_size=64,
        ),
        batch=BatchConfig(global_batch_size=32, micro_batch_size=8),
        optim=OptimConfig(learning_rate=1e-3),
        schedule=ScheduleConfig(num_steps=300, warmup_steps=100),
        checkpoint=CheckpointConfig(every_steps=100),
        metrics=MetricsConfig(log_every=10, eval_every=100, eval_num_samples=256),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    "tiny": tiny,
    "small": small,
    "small_pp": small_pp,
    "base": base,
    "large": large,
}
