"""The learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int, power: float = 1.0) -> float:
    """Factor on the peak rate for the update number `step`, counted from 0.

    The polynomial decay and the warm-up multiply, as in google-research/electra, so the rate is 0
    at step 0 and the peak is a little under 1.
    """
    decay: float = (1.0 - min(step, num_steps) / num_steps) ** power
    warmup = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return decay * warmup
