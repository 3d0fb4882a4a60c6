"""The optimizers of pretraining: ELECTRA's Adam, AdamW and LAMB. All keep two moments and no more.

A checkpoint therefore holds nothing that is not a tensor of a parameter's own shape, and a run may
go on from another optimizer's state. How many updates the moments are made of is a number of the
run's state, given to the optimizer before each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from electra_dist.config.accounting import is_decayed
from electra_dist.config.schema import OptimConfig
from electra_dist.engine.parts import Parts, squared_norm

MOMENTS = ("exp_avg", "exp_avg_sq")

_LATE_STEP = 1e9
"""1 - beta**step is 1 in float64 for any beta below 0.99999996."""


class MomentOptimizer(torch.optim.Optimizer):
    """Two moments a parameter, a veto, and `lr` and `weight_decay` a group.

    Args:
        params: parameters, or groups of them as `decay_groups` makes them.
        lr: learning rate.
        betas: decays of the two moments.
        eps: added to the square root of the second moment.
        weight_decay: where a group does not say its own.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "adapts": True})
        self.may_apply: Callable[[], bool] = lambda: True
        """Asked by every `step`, right before a weight changes: False leaves all as it is."""
        self.before_update: Callable[[Sequence[Tensor]], None] | None = None
        """Called with the tensors that are about to change, while they have their gradients."""
        self.gradient_divisor = 1.0
        """Of the gradients, on their way into an update: a clip takes no pass of its own.

        Whether `grad` itself is divided afterwards is not said: LAMB leaves it as it was.
        """
        self.num_updates = 0
        """Of which the moments are made."""
        self.parts: Parts | None = None
        """What the tensors hold of which parameter. None: each is one, whole."""

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
            raise ValueError(f"{type(self).__name__} takes no closure")
        if not self.may_apply():
            return
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                if self.before_update is not None:
                    self.before_update(params)
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _fused_adamw(self, params: list[Tensor], group: dict[str, Any], num_updates: float) -> None:
        """Torch's fused AdamW, corrected as after so many updates before this one: one pass."""
        beta1, beta2 = group["betas"]
        device = params[0].device
        # adamw adds 1 to each of these, so each parameter has its own.
        steps = torch.full((len(params),), num_updates, device=device)
        divisor = None
        if self.gradient_divisor != 1.0:
            # By way of float64: what float32 cannot hold becomes infinity, and the gradients 0.
            exact = torch.full((), self.gradient_divisor, dtype=torch.float64, device=device)
            divisor = exact.float()
        moments = [self.moments(p) for p in params]
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            [both["exp_avg"] for both in moments],
            [both["exp_avg_sq"] for both in moments],
            [],
            list(steps.unbind()),
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            grad_scale=divisor,
        )


class ElectraAdam(MomentOptimizer):
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g²;  w -= lr (m / (sqrt(v) + eps) + decay w).

    Without bias correction. Source: google-research/electra, optimization.py.
    """

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """At so late a step that nothing is corrected."""
        self._fused_adamw(params, group, _LATE_STEP)


class AdamW(MomentOptimizer):
    """With m' = m / (1 - b1^n) and v' = v / (1 - b2^n): w -= lr (m' / (sqrt(v') + eps) + decay w).

    n counts the updates that were made, this one included: a step whose update was left out does
    not count. Source: Loshchilov and Hutter 2019, as in torch.optim.AdamW.
    """

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        self._fused_adamw(params, group, float(self.num_updates))


class Lamb(AdamW):
    """AdamW's update u, scaled for each parameter: w -= lr |w| / |u| u, norms over the parameter.

    Where a norm is 0, and for LayerNorm and biases (a group that does not `adapts`), the ratio is
    1. Source: You et al. 2020, algorithm 2, with phi the identity. Norms are float64 sums over all
    pieces of a parameter, on whichever ranks: one all-reduce of two numbers a parameter.
    """

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        if not group["adapts"]:
            super()._update(params, group)
            return
        parts = self.parts or Parts.uncut((str(n), p) for n, p in enumerate(params))
        updates = [
            (number, p.view(-1)[own], self._make_update(p, own, group))
            for number, p, own in parts.walk(params)
        ]
        squares = [
            (number, torch.stack([squared_norm(weights), squared_norm(update)]))
            for number, weights, update in updates
        ]
        sums = parts.over_ranks(parts.sums(squares, 2, params[0].device))
        weight, update = sums.unbind(1)
        ratios = torch.where((weight > 0) & (update > 0), (weight / update).sqrt(), 1.0)
        for number, weights, update in updates:
            weights.addcmul_(update, ratios[number].to(update.dtype), value=-group["lr"])

    def _make_update(self, parameter: Tensor, own: slice, group: dict[str, Any]) -> Tensor:
        """Move the moments of these elements; AdamW's update of them, without the rate.

        Never in the memory of the gradient: DeepSpeed goes on with it in the next step.
        """
        assert parameter.grad is not None
        (beta1, beta2), count = group["betas"], self.num_updates + 1
        first, second = (self.moments(parameter)[name].view(-1)[own] for name in MOMENTS)
        gradient = parameter.grad.reshape(-1)[own]
        if self.gradient_divisor != 1.0:
            gradient = gradient / self.gradient_divisor
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = second.sqrt().div_((1 - beta2**count) ** 0.5).add_(group["eps"])
        torch.div(first, update, out=update).div_(1 - beta1**count)
        return update.add_(parameter.view(-1)[own], alpha=group["weight_decay"])


OPTIMIZERS: dict[str, type[MomentOptimizer]] = {
    "electra_adam": ElectraAdam,
    "adamw": AdamW,
    "lamb": Lamb,
}


def make_optimizer(module: nn.Module, config: OptimConfig) -> MomentOptimizer:
    """The optimizer that `optim.name` names, over all parameters of `module`, at rate 0."""
    return OPTIMIZERS[config.name](
        decay_groups(module, config.weight_decay),
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weight decay on everything (embeddings too), and none on LayerNorm and biases.

    LAMB's trust ratios are for the first one.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        (decayed if is_decayed(name) else plain).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "adapts": True},
        {"params": plain, "weight_decay": 0.0, "adapts": False},
    ]
