"""What a run will need, worked out from its config alone: no torch, no allocation, no contact.

Parameters, FLOPs, memory, traffic and checkpoint sizes are derived; time, interval and goodput rest
on what `Assumptions` says, and are labelled so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from electra_dist.checkpoint.layout import (
    BLOCK_BYTES,
    FORMAT_VERSION,
    KINDS,
    Manifest,
    ShardRecord,
    manifest_text,
    shard_header,
    shard_name,
)
from electra_dist.config.accounting import (
    num_parameters,
    parameter_shapes,
    vocab_size,
)
from electra_dist.config.activations import Device
from electra_dist.config.flops import flops_of_row, train_flops
from electra_dist.config.memory import Memory, memory_of_rank
from electra_dist.config.schema import RunConfig
from electra_dist.config.traffic import sharded_ranges, traffic_of_step
from electra_dist.config.zero import ZeroSettings
from electra_dist.errors import UserError

STATED_TFLOPS = {
    ("cuda", "bf16"): 312.0,
    ("cuda", "fp16"): 312.0,
    ("cuda", "fp32"): 19.5,
    ("cpu", "fp32"): 0.15,
}
"""Peaks taken where none is given: an A100's, as its maker states them; of a CPU, what two cores
gave in a product of matrices."""
STATE_BYTES = 700
"""Of state.json, which grows by some 40 bytes for each step of the window of recent losses."""
HASH = "0" * 16
"""As long as the hash of a block."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What time and goodput rest on; nothing else in a plan does."""

    tflops: float
    """Peak of a device in 10**12 FLOP/s."""
    mfu: float = 0.4
    """Share of that peak which a step reaches."""
    mtbf_hours: float = 10_000.0
    """Mean time between failures of one node."""
    write_gb_per_s: float = 1.0
    """10**9 bytes a second that a rank writes, all ranks at once."""
    copy_gb_per_s: float = 4.0
    """10**9 bytes a second from a rank's state to its host buffers."""
    restart_minutes: float = 5.0
    """From a failure to the next step."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where a run is to be computed."""

    nodes: int = 1
    gpus_per_node: int = 1
    device: Device = "cuda"

    @property
    def world_size(self) -> int:
        """Ranks."""
        return self.nodes * self.gpus_per_node


def make_plan(config: RunConfig, cluster: Cluster, assumed: Assumptions) -> dict[str, Any]:
    """The plan as one JSON document; see docs/howto/plan.md for its keys.

    Raises:
        UserError: the cluster has more ranks than a step has micro-batches, or the DeepSpeed file
            cannot be read.
    """
    _check(config, cluster)
    config = with_vocabulary_of_corpus(config)
    zero = ZeroSettings.read(config.engine.deepspeed_config)
    world_size = cluster.world_size
    memory = _by_stage(
        config,
        lambda one: memory_of_rank(one, world_size=world_size, device=cluster.device, zero=zero),
    )
    traffic = _by_stage(config, lambda one: traffic_of_step(one, world_size=world_size, zero=zero))
    sizes = checkpoint_files(config, world_size)
    return {
        "recipe": config.recipe,
        "nodes": cluster.nodes,
        "gpus_per_node": cluster.gpus_per_node,
        "device": cluster.device,
        "precision": config.engine.precision,
        "vocab_size": vocab_size(config),
        "vocab_size_is_assumed": config.model.vocab_size is None,
        "parameters": num_parameters(config),
        "flops": train_flops(config),
        "memory_per_gpu": {name: _total(one, cluster.device) for name, one in memory.items()},
        "memory_by_kind": {name: asdict(one) for name, one in memory.items()},
        "traffic_per_step": {name: one.total for name, one in traffic.items()},
        "traffic_by_kind": {name: asdict(one) for name, one in traffic.items()},
        "checkpoint_bytes": sum(sizes.values()),
        "checkpoint_files": sizes,
        **_times(config, cluster, assumed, max(sizes.values())),
        "assumed": asdict(assumed),
    }


