"""Every knob of a pretraining run: frozen, checked where it is born, with what it means under it.

Names are ELECTRA's own (``mask_prob``, ``disc_weight``, ``generator_hidden_size`` ...). Values that
follow from others are properties and never stored. What a knob must satisfy is checked at
construction, and the error says the field, the value and the remedy. The defaults are those of the
``small`` recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from electra_dist.config.checks import require
from electra_dist.config.combinations import check_towers
from electra_dist.config.feeding import MAX_BLEND_WEIGHT, BatchConfig, DataConfig
from electra_dist.config.learning import (
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    ScheduleConfig,
)
from electra_dist.config.running import (
    CheckpointConfig,
    EngineConfig,
    MetricsConfig,
    ResilienceConfig,
)

__all__ = [
    "MAX_BLEND_WEIGHT",
    "BatchConfig",
    "CheckpointConfig",
    "DataConfig",
    "EngineConfig",
    "MetricsConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "ResilienceConfig",
    "RunConfig",
    "ScheduleConfig",
]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One pretraining run, complete: written to RUN/config.json exactly as it was resolved."""

    recipe: str = "small"
    """The recipe that this config started from; for people, not read again."""
    seed: int = 0
    """Order of the rows, masks, initial weights, dropout and sampling follow from this number."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The two towers."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is learnt."""
    data: DataConfig = field(default_factory=DataConfig)
    """Rows and their order."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Samples of a step."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Steps and learning rate."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """DeepSpeed ZeRO, or the reference."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    resilience: ResilienceConfig = field(default_factory=ResilienceConfig)
    """Surviving."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    """Measuring."""

    def __post_init__(self) -> None:
        require(
            0 <= self.seed < 2**63,
            "seed",
            self.seed,
            "must lie in [0, 2**63)",
            "use a small whole number",
        )
        require(
            self.data.sequence_length <= self.model.max_position_embeddings,
            "data.sequence_length",
            self.data.sequence_length,
            f"is longer than model.max_position_embeddings = {self.model.max_position_embeddings}",
            f"raise model.max_position_embeddings to {self.data.sequence_length}",
        )
        check_towers(self.model, self.objective)

    @property
    def max_masked(self) -> int:
        """Masked slots of a row: N = int((p + 0.005) L), as google-research/electra counts them.

        With a schedule of the mask probability p is the largest.
        """
        return max(1, int((self.objective.largest_mask_prob + 0.005) * self.data.sequence_length))
