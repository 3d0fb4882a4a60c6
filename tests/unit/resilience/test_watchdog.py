from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.config.running import ResilienceConfig
from electra_dist.resilience.watchdog import Verdict, Where, known, limit, limits, verdict
from electra_dist.runtime.phases import PHASES, WAITING, Current, phases_of_device

CONFIG = ResilienceConfig(hang_floor_seconds=60, hang_factor=10, hang_start_up_seconds=900)


def measured(**seconds: list[float]) -> dict[str, list[float]]:
    return {phase: seconds.get(phase, []) for phase in PHASES}


def test_a_phase_may_last_ten_times_its_slow_ones_and_never_less_than_the_floor() -> None:
    found = limits(measured(data=[99.0, *[0.1] * 50], save=[5.0, *[20.0] * 5]), CONFIG)
    assert found["data"] == 60  # the first one compiles, opens and allocates
    assert found["save"] == 200
    assert found["evaluate"] == 900  # not measured yet


def test_a_rank_that_waits_grants_the_others_their_longest_phase() -> None:
    durations = measured(evaluate=[30.0] * 3, reduce=[0.1] * 50, agree=[0.1] * 2)
    found = limits(durations, CONFIG)
    assert found["reduce"] == 300
    assert found["agree"] == 900


def test_a_host_that_waits_for_its_device_waits_for_others_too() -> None:
    durations = measured(save=[5.0, *[20.0] * 5], optimizer=[0.1] * 50)
    assert limits(durations, CONFIG)["optimizer"] == 60
    waiting = WAITING | phases_of_device("cuda", zero_stage=2)
    assert limits(durations, CONFIG, waiting)["optimizer"] == 200
    assert limit(Current("optimizer", 7, 0.0, 3), durations, CONFIG, waiting) == 200


def test_a_rank_that_waits_inside_a_phase_grants_the_others_that_phase() -> None:
    """Reading a checkpoint: one rank is done, and waits for the slow disk of another."""
    durations = measured(agree=[0.1] * 50, reduce=[0.1] * 50, backward=[0.1] * 50)
    reading = Current("agree", 7, 0.0, 3, "restore")
    assert limit(reading, durations, CONFIG) == 900
    assert limit(reading._replace(outer="loop"), durations, CONFIG) == 60
    assert limit(Current("reduce", 7, 0.0, 3, "backward"), durations, CONFIG) == 60
    assert limit(Current("loop", 7, 0.0, 3), durations, CONFIG) == 60


@given(
    st.fixed_dictionaries({phase: st.lists(st.floats(0.0, 1e4), max_size=20) for phase in PHASES})
)
def test_no_phase_that_was_seen_before_counts_as_a_hang(durations: dict[str, list[float]]) -> None:
    found = limits(durations, CONFIG)
    for phase, seconds in durations.items():
        assert found[phase] >= 60
        assert all(found[phase] >= 10 * one for one in sorted(seconds[1:])[:-1] or [0])
    slowest = max(max(seconds[1:], default=0) for seconds in durations.values())
    assert all(found[phase] >= 10 * slowest for phase in WAITING if len(durations[phase]) >= 5)


def where(rank: int, phase: str, **more: Any) -> Where:
    values = {"host": f"node{rank}", "step": 12, "number": 4, "seconds": 70.0, "answers": True}
    return Where(rank=rank, phase=phase, **{**values, **more})


def judge(*found: Where, world_size: int = 4) -> tuple[list[int], list[int]]:
    result = verdict({one.rank: one for one in found}, world_size)
    return [one.rank for one in result.guilty], list(result.unknown)


def test_who_keeps_the_others_waiting() -> None:
    waiting = [where(rank, "reduce") for rank in range(4)]
    stuck = where(2, "data", number=1)
    assert judge(*waiting[:2], stuck, waiting[3]) == ([2], [])
    stopped = where(2, "reduce", answers=False)
    assert judge(*waiting[:2], stopped, waiting[3]) == ([2], [])
    assert judge(*waiting[:2], waiting[3]) == ([], [2])


def test_where_all_seem_busy_the_one_behind_is_it() -> None:
    """A collective inside a CUDA kernel keeps its rank in the phase that launched it."""
    busy = [where(rank, "backward") for rank in range(3)]
    assert judge(*busy, where(3, "data", number=1)) == ([3], [])


def test_where_all_wait_the_one_behind_is_it_if_there_is_one() -> None:
    waiting = [where(rank, "agree") for rank in range(4)]
    assert judge(*waiting) == ([], [])
    assert judge(*waiting[:3], where(3, "agree", step=11)) == ([3], [])


def test_what_a_neighbour_knows_counts_only_of_ranks_that_do_not_answer() -> None:
    def fields(rank: int, phase: str) -> dict[str, Any]:
        values = {"host": "a", "step": 3, "number": 1, "seconds": 61.0}
        return {"rank": rank, "phase": phase, **values}

    records = {
        0: {"own": fields(0, "reduce"), "neighbours": [fields(1, "data"), fields(2, "data")]},
        1: {"own": fields(1, "forward"), "neighbours": [fields(0, "data"), fields(2, "backward")]},
    }
    found = known(records)
    assert {rank: (one.phase, one.answers) for rank, one in found.items()} == {
        0: ("reduce", True),
        1: ("forward", True),
        2: ("backward", False),
    }


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Verdict(guilty=(where(3, "data"),), unknown=()), "rank 3 (node3) in data of step 12"),
        (
            Verdict(guilty=(where(3, "save", answers=False),), unknown=(5, 6)),
            "rank 3 (node3) does not answer, last seen in save of step 12; no sign of ranks 5, 6",
        ),
        (Verdict(guilty=(), unknown=()), "all ranks wait for one another"),
    ],
)
def test_the_verdict_in_words(found: Verdict, words: str) -> None:
    assert found.words() == words
