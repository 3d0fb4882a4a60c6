import json

from hypothesis import given
from hypothesis import strategies as st

from electra_dist.engine.scaling import LossScale
from electra_dist.resilience.health import Vitals
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
    values = RunState(step=3, position=96).to_json(
        config_fingerprint="c", corpus_fingerprint="d", tokenizer_sha256="e"
    )
    assert values == {
        "format_version": 1,
        "step": 3,
        "position": 96,
        "skipped_positions": [],
        "num_rollbacks": 0,
        "recent": {"losses": [], "grad_norms": []},
        "num_updates": 0,
        "loss_scale": None,
        "alarms": [],
        "config_fingerprint": "c",
        "corpus_fingerprint": "d",
        "tokenizer_sha256": "e",
    }


def test_a_step_moves_one_step_and_one_batch_of_positions() -> None:
    state = RunState()
    for _ in range(3):
        state = state.advanced(32)
    assert state == RunState(step=3, position=96)
    assert RunState(skipped=((5, 9),)).advanced(32).skipped == ((5, 9),)


def test_recent_losses_and_rollbacks_survive_json_and_are_absent_from_older_states() -> None:
    state = RunState(num_rollbacks=2).advanced(8, Vitals(0.1 + 0.2, 1 / 3), 4)
    values = state.to_json(config_fingerprint="c", corpus_fingerprint="d")
    assert RunState.from_json(json.loads(json.dumps(values))) == state
    del values["num_rollbacks"], values["recent"], values["num_updates"], values["alarms"]
    assert RunState.from_json(values) == RunState(step=1, position=8, num_updates=1)


def test_the_loss_scale_and_what_an_evaluation_raised_survive_json() -> None:
    state = RunState(alarms=("generator_too_good",), loss_scale=LossScale(scale=512.0))
    state = state.advanced(8, None, 4, LossScale(scale=256.0, good_steps=3))
    values = json.loads(json.dumps(state.to_json(config_fingerprint="c", corpus_fingerprint="d")))
    assert values["loss_scale"] == {"scale": 256.0, "good_steps": 3}
    assert RunState.from_json(values) == state
    assert state.alarms == ("generator_too_good",)


def test_updates_that_were_left_out_are_steps_and_no_updates() -> None:
    state = RunState().advanced(8, Vitals(2.0, 1.0), 2).advanced(8).advanced(8, Vitals(2.0, 1.0), 2)
    assert (state.step, state.position, state.num_updates) == (3, 24, 2)


def test_a_step_with_an_anomaly_leaves_the_window_alone() -> None:
    state = RunState().advanced(8, Vitals(2.0, 1.0), 2)
    assert state.advanced(8).recent == state.recent
    longer = state.advanced(8, Vitals(3.0, 1.0), 2).advanced(8, Vitals(4.0, 1.0), 2)
    assert longer.recent.losses == (3.0, 4.0)


def test_a_crash_after_a_rollback_forgets_no_skips() -> None:
    """The checkpoint is older than the roll-back; the ledger is not."""
    saved = RunState(step=5, position=40, skipped=((3, 5),), num_rollbacks=1)
    declared = {"kind": "resume", "step": 5, "skipped": [[3, 5], [60, 62]], "rollbacks": 2}
    found = saved.with_declared(declared)
    assert (found.skipped, found.num_rollbacks) == (((3, 5), (60, 62)), 2)
    assert (found.step, found.position) == (5, 40)
    for nothing_new in (
        None,
        {"kind": "resume", "skipped": [[3, 5]]},
        {**declared, "rollbacks": 1},
    ):
        assert saved.with_declared(nothing_new) == saved
