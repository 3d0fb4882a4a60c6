"""The oracle: one optimizer step in plain PyTorch, state replicated on every rank.

In fp32 the model computes with the weights that the optimizer updates. In bf16 and fp16 it computes
with a rounded copy of them; gradients are added up over micro-batches and ranks in fp32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from electra_dist.config.schema import RunConfig
from electra_dist.data.stream import MicroBatch
from electra_dist.engine.gradients import TowerNorms, clip_divisor, gradient_norm
from electra_dist.engine.optim import MOMENTS, make_optimizer
from electra_dist.engine.parts import Parts
from electra_dist.engine.protocol import (
    PLAIN,
    Fragment,
    LocalResult,
    MayApply,
    Question,
    StepOptions,
    StepSums,
    disturbed,
    even_shares,
    is_finite,
    to_batch,
    without_padding,
)
from electra_dist.model import random
from electra_dist.model.batch import Batch, Losses
from electra_dist.model.padding import stored_shapes
from electra_dist.runtime.phases import Phases
from electra_dist.runtime.world import World

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ReferenceEngine:
    """Gradients are summed over a rank's micro-batches, then over ranks; all else is local."""

    def __init__(
        self,
        model: nn.Module,
        config: RunConfig,
        world: World,
        device: torch.device,
        make_batch: Callable[[MicroBatch, int, torch.device], Batch] = to_batch,
        phases: Phases | None = None,
    ) -> None:
        self.device = device
        self.parameter_shapes = stored_shapes(model)
        self._model = self._masters = model.to(device)
        dtype = DTYPES[config.engine.precision]
        if dtype != torch.float32:
            self._masters = copy.deepcopy(self._model)
            for parameter in self._model.parameters():
                parameter.data = parameter.data.to(dtype)
        self._parameters = dict(self._masters.named_parameters())
        self._config, self._world, self._make_batch = config, world, make_batch
        self._phases = phases or Phases()
        self.optimizer = make_optimizer(self._masters, config.optim)
        self.optimizer.parts = Parts.whole(self._masters)
        self._norms = TowerNorms(self.optimizer.parts, counts=world.is_leader)

    @property
    def module(self) -> nn.Module:
        """See `Engine.module`."""
        return self._model

    def step(
        self,
        micro_batches: Sequence[MicroBatch],
        learning_rate: float,
        may_apply: MayApply = is_finite,
        options: StepOptions = PLAIN,
    ) -> LocalResult:
        """See `Engine.step`."""
        if not self._model.training:  # setting it anew takes 2 ms for the 200 modules of `small`
            self._model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.num_updates = options.updates_before(micro_batches)
        self.optimizer.before_update = self._norms.add if options.measures_norms else None
        num_micro_batches = self._config.batch.num_micro_batches
        sums = StepSums()
        for micro_batch in micro_batches:
            if micro_batch.is_real:
                random.seed_dropout(self._config.seed, micro_batch.step, micro_batch.index)
                with self._phases.enter("forward"):
                    batch = self._make_batch(micro_batch, self._config.seed, self.device)
                    losses = disturbed(self._model(batch), micro_batch)
                with self._phases.enter("backward"):
                    (losses.total * options.loss_scale / num_micro_batches).backward()
                    self._collect_gradients()
                sums.add(micro_batch, losses)
        with self._phases.enter("reduce"):
            self._sum_gradients_over_ranks()
        with self._phases.enter("optimizer"):
            if options.loss_scale != 1.0:
                torch._foreach_mul_(self._gradients(), 1.0 / options.loss_scale)
            norm = gradient_norm(self._gradients())
            self.optimizer.gradient_divisor = clip_divisor(norm, self._config.optim.clip_norm)
            question = Question(lambda: sums.result(norm), may_apply)
            self.optimizer.may_apply = question.ask
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.state_restored()
            return replace(question.local, squared_norms=self._norms.take())

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Losses:
        """See `Engine.evaluate`."""
        self._model.eval()
        losses: Losses = self._model(batch)
        return losses

    def local_fragments(self) -> Iterator[Fragment]:
        """See `Engine.local_fragments`: every parameter and moment, whole."""
        return without_padding(self._whole(), self.parameter_shapes)

    def _whole(self) -> Iterator[Fragment]:
        for name, parameter in self._parameters.items():
            moments = self.optimizer.moments(parameter)
            yield Fragment(name, "master", 0, parameter.data.view(-1))
            for kind in MOMENTS:
                yield Fragment(name, kind, 0, moments[kind].view(-1))

    def owned_fragments(self) -> Iterator[Fragment]:
        """See `Engine.owned_fragments`: an even share of every parameter."""
        return even_shares(self.local_fragments(), self._world)

    def shared_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See `Engine.shared_tensors`: all weights and moments."""
        return ((f"{f.parameter}/{f.kind}", f.values) for f in self.local_fragments())

    def state_restored(self) -> None:
        """Round the master weights into those that the model computes with, if these are others."""
        if self._model is not self._masters:
            for parameter, master in self._pairs():
                parameter.data.copy_(master.data)

    def close(self) -> None:
        """Nothing to free."""

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        return zip(self._model.parameters(), self._masters.parameters(), strict=True)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters.values() if p.grad is not None]

    def _collect_gradients(self) -> None:
        """Add what the last backward pass left to the gradients of the masters, in fp32."""
        if self._model is not self._masters:
            for parameter, master in self._pairs():
                if parameter.grad is not None:
                    gradient, parameter.grad = parameter.grad.float(), None
                    master.grad = gradient if master.grad is None else master.grad + gradient

    def _sum_gradients_over_ranks(self) -> None:
        if self._world.world_size > 1:
            grads = self._gradients()
            flat = torch.cat([grad.view(-1) for grad in grads])
            dist.all_reduce(flat)
            pieces = torch.split(flat, [grad.numel() for grad in grads])
            for grad, summed in zip(grads, pieces, strict=True):
                grad.copy_(summed.view_as(grad))
