"""What a run is besides its tensors: two counters, what it skips, and two fingerprints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from electra_dist.data.order import Skips

STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run is. There is no RNG state and no iterator state: a step is arithmetic."""

    step: int = 0
    """Optimizer steps completed."""
    position: int = 0
    """Global sample position of the next step, counting those that are used."""
    skipped: Skips = ()
    """Intervals of positions that are never used: `data.skips`, and what roll-backs left out."""

    def advanced(self, global_batch_size: int) -> RunState:
        """The state after one more step."""
        return replace(self, step=self.step + 1, position=self.position + global_batch_size)

    def to_json(
        self,
        *,
        config_fingerprint: str,
        corpus_fingerprint: str,
        tokenizer_sha256: str | None = None,
    ) -> dict[str, Any]:
        """state.json: the counters and what they count on."""
        return {
            "format_version": STATE_VERSION,
            "step": self.step,
            "position": self.position,
            "skipped_positions": [list(interval) for interval in self.skipped],
            "loss_scale": None,
            "config_fingerprint": config_fingerprint,
            "corpus_fingerprint": corpus_fingerprint,
            "tokenizer_sha256": tokenizer_sha256,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunState:
        """Read state.json back."""
        skipped = tuple((first, last) for first, last in values["skipped_positions"])
        return cls(step=values["step"], position=values["position"], skipped=skipped)
