"""What a run reads, without running it: ranks, rows and masks of every micro-batch of some steps.

It goes through the stream that feeds the engines, so what stands here is what they are given; the
checksum of a step is the one in RUN/ledger.jsonl. No model, no torch, no process group.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from electra_dist.config.schema import RunConfig
from electra_dist.data.corpora import Corpora
from electra_dist.data.passes import Seat, passes, seat
from electra_dist.data.stream import CorpusStream, MicroBatch
from electra_dist.errors import UserError

_SHOWN = 4
"""Row ids and masks of a micro-batch in the table for people."""


def describe(corpora: Corpora) -> dict[str, Any]:
    """Which corpora row ids count through."""
    first_ids = np.cumsum([0, *(packing.num_examples for packing in corpora.packings)])
    return {
        "corpus_fingerprint": corpora.fingerprint,
        "corpora": [
            {
                "packing": str(packing.folder),
                "weight": weight,
                "first_row_id": int(first_id),
                "rows": packing.num_examples,
            }
            for packing, weight, first_id in zip(
                corpora.packings, corpora.weights, first_ids[:-1], strict=True
            )
        ],
    }


def trace(
    config: RunConfig,
    corpora: Corpora,
    steps: range,
    world_size: int,
    ranks_per_node: int | None = None,
) -> Iterator[dict[str, Any]]:
    """One record a step, with one a micro-batch in it; all but the ranks are the same for any W.

    Args:
        config: of the run.
        corpora: what it names.
        steps: updates, counted from 0.
        world_size: ranks that share a step.
        ranks_per_node: matters with `data.num_lanes` > 1 only (default: all on one node).

    Raises:
        UserError: there are more ranks than micro-batches, or the nodes don't add up.
    """
    per_node = world_size if ranks_per_node is None else ranks_per_node
    return _records(config, corpora, steps, _seats(config, world_size, per_node))


def _records(
    config: RunConfig, corpora: Corpora, steps: range, seats: list[Seat]
) -> Iterator[dict[str, Any]]:
    num_micro_batches, size = config.batch.num_micro_batches, config.batch.global_batch_size
    with closing(CorpusStream(config, corpora)) as stream:
        for step in steps:
            position = step * size
            lane = stream.first_lane(position)
            ranks = {one.slot(lane): rank for rank, one in enumerate(seats)}
            batches = [
                stream.micro_batch(step, index, position) for index in range(num_micro_batches)
            ]
            yield {
                "step": step,
                "position": position,
                "checksum": f"{sum(batch.checksum for batch in batches) % 2**64:016x}",
                "micro_batches": [
                    {
                        "micro_batch": batch.index,
                        "rank": ranks[batch.index % len(seats)],
                        **_content(stream, batch, stream.positions(batch.index, position)),
                    }
                    for batch in batches
                ],
            }


def _seats(config: RunConfig, world_size: int, ranks_per_node: int) -> list[Seat]:
    for name, value in (("world-size", world_size), ("ranks-per-node", ranks_per_node)):
        if value < 1:
            raise UserError(f"--{name} {value} must be at least 1")
    passes(0, world_size, config.batch.num_micro_batches)
    if world_size % ranks_per_node:
        raise UserError(
            f"--world-size {world_size} is not a multiple of --ranks-per-node {ranks_per_node}; "
            "nodes of a run are taken to be of one size"
        )
    if config.data.num_lanes == 1:
        return [Seat(rank, 0, 1) for rank in range(world_size)]
    local_ranks = [rank % ranks_per_node for rank in range(world_size)]
    return [seat(rank, local_ranks) for rank in range(world_size)]


def _content(
    stream: CorpusStream, batch: MicroBatch, positions_B: NDArray[np.int64]
) -> dict[str, Any]:
    ids_BL = np.ascontiguousarray(batch.input_ids_BL)
    used_BN = batch.masked_weights_BN > 0
    masked = [row[used] for row, used in zip(batch.masked_positions_BN, used_BN, strict=True)]
    return {
        "positions": positions_B.tolist(),
        "row_ids": stream.sample_ids(positions_B).tolist(),
        "input_ids_xxh3_64": xxhash.xxh3_64_hexdigest(ids_BL.data),
        "masked_positions": [row.tolist() for row in masked],
        "original_ids": [ids[places].tolist() for ids, places in zip(ids_BL, masked, strict=True)],
        "checksum": f"{batch.checksum:016x}",
    }


TITLES = (
    f"{'step':>8} {'batch':>5} {'rank':>5}  {'row ids':<44} {'input ids':<16}  "
    f"{'masked, as position:original id':<42} {'checksum':<16}"
)


def render(record: dict[str, Any]) -> Iterator[str]:
    """A step as lines of a table for people: long lists are cut, `--json` has them whole."""
    for batch in record["micro_batches"]:
        rows = batch["masked_positions"], batch["original_ids"]
        masked = [
            f"{place}:{original}"
            for places, originals in zip(*rows, strict=True)
            for place, original in zip(places, originals, strict=True)
        ]
        yield (
            f"{record['step']:>8} {batch['micro_batch']:>5} {batch['rank']:>5}  "
            f"{_shortened(batch['row_ids']):<44} {batch['input_ids_xxh3_64']}  "
            f"{_shortened(masked):<42} {batch['checksum']}"
        )
    yield (
        f"{record['step']:>8}   all        used positions from {record['position']:,}; "
        f"ledger.jsonl, step {record['step'] + 1}: checksum {record['checksum']}"
    )


def _shortened(values: list[Any]) -> str:
    shown = " ".join(str(value) for value in values[:_SHOWN])
    return shown if len(values) <= _SHOWN else f"{shown} ... ({len(values)})"
