"""Has one tower lost the tug of war? Decided on the panel of an evaluation, the same on all ranks.

A run goes on after an alarm: what it says needs a person. It is an event once, when it begins.
"""

from __future__ import annotations

from collections.abc import Mapping

from electra_dist.config.running import MetricsConfig

ALL_REAL = "discriminator_predicts_all_real"
TOO_GOOD = "generator_too_good"


def alarms(panel: Mapping[str, float], config: MetricsConfig) -> dict[str, str]:
    """The alarms that this evaluation raises, each with its cause in words.

    None where the objective has no discriminator: nobody pulls the other end.
    """
    recall, auc = panel.get("own_disc_recall"), panel.get("own_disc_auc")
    if recall is None:
        return {}
    found = {}
    # A low recall is no fault while the order is learnt: 1 token in 7 at most is replaced. Without
    # a curve (nothing was replaced, or all of it) the recall says nothing.
    is_blind = config.alarm_recall is not None and recall <= config.alarm_recall
    if is_blind and auc is not None and auc <= config.alarm_auc:
        found[ALL_REAL] = (
            f"it finds {recall:.2%} of the replaced tokens and ranks them at an AUC of {auc:.3f}"
        )
    # A uniform generator is not judged: it has nothing to be good at.
    accuracy, limit = panel.get("generator_sampled_accuracy"), config.alarm_sampled_accuracy
    if accuracy is not None and limit is not None and accuracy >= limit:
        found[TOO_GOOD] = (
            f"{accuracy:.2%} of its samples are the original: {panel['replaced_share']:.2%} of "
            "the selected tokens are left to be found"
        )
    return found
