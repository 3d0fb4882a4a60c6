import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.runtime.phases import PHASES, Phases


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_own_time_leaves_out_the_phases_inside() -> None:
    clock = Clock()
    phases = Phases(clock)
    phases.begin_step(7)
    clock.now += 1
    with phases.enter("optimizer"):
        clock.now += 2
        with phases.enter("agree"):
            clock.now += 4
            assert phases.current == ("agree", 7, 103.0, 2, "optimizer")
        clock.now += 8
        assert phases.current == ("optimizer", 7, 107.0, 3, "loop")
    clock.now += 16
    phases.begin_step(8)
    assert phases.own_seconds["loop"] == 17
    assert phases.own_seconds["optimizer"] == 10
    assert phases.own_seconds["agree"] == 4
    assert phases.waiting_seconds() == 4
    assert list(phases.durations["optimizer"]) == [14]


def test_a_phase_ends_with_the_error_that_leaves_it() -> None:
    phases = Phases()
    with pytest.raises(ZeroDivisionError), phases.enter("data"), phases.enter("forward"):
        _ = 1 / 0
    assert phases.current.phase == "loop"
    assert [len(phases.durations[name]) for name in ("data", "forward")] == [1, 1]


@given(st.recursive(st.just([]), lambda inner: st.lists(inner, max_size=4), max_leaves=12))
def test_the_parts_sum_to_the_whole(tree: list[object]) -> None:
    clock = Clock()
    phases = Phases(clock)

    def walk(node: list[object], depth: int) -> None:
        for number, child in enumerate(node):
            clock.now += 1
            with phases.enter(PHASES[(depth + number) % len(PHASES)]):
                clock.now += 2
                walk(child, depth + 1)  # type: ignore[arg-type]

    walk(tree, 1)
    phases.begin_step(1)
    assert sum(phases.own_seconds.values()) == clock.now - 100


def test_whoever_listens_hears_of_what_is_entered_and_of_what_is_returned_to() -> None:
    phases = Phases()
    heard: list[str] = []
    entered: list[str] = []
    phases.listeners.append(lambda current: heard.append(current.phase))
    phases.on_enter.append(lambda current: entered.append(current.phase))
    with phases.enter("backward"), phases.enter("reduce"):
        pass
    assert heard == ["backward", "reduce", "backward", "loop"]
    assert entered == ["backward", "reduce"]
