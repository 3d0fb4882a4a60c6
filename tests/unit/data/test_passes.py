import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.data.passes import Seat, passes, seat
from electra_dist.errors import UserError


@given(st.integers(1, 60), st.integers(1, 60))
def test_passes_share_out_every_micro_batch_once(world_size: int, num_micro_batches: int) -> None:
    if world_size > num_micro_batches:
        with pytest.raises(UserError, match=f"at most {num_micro_batches} ranks"):
            passes(0, world_size, num_micro_batches)
        return
    by_rank = [passes(rank, world_size, num_micro_batches) for rank in range(world_size)]
    assert {len(own) for own in by_rank} == {-(-num_micro_batches // world_size)}
    for rank, own in enumerate(by_rank):
        real = [one.micro_batch for one in own if one.is_real]
        assert real == list(range(rank, num_micro_batches, world_size))
        assert [one.micro_batch for one in own if not one.is_real] == real[-1:] * (
            len(own) - len(real)
        )


@pytest.mark.parametrize("num_micro_batches", [1, 7, 1024, 1500, 3072])
def test_any_world_size_from_1_to_1024_shares_them_out(num_micro_batches: int) -> None:
    for world_size in range(1, 1 + min(1024, num_micro_batches)):
        first, last = (passes(rank, world_size, num_micro_batches) for rank in (0, world_size - 1))
        assert len(first) == len(last) == -(-num_micro_batches // world_size)
        assert all(one.is_real for one in first)
        assert last[-1].micro_batch <= num_micro_batches - 1
        assert all(one.is_real for one in last[:-1])


def dealt_out(num_nodes: int, per_node: int, how: str) -> list[tuple[int, int]]:
    """(node, local rank) by rank, as launchers deal them out."""
    seats = [(node, place) for node in range(num_nodes) for place in range(per_node)]
    if how == "cyclic":
        seats.sort(key=lambda one: (one[1], one[0]))
    if how == "in pairs":  # srun --distribution=plane=2
        seats.sort(key=lambda one: (one[1] // 2, one[0], one[1]))
    return seats


@given(
    num_nodes=st.integers(1, 6),
    per_node=st.integers(1, 6),
    how=st.sampled_from(["block", "cyclic", "in pairs"]),
    lane=st.integers(0, 20),
)
def test_slots_go_round_the_nodes_however_ranks_are_dealt_out(
    num_nodes: int, per_node: int, how: str, lane: int
) -> None:
    truth = dealt_out(num_nodes, per_node, how)
    local_ranks = [place for _, place in truth]
    slots = [seat(rank, local_ranks).slot(lane) for rank in range(len(truth))]
    assert sorted(slots) == list(range(len(truth)))
    for slot, (node, _) in zip(slots, truth, strict=True):
        assert (slot + lane) % num_nodes == node


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=5).filter(lambda sizes: len(set(sizes)) > 1),
    st.integers(0, 9),
)
def test_on_nodes_of_unequal_size_slots_are_ranks(sizes: list[int], lane: int) -> None:
    local_ranks = [place for size in sizes for place in range(size)]
    seats = [seat(rank, local_ranks) for rank in range(len(local_ranks))]
    assert seats == [Seat(rank, 0, 1) for rank in range(len(local_ranks))]
    assert [one.slot(lane) for one in seats] == list(range(len(local_ranks)))
