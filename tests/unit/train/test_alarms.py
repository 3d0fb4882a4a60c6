from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from electra_dist.config.recipes import RECIPES
from electra_dist.train.alarms import sound_alarms
from electra_dist.train.state import RunState

GOOD = {
    "own_disc_recall": 0.3,
    "own_disc_auc": 0.8,
    "generator_sampled_accuracy": 0.5,
    "replaced_share": 0.5,
}
BAD = {**GOOD, "own_disc_recall": 0.0, "own_disc_auc": 0.5}


def a_run(step: int, **metrics: Any) -> Any:
    config = RECIPES["tiny"]()
    run = SimpleNamespace(
        config=replace(config, metrics=replace(config.metrics, **metrics)),
        state=RunState(step=step),
        events=[],
    )
    run.report = lambda event, **details: run.events.append((event, details))
    return run


def test_an_alarm_is_an_event_once_and_again_after_it_was_over() -> None:
    run = a_run(10**6)
    for panel in (GOOD, BAD, BAD, GOOD, BAD):
        sound_alarms(run, panel)
    assert [event for event, _ in run.events] == ["alarm", "alarm"]
    details = run.events[0][1]
    assert details["alarm"] == "discriminator_predicts_all_real"
    assert (
        details["cause"]
        == "it finds 0.00% of the replaced tokens and ranks them at an AUC of 0.500"
    )
    # A resumed run knows what was raised.
    saved = run.state.to_json(config_fingerprint="", corpus_fingerprint="")
    resumed = a_run(10**6)
    resumed.state = RunState.from_json(saved)
    sound_alarms(resumed, BAD)
    assert resumed.events == []


def test_no_alarm_before_the_end_of_the_warm_up() -> None:
    warmup = RECIPES["tiny"]().schedule.warmup_steps
    for run, count in (
        (a_run(warmup - 1), 0),
        (a_run(warmup), 1),
        (a_run(warmup - 1, alarms_from_step=0), 1),
        (a_run(warmup, alarms_from_step=warmup + 1), 0),
    ):
        sound_alarms(run, BAD)
        assert len(run.events) == count
