import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from electra_dist.finetune.metrics import (
    METRICS,
    Values,
    accuracy,
    constant_baseline,
    f1,
    f1_macro,
    matthews,
    mse,
    pearson,
    score,
    spearman,
)


def pairs_of_classes(num_classes: int) -> st.SearchStrategy[tuple[Values, Values]]:
    classes = st.integers(0, num_classes - 1).map(float)
    return st.integers(1, 30).flatmap(
        lambda size: st.tuples(
            arrays(np.float64, size, elements=classes), arrays(np.float64, size, elements=classes)
        )
    )


# Quarters: many ties, and no sums that differ in the last bit by order alone.
pairs_of_values = st.integers(2, 30).flatmap(
    lambda size: st.tuples(
        *(arrays(np.float64, size, elements=st.integers(-8, 8).map(lambda n: n / 4)),) * 2
    )
)


@given(pairs_of_classes(2))
def test_binary_metrics_equal_scikit_learn(pair: tuple[Values, Values]) -> None:
    predicted, truth = pair
    assert accuracy(predicted, truth) == pytest.approx(
        sklearn.metrics.accuracy_score(truth, predicted)
    )
    expected = sklearn.metrics.f1_score(truth, predicted, pos_label=1, zero_division=0)
    assert f1(predicted, truth) == pytest.approx(expected)


@given(st.integers(2, 5).flatmap(pairs_of_classes))
def test_metrics_of_many_classes_equal_scikit_learn(pair: tuple[Values, Values]) -> None:
    predicted, truth = pair
    expected = sklearn.metrics.f1_score(truth, predicted, average="macro", zero_division=0)
    assert f1_macro(predicted, truth) == pytest.approx(expected)
    is_single = len(np.union1d(predicted, truth)) < 2  # scikit-learn warns there
    expected = 0.0 if is_single else sklearn.metrics.matthews_corrcoef(truth, predicted)
    assert matthews(predicted, truth) == pytest.approx(expected, abs=1e-12)


@given(pairs_of_values)
def test_correlations_equal_scipy(pair: tuple[Values, Values]) -> None:
    predicted, truth = pair
    if np.ptp(predicted) == 0 or np.ptp(truth) == 0:
        assert pearson(predicted, truth) == spearman(predicted, truth) == 0.0
        return
    assert pearson(predicted, truth) == pytest.approx(
        scipy.stats.pearsonr(predicted, truth).statistic, abs=1e-12
    )
    assert spearman(predicted, truth) == pytest.approx(
        scipy.stats.spearmanr(predicted, truth).statistic, abs=1e-12
    )


def test_mse_and_score_by_name() -> None:
    predicted, truth = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0])
    assert mse(predicted, truth) == pytest.approx((0 + 1 + 4) / 3)
    assert list(score(("mse", "pearson"), predicted, truth)) == ["mse", "pearson"]


def test_baseline_is_the_commonest_training_label_not_that_of_dev() -> None:
    train, dev = np.array([1.0, 1.0, 0.0]), np.array([0.0, 0.0, 0.0, 1.0])
    found = constant_baseline(("accuracy", "f1", "matthews"), False, train, dev)
    assert found == {"accuracy": 0.25, "f1": pytest.approx(0.4), "matthews": 0.0}


def test_baseline_of_a_regression_is_the_training_mean() -> None:
    found = constant_baseline(
        ("pearson", "spearman", "mse"), True, np.array([1.0, 3.0]), np.array([0.0, 1.0])
    )
    assert found == {"pearson": 0.0, "spearman": 0.0, "mse": pytest.approx(2.5)}


def test_every_metric_is_one_for_a_perfect_answer_but_mse() -> None:
    truth = np.array([0.0, 1.0, 1.0, 0.0])
    scores = score(tuple(METRICS), truth, truth)
    assert scores.pop("mse") == 0.0
    assert list(scores.values()) == pytest.approx([1.0] * len(scores))
