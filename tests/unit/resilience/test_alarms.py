from dataclasses import replace

import pytest

from electra_dist.config.schema import MetricsConfig
from electra_dist.errors import UserError
from electra_dist.resilience.alarms import ALL_REAL, TOO_GOOD, alarms

CONFIG = MetricsConfig()
HEALTHY = {
    "own_disc_recall": 0.3,
    "own_disc_auc": 0.8,
    "generator_sampled_accuracy": 0.5,
    "replaced_share": 0.5,
}


@pytest.mark.parametrize(
    ("change", "raised"),
    [
        ({}, set()),
        ({"own_disc_recall": 0.0, "own_disc_auc": 0.51}, {ALL_REAL}),
        # As early in training: below the threshold everywhere, but in a learnt order.
        ({"own_disc_recall": 0.005, "own_disc_auc": 0.62}, set()),
        ({"own_disc_auc": 0.5}, set()),
        ({"generator_sampled_accuracy": 0.9, "replaced_share": 0.1}, {TOO_GOOD}),
        (
            {"own_disc_recall": 0.0, "own_disc_auc": 0.5, "generator_sampled_accuracy": 0.97},
            {ALL_REAL, TOO_GOOD},
        ),
    ],
)
def test_what_an_evaluation_raises(change: dict[str, float], raised: set[str]) -> None:
    assert set(alarms({**HEALTHY, **change}, CONFIG)) == raised


def test_an_objective_without_a_discriminator_raises_nothing() -> None:
    assert alarms({"generator_sampled_accuracy": 1.0, "replaced_share": 0.0}, CONFIG) == {}


def test_a_generator_that_learns_nothing_is_never_too_good() -> None:
    panel = {k: v for k, v in HEALTHY.items() if not k.startswith("generator")}
    assert alarms(panel, CONFIG) == {}


def test_without_a_curve_the_recall_says_nothing() -> None:
    panel = {k: v for k, v in HEALTHY.items() if k != "own_disc_auc"}
    assert alarms({**panel, "own_disc_recall": 0.0}, CONFIG) == {}


def test_each_alarm_can_be_turned_off() -> None:
    bad = {
        **HEALTHY,
        "own_disc_recall": 0.0,
        "own_disc_auc": 0.5,
        "generator_sampled_accuracy": 1.0,
    }
    assert set(alarms(bad, replace(CONFIG, alarm_recall=None))) == {TOO_GOOD}
    assert set(alarms(bad, replace(CONFIG, alarm_sampled_accuracy=None))) == {ALL_REAL}


def test_thresholds_are_shares() -> None:
    with pytest.raises(UserError, match=r"metrics\.alarm_auc = 1\.5"):
        MetricsConfig(alarm_auc=1.5)
    with pytest.raises(UserError, match=r"metrics\.alarms_from_step = -1"):
        MetricsConfig(alarms_from_step=-1)
