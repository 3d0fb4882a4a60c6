import json
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from electra_dist.data.corpora import Corpora
from electra_dist.data.store import Corpus
from electra_dist.data.stream import CorpusStream
from electra_dist.data.trace import describe, render, trace
from electra_dist.errors import UserError
from tests.unit.data.test_stream import GLOBAL, config


def traced(
    corpus: Corpus, world_size: int, num_lanes: int = 1, **more: Any
) -> list[dict[str, Any]]:
    run = config(micro=4)
    run = replace(run, data=replace(run.data, num_lanes=num_lanes, skips=((30, 40),)))
    corpora = Corpora.of(run.data, [corpus])
    return list(trace(run, corpora, range(1, 4), world_size, **more))


def ranks(records: list[dict[str, Any]]) -> list[list[int]]:
    return [[batch.pop("rank") for batch in record["micro_batches"]] for record in records]


def test_it_says_what_the_ranks_are_given(corpus: Corpus) -> None:
    run = config(micro=4)
    run = replace(run, data=replace(run.data, skips=((30, 40),)))
    records = traced(corpus, world_size=4)
    for rank in range(4):
        with closing(CorpusStream(run, corpus, rank, 4)) as stream:
            for record in records:
                given = [
                    b for b in stream.micro_batches(record["step"], record["position"]) if b.is_real
                ]
                said = [b for b in record["micro_batches"] if b["rank"] == rank]
                assert [b["micro_batch"] for b in said] == [b.index for b in given]
                assert [b["checksum"] for b in said] == [f"{b.checksum:016x}" for b in given]
                for one, batch in zip(said, given, strict=True):
                    for row in range(4):
                        places, ids = one["masked_positions"][row], one["original_ids"][row]
                        used = batch.masked_weights_BN[row] > 0
                        assert places == batch.masked_positions_BN[row][used].tolist()
                        assert ids == batch.input_ids_BL[row][places].tolist()
    for record in records:
        total = sum(int(batch["checksum"], 16) for batch in record["micro_batches"])
        assert record["checksum"] == f"{total % 2**64:016x}"
    assert [record["position"] for record in records] == [GLOBAL, 2 * GLOBAL, 3 * GLOBAL]
    positions = [p for b in records[0]["micro_batches"] for p in b["positions"]]
    assert positions == [*range(24, 30), *range(40, 58)]


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_only_the_ranks_depend_on_the_world(corpus: Corpus, num_lanes: int) -> None:
    one = traced(corpus, 1, num_lanes)
    assert ranks(one) == [[0] * 6] * 3
    for world_size in range(2, 7):
        other = traced(corpus, world_size, num_lanes)
        assert ranks(other) == [[i % world_size for i in range(6)]] * 3
        assert other == one


def test_with_lanes_ranks_of_one_node_share_one(corpus: Corpus) -> None:
    # Positions 24, 58 and 82: of run 6, 14 and 20, all of lane 0; ranks 0 and 1 are on node 0.
    assert ranks(traced(corpus, 4, num_lanes=2, ranks_per_node=2)) == [[0, 2, 1, 3, 0, 2]] * 3


def test_a_world_that_cannot_be_is_refused_at_once(corpus: Corpus) -> None:
    for world_size, per_node, words in (
        (7, 1, "7 ranks cannot share 6"),
        (0, None, "--world-size 0 must be at least 1"),
        (4, 3, "--world-size 4 is not a multiple of --ranks-per-node 3"),
    ):
        run = config(micro=4)
        with pytest.raises(UserError, match=words):
            trace(run, Corpora.of(run.data, [corpus]), range(1), world_size, per_node)


def test_people_get_a_line_a_micro_batch_and_one_a_step(corpus: Corpus) -> None:
    record = traced(corpus, 2)[0]
    lines = list(render(record))
    assert len(lines) == 7
    assert record["micro_batches"][3]["checksum"] in lines[3]
    assert f"step 2: checksum {record['checksum']}" in lines[-1]
    assert max(map(len, lines)) < 160


def test_row_ids_can_be_found_in_the_corpora(corpus: Corpus) -> None:
    corpora = Corpora.of(config().data, [corpus])
    (only,) = describe(corpora)["corpora"]
    assert only["first_row_id"] == 0
    assert only["rows"] == corpora.packings[0].num_examples
    json.dumps(describe(corpora))
