from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.config.running import ResilienceConfig
from electra_dist.resilience.stragglers import OWN_PHASES, Stragglers, find_stragglers
from electra_dist.runtime.phases import WAITING, Phases, phases_of_device


def step_of(**seconds: float) -> list[float]:
    usual = {"data": 0.01, "forward": 0.1, "backward": 0.2, "optimizer": 0.05}
    return [{**usual, **seconds}.get(phase, 0.0) for phase in OWN_PHASES]


def test_a_late_rank_is_named_with_the_phase_that_makes_it_late() -> None:
    (late,) = find_stragglers([step_of(), step_of(), step_of(data=0.21), step_of()], ratio=1.3)
    assert (late.rank, late.phase) == (2, "data")
    assert round(late.ratio, 3) == round(0.56 / 0.36, 3)
    assert round(late.late_seconds, 3) == 0.2


def test_of_two_ranks_the_other_one_is_what_is_usual() -> None:
    (late,) = find_stragglers([step_of(backward=0.4), step_of()], ratio=1.3)
    assert (late.rank, late.phase) == (0, "backward")


def test_nobody_is_late_among_equals_alone_or_by_next_to_nothing() -> None:
    assert find_stragglers([step_of()] * 4, ratio=1.3) == []
    assert find_stragglers([step_of()], ratio=1.3) == []
    short = [0.001] * len(OWN_PHASES)
    assert find_stragglers([short, short, [0.0015] * len(OWN_PHASES)], ratio=1.3) == []


@given(
    st.integers(2, 9),
    st.data(),
    st.integers(0, 2**32 - 1),
)
def test_one_delay_is_attributed_whatever_the_noise_below_it(
    world_size: int, data: st.DataObject, seed: int
) -> None:
    rank = data.draw(st.integers(0, world_size - 1))
    phase = data.draw(st.integers(0, len(OWN_PHASES) - 1))
    noise = np.random.default_rng(seed).uniform(0, 0.01, (world_size, len(OWN_PHASES)))
    noise[rank, phase] += 0.5
    late = find_stragglers(noise.tolist(), ratio=1.3)
    assert (late[0].rank, late[0].phase) == (rank, OWN_PHASES[phase])


class Control:
    """Four ranks: this one is rank 0, and the others are as it was at first."""

    world_size = 4

    def all_gather_floats(self, mine: list[float], name: str) -> list[list[float]]:
        assert name
        return [mine, *[step_of()] * 3]


def test_a_rank_that_stays_late_is_reported_once() -> None:
    now = 0.0
    phases = Phases(lambda: now)
    events: list[dict[str, Any]] = []

    def report(event: str, **details: Any) -> None:
        events.append({"event": event, **details})

    control: Any = Control()
    config = ResilienceConfig(straggler_every=2)
    stragglers = Stragglers(phases, control, ["a", "b", "c", "d"], config)
    for step in range(1, 13):
        phases.begin_step(step)
        is_late = step <= 2 or 5 <= step <= 8 or step > 10
        for phase, seconds in zip(OWN_PHASES, step_of(data=0.3 if is_late else 0.01), strict=True):
            with phases.enter(phase):
                now += seconds
        with phases.enter("reduce"):
            now += 5.0
        stragglers.compare(step, report)
    # The first comparison, of an attempt's start, is not made; steps 5 to 8 are one event.
    assert [event["step"] for event in events] == [6, 12]
    assert events[0] == {
        "event": "straggler",
        "step": 6,
        "ranks": [0],
        "host": "a",
        "phase": "data",
        "ratio": round(0.65 / 0.36, 2),
        "late_seconds": 0.29,
    }


def test_waiting_for_others_is_nobodys_own_time() -> None:
    assert not set(OWN_PHASES) & WAITING


def test_on_cuda_the_wait_for_a_late_rank_hides_nobody() -> None:
    """Rank 0 is late with its data; the others wait for it in the optimizer, on their devices."""
    own = [step_of(data=0.31, optimizer=0.01), *[step_of(data=0.01, optimizer=0.31)] * 3]
    assert find_stragglers(own, ratio=1.3) == []
    of_device = phases_of_device("cuda", zero_stage=2)
    assert of_device == {"backward", "optimizer"}
    assert phases_of_device("cuda", zero_stage=3) == of_device | {"forward"}
    assert phases_of_device("cpu", zero_stage=3) == set()

    class Others(Control):
        def all_gather_floats(self, mine: list[float], name: str) -> list[list[float]]:
            assert name
            assert mine[OWN_PHASES.index("optimizer")] == 0.0
            return [mine, *[step_of(data=0.01, backward=0.0, optimizer=0.0)] * 3]

    now = 0.0
    phases = Phases(lambda: now, of_device=of_device)
    control: Any = Others()
    config = ResilienceConfig(straggler_every=2)
    stragglers = Stragglers(phases, control, ["a", "b", "c", "d"], config)
    found = []
    for step in range(1, 5):
        phases.begin_step(step)
        for phase, seconds in zip(OWN_PHASES, own[0], strict=True):
            with phases.enter(phase):
                now += seconds
        found = stragglers.compare(step, lambda *_, **__: None)
    assert [(late.rank, late.phase) for late in found] == [(0, "data")]
