"""What a run is besides its tensors: counters, what it skips, recent losses, two fingerprints."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from electra_dist.data.order import Skips
from electra_dist.engine.scaling import LossScale
from electra_dist.resilience.health import Recent, Vitals

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

    num_rollbacks: int = 0
    """Made so far, by all attempts."""
    recent: Recent = field(default_factory=Recent)
    """What a spike is measured against."""
    num_updates: int = 0
    """Updates of which the moments are made: steps but for those whose update was left out."""
    loss_scale: LossScale | None = None
    """In fp16."""
    alarms: tuple[str, ...] = ()
    """Raised by the last evaluation."""

    def advanced(
        self,
        global_batch_size: int,
        vitals: Vitals | None = None,
        window_steps: int = 0,
        loss_scale: LossScale | None = None,
    ) -> RunState:
        """The state after one more step.

        Args:
            global_batch_size: positions that it used.
            vitals: of a healthy step, whose update was made; they enter the window.
            window_steps: length of the window.
            loss_scale: of the next step.
        """
        return replace(
            self,
            step=self.step + 1,
            position=self.position + global_batch_size,
            recent=self.recent.after(vitals, window_steps) if vitals else self.recent,
            num_updates=self.num_updates + (vitals is not None),
            loss_scale=loss_scale,
        )

    def with_declared(self, declared: dict[str, Any] | None) -> RunState:
        """The state that also knows of roll-backs after it was saved.

        Args:
            declared: the ledger's newest record of kind `resume`. Its skips lie behind this state's
                position, or are its own: checkpoints after a guilty step are gone.
        """
        if declared is None or declared.get("rollbacks", 0) <= self.num_rollbacks:
            return self
        skipped = tuple((first, last) for first, last in declared["skipped"])
        return replace(self, skipped=skipped, num_rollbacks=declared["rollbacks"])

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
            "num_rollbacks": self.num_rollbacks,
            "recent": self.recent.to_json(),
            "num_updates": self.num_updates,
            "loss_scale": self.loss_scale.to_json() if self.loss_scale else None,
            "alarms": list(self.alarms),
            "config_fingerprint": config_fingerprint,
            "corpus_fingerprint": corpus_fingerprint,
            "tokenizer_sha256": tokenizer_sha256,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunState:
        """Read state.json back; what older ones do not have yet is 0, empty, or follows."""
        recent, scale = values.get("recent"), values.get("loss_scale")
        return cls(
            step=values["step"],
            position=values["position"],
            skipped=tuple((first, last) for first, last in values["skipped_positions"]),
            num_rollbacks=values.get("num_rollbacks", 0),
            recent=Recent.from_json(recent) if recent else Recent(),
            num_updates=values.get("num_updates", values["step"]),
            loss_scale=LossScale.from_json(scale) if scale else None,
            alarms=tuple(values.get("alarms", ())),
        )
