"""What DeepSpeed finds when it starts: extensions, a group of ranks, a name for the device."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from electra_dist.config.schema import RunConfig
from electra_dist.engine.ds_config import uses_nvme
from electra_dist.errors import UserError
from electra_dist.runtime.extensions import claim_extensions

log = logging.getLogger(__name__)

LOCAL_RANK_VARIABLES = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
"""DeepSpeed compares them."""


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed and start its communication layer on the process group that is there."""
    for lock in claim_extensions(os.environ):
        log.warning("%s was left by a compilation that died; removed", lock)
    import deepspeed

    if device.type == "cpu":
        # Its start would compile a shared-memory kernel (45-118 s, and a killed compile leaves a
        # lock that hangs every later start). gloo is there already.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(
        dist_backend=backend,
        auto_mpi_discovery=False,
        verbose=False,
        dist_init_required=False,
    )
    return deepspeed


def give_group(deepspeed: Any, timeout_seconds: float) -> None:
    """All ranks as the group in which DeepSpeed exchanges gradients, with the run's own deadline.

    It would make one with torch's: 10 minutes with NCCL, whose watchdog then ends the process
    without a word about who is missing. Longer than ours, which is to fire first.
    """
    groups = deepspeed.utils.groups
    if groups._WORLD_GROUP is None:
        groups._WORLD_GROUP = dist.new_group(timeout=timedelta(seconds=timeout_seconds + 5))


@contextmanager
def named_by_device(device: torch.device, environ: MutableMapping[str, str]) -> Iterator[None]:
    """LOCAL_RANK is the number of this rank's device while DeepSpeed starts.

    It takes cuda:LOCAL_RANK, at stage 3 whatever it is told, which need not exist: Slurm may show
    each rank a device of its own, number 0 to all of them.
    """
    before = {name: environ[name] for name in LOCAL_RANK_VARIABLES if name in environ}
    if device.type == "cuda":
        environ.update(dict.fromkeys(before, str(device.index)))
    try:
        yield
    finally:
        environ.update(before)


def require_ability(deepspeed: Any, config: RunConfig) -> None:
    """Raise UserError where this machine lacks what the config asks DeepSpeed for."""
    accelerator = deepspeed.accelerator.get_accelerator()
    if config.engine.precision == "fp16" and not accelerator.is_fp16_supported():
        raise UserError(
            "engine.precision = 'fp16': DeepSpeed does not compute in it on this device; use bf16 "
            "or fp32"
        )
    if uses_nvme(config):
        from deepspeed.ops.op_builder import AsyncIOBuilder

        if not AsyncIOBuilder().is_compatible(verbose=False):
            raise UserError(
                f"{config.engine.deepspeed_config}: off-loading to nvme needs libaio, which is not "
                'installed here; install libaio-dev, or off-load with "device": "cpu"'
            )
