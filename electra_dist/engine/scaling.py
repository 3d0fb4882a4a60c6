"""The loss scale of fp16: two plain numbers that follow from what each step's gradients were.

Small gradients vanish in fp16 below 6e-8, large ones overflow above 65504. So the loss is
multiplied by a scale before the backward pass and the gradients divided by it after. All ranks know
a step's gradient norm, so all ranks have the same scale without asking, and it is saved as two
numbers of the run's state.

Source: Micikevicius et al. 2018; the constants are those of torch.amp.GradScaler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LEAST = 1.0
"""With unscaled gradients an overflow is no matter of the scale, but an anomaly."""
LARGEST = 2.0**32


@dataclass(frozen=True, kw_only=True)
class LossScale:
    """What losses are multiplied by: a power of two, so that nothing is rounded by it."""

    scale: float
    good_steps: int = 0
    """Without an overflow since the scale was last changed."""

    @property
    def can_be_lowered(self) -> bool:
        """Whether an overflow may be the scale's fault."""
        return self.scale > LEAST

    def after(self, *, overflowed: bool, window_steps: int) -> LossScale:
        """Half of it after an overflow; twice as much after `window_steps` steps without one."""
        if overflowed:
            return LossScale(scale=max(LEAST, self.scale / 2))
        if self.good_steps + 1 >= window_steps:
            return LossScale(scale=min(LARGEST, self.scale * 2))
        return LossScale(scale=self.scale, good_steps=self.good_steps + 1)

    def to_json(self) -> dict[str, Any]:
        """For state.json."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LossScale:
        """Read it back."""
        return cls(scale=float(values["scale"]), good_steps=int(values["good_steps"]))
