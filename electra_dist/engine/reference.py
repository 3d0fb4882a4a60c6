"""The oracle: one optimizer step in plain PyTorch, fp32, state replicated on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from electra_dist.config.schema import RunConfig
from electra_dist.data.stream import MicroBatch
from electra_dist.engine.optim import MOMENTS, ElectraAdam, clip_gradients, decay_groups
from electra_dist.engine.protocol import (
    Fragment,
    LocalResult,
    MayApply,
    Question,
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
        self._model = model.to(device)
        self._parameters = dict(self._model.named_parameters())
        self._config, self._world, self._make_batch = config, world, make_batch
        self._phases = phases or Phases()
        optim = config.optim
        self.optimizer = ElectraAdam(
            decay_groups(self._model, optim.weight_decay),
            lr=0.0,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
        )

    @property
    def module(self) -> nn.Module:
        """See `Engine.module`."""
        return self._model

    def step(
        self,
        micro_batches: Sequence[MicroBatch],
        learning_rate: float,
        may_apply: MayApply = is_finite,
    ) -> LocalResult:
        """See `Engine.step`."""
        self._model.train()
        sums = StepSums()
        for micro_batch in micro_batches:
            if micro_batch.is_real:
                random.seed_dropout(self._config.seed, micro_batch.step, micro_batch.index)
                with self._phases.enter("forward"):
                    batch = self._make_batch(micro_batch, self._config.seed, self.device)
                    losses = disturbed(self._model(batch), micro_batch)
                with self._phases.enter("backward"):
                    (losses.total / self._config.batch.num_micro_batches).backward()
                sums.add(micro_batch, losses)
        with self._phases.enter("reduce"):
            self._sum_gradients_over_ranks()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with self._phases.enter("optimizer"):
            norm = clip_gradients(self._model, self._config.optim.clip_norm)
            question = Question(lambda: sums.result(norm), may_apply)
            self.optimizer.may_apply = question.ask
            self.optimizer.step()
            self.optimizer.zero_grad()
        return question.local

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
        """The model computes with the master weights themselves: nothing to do."""

    def close(self) -> None:
        """Nothing to free."""

    def _sum_gradients_over_ranks(self) -> None:
        if self._world.world_size > 1:
            grads = [p.grad for p in self._model.parameters() if p.grad is not None]
            flat = torch.cat([grad.view(-1) for grad in grads])
            dist.all_reduce(flat)
            pieces = torch.split(flat, [grad.numel() for grad in grads])
            for grad, summed in zip(grads, pieces, strict=True):
                grad.copy_(summed.view_as(grad))
