from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.launch.restarts import (
    LONGEST_DELAY_SECONDS,
    Ended,
    Limits,
    Restart,
    Stop,
    next_action,
)

CRASH = Ended(attempt=1, reason=None, exit_code=1, has_new_checkpoint=False, world_size=4)
PROGRESS = replace(CRASH, has_new_checkpoint=True)
LIMITS = Limits(max_restarts=3)


def after(*history: Ended, limits: Limits = LIMITS, usable: int = 4) -> Restart | Stop:
    return next_action(history, limits, usable)


def test_every_end() -> None:
    for reason, exit_code, checkpoint, superseded, asked, attempt, usable in product(
        (None, "failed", "finished", "asked", "stopped", "superseded", "a later word"),
        (0, 1, 2, 75, 143),
        (False, True),
        (False, True),
        (None, "SIGTERM"),
        (None, 3),
        (2, 4),
    ):
        ended = Ended(
            attempt=attempt,
            reason=reason,
            exit_code=exit_code,
            has_new_checkpoint=checkpoint,
            is_superseded=superseded,
            stop_asked=asked,
            world_size=4,
        )
        action = after(ended, usable=usable)
        is_orderly = reason in ("finished", "asked", "stopped", "superseded") or superseded
        may_restart = not is_orderly and exit_code != 2 and asked is None and usable == 4
        assert isinstance(action, Restart) == may_restart
        if isinstance(action, Stop):
            codes = {"finished": 0, "asked": 0, "stopped": 75}
            expected = codes.get(reason or "", 2 if exit_code == 2 else 1)
            assert action.exit_code == (1 if superseded or reason == "superseded" else expected)
            assert action.why
            assert not action.needs_nodes or usable < 4


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 5))
def test_restarts_end_after_so_many_without_a_new_checkpoint(
    checkpoints: list[bool], max_restarts: int
) -> None:
    history = [PROGRESS if one else CRASH for one in checkpoints]
    action = after(*history, limits=Limits(max_restarts=max_restarts))
    fruitless = (
        len(checkpoints) - 1 - max((i for i, one in enumerate(checkpoints) if one), default=-1)
    )
    may = max_restarts > 0 and fruitless <= max_restarts
    assert isinstance(action, Restart) == may
    if isinstance(action, Restart):
        assert 0 < action.delay_seconds <= LONGEST_DELAY_SECONDS


def test_the_back_off_doubles_and_starts_anew_after_a_checkpoint() -> None:
    limits = Limits(max_restarts=20)
    delays = []
    for n in range(1, 12):
        action = after(*[CRASH] * n, limits=limits)
        assert isinstance(action, Restart)
        delays.append(action.delay_seconds)
    assert delays == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    action = after(*[CRASH] * 9, PROGRESS, limits=limits)
    assert isinstance(action, Restart)
    assert action.delay_seconds == 2


def test_why_it_gave_up_is_said() -> None:
    stop = after(*[CRASH] * 4)
    assert stop == Stop(
        exit_code=1, why="crashed: 4 attempts in a row have ended without a new checkpoint"
    )
    failed = after(replace(CRASH, reason="failed"), limits=Limits(max_restarts=0))
    assert failed == Stop(exit_code=1, why="failed, and no restarts are allowed")


@pytest.mark.parametrize(
    ("least", "usable", "world"),
    [(None, 4, 4), (None, 3, None), (2, 4, 4), (2, 3, 3), (2, 2, 2), (3, 2, None), (2, 6, 6)],
)
def test_fewer_ranks_go_on_where_the_config_allows(
    least: int | None, usable: int, world: int | None
) -> None:
    action = after(CRASH, limits=Limits(max_restarts=3, min_world_size=least), usable=usable)
    if world is None:
        assert isinstance(action, Stop)
        assert (action.exit_code, action.needs_nodes) == (1, True)
        assert f"only {usable} ranks are left where {least or 4} are needed" in action.why
    else:
        assert isinstance(action, Restart)
        assert action.world_size == world
