import json

from hypothesis import given
from hypothesis import strategies as st

from electra_dist.train.state import RunState

INTERVALS = st.lists(st.tuples(st.integers(0, 2**53), st.integers(0, 2**53)), max_size=4)


@given(st.integers(0, 10**9), st.integers(0, 2**53), INTERVALS.map(tuple))
def test_the_state_survives_json(
    step: int, position: int, skipped: tuple[tuple[int, int], ...]
) -> None:
    state = RunState(step=step, position=position, skipped=skipped)
    values = state.to_json(config_fingerprint="abc", corpus_fingerprint="def")
    assert RunState.from_json(json.loads(json.dumps(values))) == state


def test_state_json_holds_what_a_resume_checks() -> None:
    values = RunState(step=3, position=96).to_json(config_fingerprint="c", corpus_fingerprint="d")
    assert values == {
        "format_version": 1,
        "step": 3,
        "position": 96,
        "skipped_positions": [],
        "num_rollbacks": 0,
        "recent": {"losses": [], "grad_norms": []},
        "loss_scale": None,
        "config_fingerprint": "c",
        "corpus_fingerprint": "d",
    }


def test_a_step_moves_one_step_and_one_batch_of_positions() -> None:
    state = RunState()
    for _ in range(3):
        state = state.advanced(32)
    assert state == RunState(step=3, position=96)
    assert RunState(skipped=((5, 9),)).advanced(32).skipped == ((5, 9),)
