from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.config.schema import BatchConfig, DataConfig, ObjectiveConfig, RunConfig
from electra_dist.data.masking import MaskRule, mask_rows
from electra_dist.data.order import Order, Skips, unskipped
from electra_dist.data.passes import passes, seat
from electra_dist.data.rows import RowReader
from electra_dist.data.store import Corpus, Packing
from electra_dist.data.stream import CorpusStream, MicroBatch
from electra_dist.errors import UserError
from tests.unit.data.conftest import LENGTH

GLOBAL = 24
ARRAYS = (
    "input_ids_BL",
    "masked_ids_BL",
    "token_type_ids_BL",
    "num_tokens_B",
    "masked_positions_BN",
    "masked_weights_BN",
)

Open = Callable[..., CorpusStream]


PACKED_ARRAYS = (*ARRAYS, "block_ids_BL", "position_ids_BL")


def config(
    micro: int = 4,
    prefetch: int = 0,
    length: int = LENGTH,
    seed: int = 5,
    packing: Literal["full", "packed"] = "full",
    masking: Literal["token", "whole_word", "span"] = "token",
) -> RunConfig:
    return RunConfig(
        seed=seed,
        objective=ObjectiveConfig(mask_prob=0.2, masking=masking, mean_span_length=2.5),
        data=DataConfig(
            sequence_length=length,
            packing=packing,
            shuffle_block_size=16,
            shuffle_window_blocks=4,
            prefetch_steps=prefetch,
        ),
        batch=BatchConfig(global_batch_size=GLOBAL, micro_batch_size=micro),
    )


@pytest.fixture
def opened(corpus: Corpus) -> Iterator[Open]:
    """Opens streams and closes them when the test ends."""
    streams = []

    def open_one(rank: int = 0, world_size: int = 1, **options: Any) -> CorpusStream:
        streams.append(CorpusStream(config(**options), corpus, rank, world_size))
        return streams[-1]

    yield open_one
    for stream in streams:
        stream.close()


def identical(one: MicroBatch, other: MicroBatch) -> bool:
    return (one.step, one.index, one.checksum) == (other.step, other.index, other.checksum) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in PACKED_ARRAYS
    )


def rows_of(micro_batches: list[MicroBatch]) -> dict[str, np.ndarray]:
    return {
        name: np.concatenate([getattr(batch, name) for batch in micro_batches]) for name in ARRAYS
    }


