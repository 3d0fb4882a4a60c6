"""ELECTRA's Adam: no bias correction, weight decay added to the update.

Source: google-research/electra, optimization.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class ElectraAdam(torch.optim.Optimizer):
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g²;  w -= lr (m / (sqrt(v) + eps) + decay w).

    There is no step counter: without bias correction the state is the two moments alone, so that a
    checkpoint holds nothing that is not a tensor of the parameter's own shape. Each group carries
    its own ``lr`` and ``weight_decay``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self.may_apply: Callable[[], bool] = lambda: True
        """Asked by every `step`, right before a weight changes: False leaves all as it is."""

    def moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """The two moments of `parameter`, made of zeros where it has not been stepped yet."""
        state: dict[str, Tensor] = self.state[parameter]
        for name in MOMENTS:
            if name not in state:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Raises:
            ValueError: `closure` is given, which a sharded step cannot honour.
        """
        if closure is not None:
            raise ValueError("ElectraAdam takes no closure")
        if not self.may_apply():
            return
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        grads = [p.grad for p in params if p.grad is not None]
        first = [self.moments(p)["exp_avg"] for p in params]
        second = [self.moments(p)["exp_avg_sq"] for p in params]
        torch._foreach_lerp_(first, grads, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1.0 - beta2)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(first, denominators)
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        torch._foreach_add_(params, updates, alpha=-group["lr"])


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weight decay on everything (embeddings too), and none on LayerNorm and biases."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        is_plain = name.endswith("bias") or "layer_norm" in name
        (plain if is_plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def clip_gradients(module: nn.Module, max_norm: float) -> float:
    """Scale all gradients of `module` to a global norm of at most `max_norm`; the norm before that.

    Summed in float64, as DeepSpeed's sharded stages do it: a norm in float32 is off by 3e-7 of
    itself, which moved the losses of 20 steps apart by 9e-6.
    """
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in grads])
    norm = float(torch.linalg.vector_norm(norms))
    if norm > max_norm:
        torch._foreach_mul_(grads, max_norm / (norm + 1e-6))
    return norm
