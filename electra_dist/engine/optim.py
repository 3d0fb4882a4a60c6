"""ELECTRA's Adam: no bias correction, weight decay added to the update.

Source: google-research/electra, optimization.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

MOMENTS = ("exp_avg", "exp_avg_sq")

_LATE_STEP = 1e9
"""1 - beta**step is 1 in float64 for any beta below 0.99999996."""

_ROW = 1024
"""Elements of a gradient whose squares are added in its own type."""


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
        """Runs torch's fused AdamW at so late a step that it corrects nothing: one pass."""
        beta1, beta2 = group["betas"]
        steps = {p.device: torch.tensor(_LATE_STEP, device=p.device) for p in params}
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            [self.moments(p)["exp_avg"] for p in params],
            [self.moments(p)["exp_avg_sq"] for p in params],
            [],
            [steps[p.device] for p in params],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


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

    Summed in float64 but for rows of 1024, whose rounding averages out (1e-9 of the norm of
    `small`): DeepSpeed's sharded stages do it in float64, a norm in float32 is off by 3e-7 of
    itself, and that moved the losses of 20 steps apart by 9e-6.
    """
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    norms = [norm for grad in grads for norm in _partial_norms(grad)]
    norm = float(torch.linalg.vector_norm(torch.stack(norms)))
    if norm > max_norm:
        torch._foreach_mul_(grads, max_norm / (norm + 1e-6))
    return norm


def _partial_norms(grad: Tensor) -> list[Tensor]:
    """Norms in float64 of a gradient's rows of 1024 elements together, and of the rest."""
    flat = grad.reshape(-1)
    num_whole = len(flat) // _ROW * _ROW
    rows = torch.linalg.vector_norm(flat[:num_whole].view(-1, _ROW), dim=1)
    return [
        torch.linalg.vector_norm(rows, dtype=torch.float64),
        torch.linalg.vector_norm(flat[num_whole:], dtype=torch.float64),
    ]