@given(
    world_size=st.integers(1, 8),
    micro=st.sampled_from([1, 2, 3, 4, 6, 8]),
    step=st.integers(0, 10**6),
    skipped=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_all_world_and_micro_batch_sizes_train_on_the_same_rows(
    corpus: Corpus, world_size: int, micro: int, step: int, skipped: int
) -> None:
    num_micro_batches = GLOBAL // micro
    if world_size > num_micro_batches:
        return
    position = step * GLOBAL + skipped
    streams = [CorpusStream(config(micro), corpus, r, world_size) for r in range(world_size)]
    by_rank = [stream.micro_batches(step, position) for stream in streams]
    for stream in streams:
        stream.close()
    # Every rank makes as many passes, and the last ones of some only repeat.
    assert {len(own) for own in by_rank} == {-(-num_micro_batches // world_size)}
    for own in by_rank:
        assert all(batch.is_real for batch in own[:-1])
        assert own[-1].is_real or identical(own[-1], own[-2])
    real = sorted((b for own in by_rank for b in own if b.is_real), key=lambda b: b.index)
    assert [batch.index for batch in real] == list(range(num_micro_batches))
    assert {batch.step for batch in real} == {step}
    # A single rank with the whole step as one micro-batch, made of the layers below.
    packing = Packing.open(corpus, LENGTH, "full")
    order = Order(seed=5, num_samples=packing.num_examples, block_size=16, window_blocks=4)
    positions = np.arange(position, position + GLOBAL)
    rows = RowReader(corpus, packing, "train").read(order.sample_ids(positions))
    ids = corpus.special_ids
    never = (ids.cls, ids.sep, ids.mask)
    rule = MaskRule(seed=5, mask_prob=0.2, max_masked=6, mask_id=ids.mask, never=never)
    masks = mask_rows(rows.input_ids_BL, rows.num_tokens_B, positions, rule)
    segments = rows._asdict()
    for name in ("block_ids_BL", "position_ids_BL", "word_start_BL"):
        assert segments.pop(name) is None
    expected = {**segments, "masked_ids_BL": masks.masked_ids_BL}
    expected |= {"masked_positions_BN": masks.positions_BN, "masked_weights_BN": masks.weights_BN}
    assert expected.keys() == set(ARRAYS)
    for name, array in rows_of(real).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_more_ranks_than_micro_batches_are_refused_before_anything_is_read(corpus: Corpus) -> None:
    with pytest.raises(UserError, match="7 ranks cannot share 6 micro-batches"):
        CorpusStream(config(micro=4), corpus, 0, 7)


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_looking_ahead_changes_nothing(opened: Open, prefetch: int) -> None:
    plain, ahead = opened(1, 2), opened(1, 2, prefetch=prefetch)
    for step in range(8):
        expected = plain.micro_batches(step, step * GLOBAL)
        found = ahead.micro_batches(step, step * GLOBAL)
        assert len(found) == len(expected) == 3
        assert all(map(identical, found, expected))


def test_a_jump_gives_what_the_place_gave_before(opened: Open) -> None:
    stream = opened(prefetch=3)
    first = {step: stream.micro_batches(step, step * GLOBAL) for step in range(6)}
    for step in (2, 3, 0, 5, 5):  # roll back, go on, roll back further, leap, stay
        assert all(map(identical, stream.micro_batches(step, step * GLOBAL), first[step]))
    # A skipped interval: the next step, already assembled, is wanted from other positions.
    shifted = stream.micro_batches(6, 4 * GLOBAL)
    assert rows_of(shifted)["input_ids_BL"].tolist() == rows_of(first[4])["input_ids_BL"].tolist()
    assert {batch.step for batch in shifted} == {6}


def test_two_epochs_hold_every_row_twice(opened: Open, packing: Packing) -> None:
    stream = opened(micro=1)
    num_rows = packing.num_examples
    seen: dict[int, list[tuple[bytes, bytes]]] = {0: [], 1: []}
    for position in range(2 * num_rows):
        batch = stream.micro_batch(0, 0, position)
        seen[position // num_rows].append(
            (batch.input_ids_BL.tobytes(), batch.masked_ids_BL.tobytes())
        )
    originals = {epoch: [ids for ids, _ in rows] for epoch, rows in seen.items()}
    assert sorted(originals[0]) == sorted(originals[1])
    assert originals[0] != originals[1]
    # Masks are drawn anew in each epoch.
    assert len(set(seen[0]) & set(seen[1])) < 0.05 * num_rows


def test_the_seed_changes_rows_and_masks(opened: Open) -> None:
    one, other = (rows_of(opened(seed=seed).micro_batches(0, 0)) for seed in (0, 1))
    for name in ("input_ids_BL", "masked_positions_BN"):
        assert not np.array_equal(one[name], other[name])


@pytest.mark.parametrize("masking", ["token", "whole_word", "span"])
@pytest.mark.parametrize("mode", ["full", "packed"])
def test_packed_rows_are_those_of_the_layers_below_for_every_world_size(
    opened: Open, corpus: Corpus, mode: str, masking: str
) -> None:
    packing = Packing.open(corpus, LENGTH, mode)
    order = Order(seed=5, num_samples=packing.num_examples, block_size=16, window_blocks=4)
    positions = np.arange(GLOBAL) + 7 * GLOBAL
    reader = RowReader(corpus, packing, "train", word_starts=True)
    rows = reader.read(order.sample_ids(positions))
    ids = corpus.special_ids
    rule = MaskRule(
        seed=5,
        mask_prob=0.2,
        max_masked=6,
        mask_id=ids.mask,
        never=(ids.cls, ids.sep, ids.mask),
        masking=masking,
        mean_span_length=2.5,
    )
    masks = mask_rows(rows.input_ids_BL, rows.num_tokens_B, positions, rule, rows.word_start_BL)
    for world_size in (1, 3):
        by_rank = [
            opened(rank, world_size, packing=mode, masking=masking).micro_batches(7, 7 * GLOBAL)
            for rank in range(world_size)
        ]
        found = sorted((b for own in by_rank for b in own), key=lambda batch: batch.index)
        for name in ("input_ids_BL", "block_ids_BL", "position_ids_BL", "num_tokens_B"):
            columns, expected = [getattr(b, name) for b in found], getattr(rows, name)
            if expected is None:
                assert columns == [None] * 6
            else:
                np.testing.assert_array_equal(np.concatenate(columns), expected)
        chosen = np.concatenate([batch.masked_positions_BN for batch in found])
        np.testing.assert_array_equal(chosen, masks.positions_BN)


@pytest.mark.parametrize("name", PACKED_ARRAYS)
def test_the_checksum_changes_with_any_tensor(opened: Open, name: str) -> None:
    batch = opened(packing="packed").micro_batch(3, 1, 100)
    same = replace(batch, **{name: getattr(batch, name).copy()})
    assert same.checksum == batch.checksum
    for place in (0, -1):
        changed = getattr(batch, name).copy()
        changed.flat[place] += 1
        assert replace(batch, **{name: changed}).checksum != batch.checksum


def test_the_checksum_tells_micro_batches_apart(opened: Open) -> None:
    batch = opened().micro_batch(3, 1, 100)
    assert replace(batch, index=2).checksum != batch.checksum
    assert 0 <= batch.checksum < 2**64


def test_a_length_that_is_not_packed_is_refused_with_the_command_that_packs(
    corpus: Corpus,
) -> None:
    with pytest.raises(UserError, match=r"corpus pack .* --length 64 --mode full"):
        CorpusStream(config(length=64), corpus)


LANES = (1, 2, 3, 4)
MICRO = (1, 2, 3, 4, 6, 8)
Attempts = list[tuple[int, int, int]]
"""Steps, ranks and nodes of one attempt after the other."""


@cache
def cached_stream(folder: Path, micro: int, num_lanes: int) -> CorpusStream:
    plain = config(micro)
    laned = replace(plain, data=replace(plain.data, num_lanes=num_lanes))
    return CorpusStream(laned, Corpus.open(folder))


@st.composite
def resized_runs(draw: st.DrawFn) -> tuple[int, int, Skips, Attempts]:
    micro = draw(st.sampled_from(MICRO))
    attempts = []
    for _ in range(draw(st.integers(1, 4))):
        world_size = draw(st.integers(1, min(16, GLOBAL // micro)))
        divisors = [n for n in range(1, world_size + 1) if world_size % n == 0]
        attempts.append((draw(st.integers(1, 3)), world_size, draw(st.sampled_from(divisors))))
    first, length = draw(st.integers(0, 200)), draw(st.integers(1, 60))
    skips = draw(st.sampled_from([(), ((first, first + length),)]))
    return micro, draw(st.sampled_from(LANES)), skips, attempts


def check_resized_run(corpus: Corpus, run: tuple[int, int, Skips, Attempts]) -> None:
    """However many ranks read, the hash of the row ids at all positions is the same."""
    micro, num_lanes, skips, attempts = run
    stream = cached_stream(corpus.folder, micro, num_lanes)
    step = 0
    found = xxhash.xxh3_64()
    for num_steps, world_size, num_nodes in attempts:
        for _ in range(num_steps):
            ids: dict[int, np.ndarray] = {}
            lane = stream.first_lane(step * GLOBAL, skips)
            for rank in range(world_size):
                local_ranks = [rank % (world_size // num_nodes) for rank in range(world_size)]
                slot = seat(rank, local_ranks).slot(lane)
                for one in passes(slot, world_size, GLOBAL // micro):
                    if one.is_real:
                        assert one.micro_batch not in ids
                        positions = stream.positions(one.micro_batch, step * GLOBAL, skips)
                        ids[one.micro_batch] = stream.sample_ids(positions)
            assert sorted(ids) == list(range(GLOBAL // micro))
            found.update(np.concatenate([ids[index] for index in sorted(ids)]))
            step += 1
    order = Order(
        seed=5,
        num_samples=Packing.open(corpus, LENGTH, "full").num_examples,
        block_size=16,
        window_blocks=4,
        num_lanes=num_lanes,
        lane_run=micro if num_lanes > 1 else 1,
    )
    whole = order.sample_ids(unskipped(np.arange(step * GLOBAL), skips))
    assert found.hexdigest() == xxhash.xxh3_64_hexdigest(whole)


@given(run=resized_runs())
@settings(max_examples=60)
def test_resizes_at_any_step_change_nothing_in_the_global_sequence(
    corpus: Corpus, run: tuple[int, int, Skips, Attempts]
) -> None:
    check_resized_run(corpus, run)


@pytest.mark.slow
@given(run=resized_runs())
@settings(max_examples=1000)
def test_a_thousand_resized_runs_read_one_global_sequence(
    corpus: Corpus, run: tuple[int, int, Skips, Attempts]
) -> None:
    check_resized_run(corpus, run)


@pytest.mark.parametrize(
    ("num_nodes", "num_lanes"), [(2, 2), (4, 4), (4, 2), (2, 4), (3, 6), (5, 5)]
)
@pytest.mark.parametrize("skips", [(), ((5, 9),), ((0, 24),)])
def test_a_node_reads_its_own_lanes_only(
    corpus: Corpus, num_nodes: int, num_lanes: int, skips: Skips
) -> None:
    """24 micro-batches of one row, two ranks a node; a step is no whole number of rounds of 5."""
    laned = config(micro=1)
    laned = replace(laned, data=replace(laned.data, num_lanes=num_lanes))
    owned: dict[int, set[int]] = {}
    places = [0, 1] * num_nodes
    for rank in range(len(places)):
        with closing(CorpusStream(laned, corpus, rank, len(places), places)) as stream:
            # A skip within step 0 shifts the lanes of what is left of that step.
            for step in range(1, 8):
                for one in stream.passes(step * GLOBAL, skips):
                    positions = stream.positions(one.micro_batch, step * GLOBAL, skips)
                    lanes, _ = stream.order.lanes(positions)
                    owned.setdefault(rank // 2, set()).update(lanes.tolist())
    assert {len(lanes) for lanes in owned.values()} == {max(1, num_lanes // num_nodes)}
    assert set().union(*owned.values()) == set(range(num_lanes))


def test_skipped_positions_are_read_by_nobody_and_those_behind_keep_their_rows_and_masks(
    opened: Open,
) -> None:
    stream = opened(micro=1)
    found = rows_of([stream.micro_batch(0, 0, p, skips=((30, 60),)) for p in range(90)])
    used = [*range(30), *range(60, 120)]
    expected = rows_of([stream.micro_batch(0, 0, p) for p in used])
    for name in ARRAYS:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_run_is_born_with_the_skips_of_its_config(corpus: Corpus, opened: Open) -> None:
    plain = config()
    born = replace(plain, data=replace(plain.data, skips=((0, 48),)))
    with closing(CorpusStream(born, corpus)) as stream:
        found = rows_of(stream.micro_batches(0, 0))
    # What a roll-back left out counts as well, and is told at each step.
    told = rows_of(opened().micro_batches(0, 0, ((0, 48),)))
    expected = rows_of(opened().micro_batches(0, 48))
    for name in ARRAYS:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
        np.testing.assert_array_equal(told[name], expected[name], err_msg=name)
