"""The product's engine: a joint step under DeepSpeed ZeRO 0 to 3. Only `engine` knows DeepSpeed.

DeepSpeed is given the micro-batch size and K passes a rank; each loss is multiplied by W K / M, so
that its own mean over W ranks and K passes becomes the mean over the M real micro-batches. Saved
state is reached by element ranges (`fragments`), never through DeepSpeed's own checkpoints, which
cannot change the number of ranks or the stage.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from electra_dist.config.schema import RunConfig
from electra_dist.config.zero import layers_are_leaves
from electra_dist.data.stream import MicroBatch
from electra_dist.engine.ds_config import deepspeed_config
from electra_dist.engine.ds_start import (
    give_group,
    import_deepspeed,
    named_by_device,
    require_ability,
)
from electra_dist.engine.gradients import TowerNorms, clip_divisor, gradient_norm
from electra_dist.engine.optim import MOMENTS, make_optimizer
from electra_dist.engine.parts import Part, Parts
from electra_dist.engine.protocol import (
    PLAIN,
    Fragment,
    LocalResult,
    MayApply,
    Question,
    StepOptions,
    StepSums,
    disturbed,
    even_range,
    even_shares,
    is_finite,
    to_batch,
    without_padding,
)
from electra_dist.engine.waits import count_as_waiting
from electra_dist.model import random
from electra_dist.model.backbones import LAYERS
from electra_dist.model.batch import Batch, Losses
from electra_dist.model.padding import stored_shapes
from electra_dist.runtime.phases import Phases
from electra_dist.runtime.world import World


class DeepSpeedEngine:
    """Wraps `deepspeed.initialize` over the running process group; a single rank needs one too.

    Args:
        model: the joint module, with the same initial weights on every rank.
        config: the run's config; `engine.zero_stage` and `engine.precision` decide the sharding.
        world: this rank among the others.
        device: where this rank computes.
        make_batch: turns a micro-batch into tensors; tests replay recorded samples through it.
        phases: the clock of this rank's main thread.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RunConfig,
        world: World,
        device: torch.device,
        make_batch: Callable[[MicroBatch, int, torch.device], Batch] = to_batch,
        phases: Phases | None = None,
    ) -> None:
        deepspeed = import_deepspeed(device)
        require_ability(deepspeed, config)
        self.device = device
        self.parameter_shapes = stored_shapes(model)
        self._num_elements = {n: p.numel() for n, p in model.named_parameters()}
        self._config, self._world, self._make_batch = config, world, make_batch
        self._phases = phases or Phases()
        if device.type == "cpu":
            count_as_waiting(deepspeed.comm.comm.cdb, self._phases)
        self._stage = config.engine.zero_stage
        num_micro_batches = config.batch.num_micro_batches
        num_passes = -(-num_micro_batches // world.world_size)
        self._loss_scale = world.world_size * num_passes / num_micro_batches
        self.optimizer = make_optimizer(model, config.optim)
        if self._stage == 3 and layers_are_leaves(config):
            # Gathered product by product a step takes a tenth longer (`small`, one rank).
            deepspeed.utils.set_z3_leaf_modules(model, list(LAYERS), raise_if_not_found=False)
        give_group(deepspeed, config.engine.timeout_seconds)
        with named_by_device(device, os.environ):
            self._engine, self._zero, _, _ = deepspeed.initialize(
                args=SimpleNamespace(device_rank=device.index) if device.type == "cuda" else None,
                model=model,
                optimizer=self.optimizer,
                config=deepspeed_config(config, num_passes),
                dist_init_required=False,
            )
        self._parameters = dict(self._engine.module.named_parameters())
        if self._stage == 3:
            for module, parameter in self._engine.module.external_parameters():
                deepspeed.zero.register_external_parameter(module, parameter)
        self.optimizer.parts = self._parts()
        self._norms = TowerNorms(self.optimizer.parts, counts=self._stage > 0 or world.is_leader)

    @property
    def module(self) -> nn.Module:
        """See `Engine.module`."""
        module: nn.Module = self._engine.module
        return module

    def step(
        self,
        micro_batches: Sequence[MicroBatch],
        learning_rate: float,
        may_apply: MayApply = is_finite,
        options: StepOptions = PLAIN,
    ) -> LocalResult:
        """See `Engine.step`."""
        if not self._engine.module.training:  # setting it anew walks over all modules
            self._engine.train()
        for group in self._zero.param_groups:
            group["lr"] = learning_rate
        if self._config.engine.precision == "fp16":
            self._zero.loss_scale = options.loss_scale
        self.optimizer.num_updates = options.updates_before(micro_batches)
        self.optimizer.before_update = self._norms.add if options.measures_norms else None
        sums = StepSums()
        question = Question(lambda: sums.result(self._grad_norm()), may_apply)
        self.optimizer.may_apply = question.ask
        for micro_batch in micro_batches:
            random.seed_dropout(self._config.seed, micro_batch.step, micro_batch.index)
            scale = self._loss_scale if micro_batch.is_real else 0.0
            with self._phases.enter("forward"):
                batch = self._make_batch(micro_batch, self._config.seed, self.device)
                losses = disturbed(self._engine(batch), micro_batch)
            with self._phases.enter("backward"):
                self._engine.backward(losses.total * scale)
            sums.add(micro_batch, losses)
            with self._phases.enter("optimizer"):
                self._engine.step()
        # Stages 1 to 3 leave an update out by themselves, on all ranks, where the norm is not
        # finite: the optimizer has not asked then.
        question.ask()
        return replace(question.local, squared_norms=self._norms.take())

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Losses:
        """See `Engine.evaluate`."""
        self._engine.eval()
        losses: Losses = self._engine(batch)
        return losses

    def local_fragments(self) -> Iterator[Fragment]:
        """See `Engine.local_fragments`; the address of a range depends on the ZeRO stage."""
        return without_padding(self._located(), self.parameter_shapes)

    def _located(self) -> Iterator[Fragment]:
        for name, parameter in self._parameters.items():
            located = self._locate(name, parameter)
            if located is not None:
                flat, begin, start, length = located
                moments = self.optimizer.moments(flat)
                for kind, values in (("master", flat.data), *moments.items()):
                    if kind == "master" or kind in MOMENTS:
                        yield Fragment(name, kind, start, values.view(-1)[begin : begin + length])

    def owned_fragments(self) -> Iterator[Fragment]:
        """See `Engine.owned_fragments`: at stage 0 an even share of the copies, else the shards."""
        local = self.local_fragments()
        return local if self._stage > 0 else even_shares(local, self._world)

    def shared_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See `Engine.shared_tensors`.

        Stage 0: all weights and moments. Stages 1 and 2: the weights that the model computes with.
        Stage 3: none.
        """
        if self._stage == 0:
            return ((f"{f.parameter}/{f.kind}", f.values) for f in self.local_fragments())
        return iter(self._parameters.items() if self._stage < 3 else ())

    @torch.no_grad()
    def state_restored(self) -> None:
        """Copy the fp32 shards into the weights that the model computes with, and gather these."""
        if self._stage in (1, 2):
            # In place, from each rank in turn: DeepSpeed's update_lp_params gathers whole groups,
            # for which gloo takes the memory of the model once more (454 MiB a rank for `base`).
            for parts, shard in zip(
                self._zero.parallel_partitioned_bit16_groups,
                self._zero.single_partition_of_fp32_groups,
                strict=True,
            ):
                parts[self._world.rank].copy_(shard)
                for rank, part in enumerate(parts):
                    dist.broadcast(part, src=rank)
        elif self._stage == 3:
            for group in range(len(self._zero.fp32_partitioned_groups_flat)):
                self._zero._reassign_or_swap_out_partitioned_parameters(group)
            persistent = self._zero.persistent_parameters
            if persistent:
                # Small parameters stay gathered: drop the old copies, then gather from the restored
                # shards.
                persistent[0].partition(persistent)
                persistent[0].all_gather(persistent)

    def close(self) -> None:
        """Remove DeepSpeed's hooks and buffers."""
        self._engine.destroy()

    def _locate(self, name: str, parameter: Any) -> tuple[Tensor, int, int, int] | None:
        """This rank's part, or None: flat fp32 tensor, offset in it, in the parameter, length."""
        if self._stage == 0:
            return parameter, 0, 0, parameter.numel()
        if self._stage in (1, 2):
            mapping = parameter._hp_mapping
            if mapping is None:
                return None
            # The flat group by its address: with several groups DeepSpeed links the moments of the
            # first one only.
            flat = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
            here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
            return flat, here.start, there.start, there.numel
        group, offset, _ = self._zero.grad_position[self._zero.get_param_id(parameter)]
        start, stop = even_range(self._num_elements[name], self._world.rank, self._world.world_size)
        if stop == start:
            return None
        return self._zero.fp32_partitioned_groups_flat[group], offset, start, stop - start

    def _parts(self) -> Parts:
        """Where each parameter's pieces lie in the flat tensors that the optimizer is given."""
        if self._stage == 0:
            return Parts.whole(self._engine.module)
        of: dict[Tensor, list[Part]] = {}
        for number, (name, parameter) in enumerate(self._parameters.items()):
            located = self._locate(name, parameter)
            if located is not None:
                flat, begin, _, length = located
                of.setdefault(flat, []).append(Part(number, begin, length))
        return Parts(names=list(self._parameters), of=of, sum_over_ranks=self._sum_over_ranks)

    def _sum_over_ranks(self, sums: Tensor) -> Tensor:
        with self._phases.enter("reduce"):
            total = sums.to(self.device)  # off-loaded state lies on the host
            dist.all_reduce(total)
            return total.to(sums.device)

    def _grad_norm(self) -> float:
        """Of this step, when the optimizer asks, which then clips by it. Stage 0 gives none."""
        if self._stage == 0:
            norm = gradient_norm([p.grad for p in self._parameters.values() if p.grad is not None])
        else:
            norm = float(self._zero._global_grad_norm)
            norm = norm if norm >= 0 else math.nan  # -1 is what bf16 makes of one not finite
        self.optimizer.gradient_divisor = clip_divisor(norm, self._config.optim.clip_norm)
        return norm
