import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from electra_dist.runtime.control import Control
from electra_dist.runtime.world import World
from electra_dist.train.evaluate import (
    Judged,
    discriminator_metrics,
    gather,
    generator_metrics,
    unigram_log_probs,
)

# Few values, so that ties are common: they are where rankings go wrong.
LOGITS = st.sampled_from([-30.0, -2.5, -1.0, -0.25, 0.0, 0.25, 1.0, 3.0, 800.0])
TOKENS = st.lists(st.tuples(LOGITS, st.booleans(), st.booleans()), min_size=1, max_size=40)
Tokens = list[tuple[float, bool, bool]]


def judged(tokens: Tokens) -> Judged:
    logits, labels, selected = zip(*tokens, strict=True)
    return Judged(np.array(logits), np.array(labels), np.array(selected))


def cross_entropy(logit: float, label: bool) -> float:
    """-log of the probability of `label`; beyond 30 it is the logit itself, to 1e-13."""
    margin = -logit if label else logit
    return margin if margin > 30 else math.log1p(math.exp(margin))


def area_under_curve(scored: list[tuple[float, bool]]) -> float:
    """Share of (replaced, original) pairs in the right order, a tie counting half."""
    pairs = [(a, b) for a, is_a in scored if is_a for b, is_b in scored if not is_b]
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


def average_precision(scored: list[tuple[float, bool]]) -> float:
    """Precision at every threshold, weighted by the recall that it adds."""
    area = recall = 0.0
    num_replaced = sum(label for _, label in scored)
    for threshold in sorted({score for score, _ in scored}, reverse=True):
        called = [label for score, label in scored if score >= threshold]
        area += sum(called) / len(called) * (sum(called) / num_replaced - recall)
        recall = sum(called) / num_replaced
    return area


@given(TOKENS)
@settings(max_examples=150, deadline=None)
def test_discriminator_metrics_equal_the_definitions(tokens: Tokens) -> None:
    found = discriminator_metrics(judged(tokens))
    expected = {}
    for name, kept in (("", tokens), ("_selected", [t for t in tokens if t[2]])):
        scored = [(logit, label) for logit, label, _ in kept]
        if not scored:
            continue
        hits = sum(logit > 0 and label for logit, label in scored)
        called = sum(logit > 0 for logit, _ in scored)
        replaced = sum(label for _, label in scored)
        expected |= {
            f"disc_loss{name}": sum(cross_entropy(x, y) for x, y in scored) / len(scored),
            f"disc_accuracy{name}": sum((x > 0) == y for x, y in scored) / len(scored),
            f"disc_precision{name}": hits / called if called else 0.0,
            f"disc_recall{name}": hits / replaced if replaced else 0.0,
        }
        # Without both kinds there is no curve, and no number is better than a wrong one.
        if len({label for _, label in scored}) == 2:
            expected[f"disc_auc{name}"] = area_under_curve(scored)
            expected[f"disc_ap{name}"] = average_precision(scored)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_discriminator_metrics_equal_scikit_learns_on_many_tokens() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(5000) < 0.1
    logits = rng.normal(size=5000) + 2.0 * labels - 1.5
    found = discriminator_metrics(Judged(logits, labels, rng.random(5000) < 0.3))
    called, probability = logits > 0, 1 / (1 + np.exp(-logits))
    assert found["disc_loss"] == pytest.approx(sklearn_metrics.log_loss(labels, probability))
    assert found["disc_accuracy"] == pytest.approx(np.mean(called == labels))
    assert found["disc_precision"] == pytest.approx(sklearn_metrics.precision_score(labels, called))
    assert found["disc_recall"] == pytest.approx(sklearn_metrics.recall_score(labels, called))
    # 0.92 is what a shift by two standard deviations gives.
    assert found["disc_auc"] == pytest.approx(0.92, abs=0.02)


def test_saying_real_everywhere_is_seen_in_the_recall() -> None:
    labels = np.arange(100) < 9
    found = discriminator_metrics(Judged(np.full(100, -3.0), labels, np.arange(100) < 15))
    assert (found["disc_accuracy"], found["disc_recall"], found["disc_precision"]) == (0.91, 0, 0)
    assert found["disc_auc"] == found["disc_auc_selected"] == 0.5


def test_generator_metrics_equal_the_definitions() -> None:
    log_probs = unigram_log_probs(np.array([0, 9, 4, 1, 2]))
    # Loss, argmax right, sample right, original id, sampled id.
    answers = np.array(
        [
            [0.5, 1, 1, 1, 1],
            [1.5, 1, 0, 1, 2],
            [4.0, 0, 0, 3, 4],
            [2.0, 0, 1, 4, 4],
        ]
    )
    found = generator_metrics(answers, log_probs, has_samples=True)
    # Add-one smoothing: 10, 5, 2 and 3 of 21 for the ids 1 to 4.
    unigram = -(2 * math.log(10 / 21) + math.log(2 / 21) + math.log(3 / 21)) / 4
    assert found == pytest.approx(
        {
            "generator_loss": 2.0,
            "generator_accuracy": 0.5,
            "generator_sampled_accuracy": 0.5,
            "replaced_share": 0.5,
            "baseline_unigram_loss": unigram,
            "baseline_commonest_token_share": 0.5,
        }
    )
    # A masked language model samples nothing: "every sample is right" would be no finding.
    without = generator_metrics(answers, log_probs, has_samples=False)
    assert found.keys() - without.keys() == {"generator_sampled_accuracy", "replaced_share"}
    assert without.items() <= found.items()


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=50))
def test_a_unigram_model_is_a_distribution_that_never_says_never(counts: list[int]) -> None:
    log_probs = unigram_log_probs(np.array(counts))
    assert np.isfinite(log_probs).all()
    assert np.exp(log_probs).sum() == pytest.approx(1.0)
    assert log_probs.argmax() == np.argmax(counts)


def test_gathered_rows_are_the_same_bits() -> None:
    world = World.from_environment({})
    control = Control(group=None, store=None, world=world, timeout_seconds=1.0)
    rows = np.array([[1 / 3, math.nan, -0.0], [1e-320, math.inf, 2.0]])
    for given_rows in (rows, rows[:0], rows[:, 1:]):
        (found,) = gather(control, given_rows)
        assert found.shape == given_rows.shape
        assert found.tobytes() == given_rows.tobytes()