def with_vocabulary_of_corpus(config: RunConfig) -> RunConfig:
    """The config with the size that its corpus's manifest gives, where that can be read here."""
    if config.model.vocab_size is not None or not config.data.folders:
        return config
    try:
        manifest = json.loads((Path(config.data.folders[0]) / "manifest.json").read_bytes())
        size = manifest["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return config  # at an address, not built yet, or on another machine: it is assumed
    if not isinstance(size, int):
        return config
    return replace(config, model=replace(config.model, vocab_size=size))


def checkpoint_files(config: RunConfig, world_size: int) -> dict[str, int]:
    """Bytes of every file of a checkpoint: exact, but for state.json, which counts recent losses.

    A shard's size follows from its header, the header from the ranges that the rank saves.
    """
    records = []
    for rank in range(world_size):
        spans = [
            (f"{name}/{kind}", first, last)
            for name, first, last in sharded_ranges(config, world_size=world_size, rank=rank)
            for kind in KINDS
        ]
        header, ranges = shard_header(spans)
        size = len(header) + 4 * sum(last - first for _, first, last in spans)
        records.append(_record(shard_name(rank), size, ranges))
    largest = max(record.bytes for record in records)
    parity = _record("parity.xor", largest, None) if config.checkpoint.parity else None
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        step=config.schedule.last_step,
        parameters={name: list(shape) for name, shape in parameter_shapes(config).items()},
        shards=records,
        state_xxh3_128="0" * 32,
        parity=parity,
    )
    files = {record.file: record.bytes for record in [*records, *([parity] if parity else [])]}
    num_more_hashes = sum(max(0, -(-size // BLOCK_BYTES) - 1) for size in files.values())
    return {
        **files,
        "manifest.json": len(manifest_text(manifest)) + num_more_hashes * len(f'"{HASH}", '),
        "state.json": STATE_BYTES,
    }


def _record(file: str, size: int, ranges: dict[str, list[int]] | None) -> ShardRecord:
    # One hash stands for all: their number has no bound, and each adds as many bytes as the last.
    return ShardRecord(file=file, bytes=size, block_hashes=[HASH], ranges=ranges)


def _check(config: RunConfig, cluster: Cluster) -> None:
    if min(cluster.nodes, cluster.gpus_per_node) < 1:
        raise UserError(
            f"--nodes {cluster.nodes} and --gpus-per-node {cluster.gpus_per_node} must be at least "
            "1; give what the job asks for"
        )
    if cluster.world_size > config.batch.num_micro_batches:
        raise UserError(
            f"{cluster.world_size} ranks are more than the {config.batch.num_micro_batches} "
            "micro-batches of a step; raise batch.global_batch_size or lower "
            "batch.micro_batch_size"
        )


def _by_stage(config: RunConfig, answer: Callable[[RunConfig], Answer]) -> dict[str, Answer]:
    """`answer` for every stage of DeepSpeed's engine that the precision allows, and plain torch."""
    found = {}
    for stage in (0, 1, 2, 3):
        if stage > 0 or config.engine.precision == "fp32":
            engine = replace(config.engine, kind="deepspeed", zero_stage=stage)
            found[f"zero{stage}"] = answer(replace(config, engine=engine))
    engine = replace(config.engine, kind="reference")
    return found | {"reference": answer(replace(config, engine=engine))}


def _total(memory: Memory, device: Device) -> int:
    """Of a GPU without what lies in host memory."""
    return memory.device_total if device == "cuda" else memory.total


def _times(
    config: RunConfig, cluster: Cluster, assumed: Assumptions, largest_file: int
) -> dict[str, Any]:
    """Seconds of a step and of the run, and how often to save (Young 1974, Daly 2006)."""
    num_passes = -(-config.batch.num_micro_batches // cluster.world_size)
    flops = num_passes * config.batch.micro_batch_size * flops_of_row(config)
    step = flops / (assumed.tflops * 1e12 * assumed.mfu)
    write = largest_file / (assumed.write_gb_per_s * 1e9)
    copy = largest_file / (assumed.copy_gb_per_s * 1e9)
    blocked = copy if config.checkpoint.asynchronous else write
    mtbf = assumed.mtbf_hours * 3600 / cluster.nodes
    interval = min(mtbf, max(math.sqrt(2 * blocked * mtbf), write))
    every_steps = max(1, round(interval / step))
    return {
        "time": {
            "step_seconds": step,
            "total_seconds": step * config.schedule.last_step,
            "tokens_per_s": config.batch.global_batch_size * config.data.sequence_length / step,
        },
        "checkpoint_interval": {
            "save_seconds": write,
            "blocked_seconds": blocked,
            "seconds": interval,
            "every_steps": every_steps,
        },
        "goodput": {
            "recommended": _goodput(every_steps * step, blocked, write, mtbf, assumed),
            "configured": _goodput(
                config.checkpoint.every_steps * step, blocked, write, mtbf, assumed
            ),
        },
    }


def _goodput(
    interval: float, blocked: float, write: float, mtbf: float, assumed: Assumptions
) -> float:
    """Share of the time that makes progress which is kept.

    A failure costs half an interval, the save that was still being written, and the restart.
    """
    lost = (interval / 2 + write + assumed.restart_minutes * 60) / mtbf
    return max(0.0, interval / (interval + blocked) * (1 - lost))
