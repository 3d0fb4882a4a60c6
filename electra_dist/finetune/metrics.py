"""Scores of predictions against the truth, and of the best constant answer.

Correlations of a constant are 0 by definition here (the formula would divide by zero).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
"""Shape (num_examples,): class indices (as floats) or regression values in the file's units."""


def accuracy(predicted: Values, truth: Values) -> float:
    """Share of equal answers."""
    return float(np.mean(predicted == truth))


def f1(predicted: Values, truth: Values) -> float:
    """Binary labels: F1 of class 1, the second label."""
    return _f1_of(predicted == 1, truth == 1)


def f1_macro(predicted: Values, truth: Values) -> float:
    """The mean of the F1 of each class that occurs in the truth or in the predictions."""
    classes = np.union1d(predicted, truth)
    return float(np.mean([_f1_of(predicted == each, truth == each) for each in classes]))


def matthews(predicted: Values, truth: Values) -> float:
    """Matthews correlation, for two or more classes (Gorodkin's R_k)."""
    occurring = np.union1d(predicted, truth)
    predicted_onehot = (predicted[:, None] == occurring).astype(np.float64)
    truth_onehot = (truth[:, None] == occurring).astype(np.float64)
    predicted_centred = predicted_onehot - predicted_onehot.mean(axis=0)
    truth_centred = truth_onehot - truth_onehot.mean(axis=0)
    return _ratio(
        float(np.sum(predicted_centred * truth_centred)),
        float(np.sqrt(np.sum(predicted_centred**2) * np.sum(truth_centred**2))),
    )


def pearson(predicted: Values, truth: Values) -> float:
    """Linear correlation."""
    if np.ptp(predicted) == 0 or np.ptp(truth) == 0:
        return 0.0
    predicted_centred = predicted - predicted.mean()
    truth_centred = truth - truth.mean()
    return _ratio(
        float(np.sum(predicted_centred * truth_centred)),
        float(np.sqrt(np.sum(predicted_centred**2) * np.sum(truth_centred**2))),
    )


def spearman(predicted: Values, truth: Values) -> float:
    """Rank correlation; ties share the mean of their ranks."""
    return pearson(_ranks(predicted), _ranks(truth))


def mse(predicted: Values, truth: Values) -> float:
    """Mean squared error, in the file's units squared. Lower is better, unlike all the others."""
    return float(np.mean((predicted - truth) ** 2))


METRICS: dict[str, Callable[[Values, Values], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "mse": mse,
}
"""Metric by name; each takes (predicted, truth)."""


def score(names: tuple[str, ...], predicted: Values, truth: Values) -> dict[str, float]:
    """Each named metric of one set of predictions."""
    return {name: METRICS[name](predicted, truth) for name in names}


def constant_baseline(
    names: tuple[str, ...], is_regression: bool, train_truth: Values, truth: Values
) -> dict[str, float]:
    """The metrics on `truth` of the best constant answer that the training file suggests.

    Classification: the commonest training class (ties: the first). Regression: the training mean,
    whose correlations are 0 and whose `mse` is the number to beat.
    """
    if is_regression:
        constant = float(np.mean(train_truth))
    else:
        constant = float(np.argmax(np.bincount(train_truth.astype(np.int64))))
    return score(names, np.full_like(truth, constant), truth)


def _f1_of(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return _ratio(2.0 * float(np.sum(predicted & truth)), float(np.sum(predicted) + np.sum(truth)))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else 0.0


def _ranks(values: Values) -> Values:
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(sizes)
    mean_rank: Values = last_rank - (sizes - 1) / 2.0
    return mean_rank[group]
