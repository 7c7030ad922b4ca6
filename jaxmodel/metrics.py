"""Metrics as (numerator, denominator) pairs, the same however the examples were cut; and of all examples at once.

A pair is added over batches and devices and divided once. What no sum can hold (areas under curves, R²) is
computed from every example's score, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Pair = tuple[Any, Any]  # float32 arrays on the device, float64 on the host; scalars but for counts of classes
Metrics = dict[str, Pair]
# Those of which more is better.
RISING = ("accuracy", "top5_accuracy", "precision", "recall", "f1", "roc_auc", "average_precision", "r2")


def add(first: Mapping[str, Pair], second: Mapping[str, Pair]) -> Metrics:
    """The metrics of two batches as those of one; both have the same names."""
    return jax.tree.map(lambda a, b: a + b, dict(first), dict(second))


def to_host(metrics: Mapping[str, Pair]) -> Metrics:
    """The pairs in 64 bits, so that many batches add up exactly; waits for the device."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64)[()], jax.device_get(dict(metrics)))


def finish(metrics: Mapping[str, Pair]) -> dict[str, float]:
    """Numbers from pairs; `nan` where nothing was counted.

    >>> finish({"accuracy": (0.0, 0.0), "loss": (6.0, 3.0), "perplexity": (0.0, 3.0)})
    {'accuracy': nan, 'loss': 2.0, 'perplexity': 1.0}
    """
    return {name: float(FINISH.get(name, _ratio)(*pair)) for name, pair in to_host(metrics).items()}


def _ratio(numerator: Any, denominator: Any) -> float:
    return numerator / denominator if denominator else math.nan


def _perplexity(numerator: Any, denominator: Any) -> float:
    nats = _ratio(numerator, denominator)
    return math.inf if nats > 700 else math.exp(nats)


def averaged(
    hits: np.ndarray, predicted: np.ndarray, actual: np.ndarray, average: str = "macro"
) -> tuple[float, float, float]:
    """Precision, recall and F1 from the weight [C] of what was rightly predicted, predicted, and there.

    Args:
      hits: of each class, the weight of the examples of it that were predicted so.
      predicted: the weight of all that were predicted so.
      actual: the weight of all examples of the class.
      average: "macro", the mean over the classes that were there or predicted; "weighted", the mean by `actual`;
        "micro", of the sums over classes. Nothing predicted is a precision of 0, nothing there a recall of 0.
    """
    counts = [np.asarray(each, np.float64).reshape(-1) for each in (hits, predicted, actual)]
    if average == "micro":
        counts = [each.sum(keepdims=True) for each in counts]
    hits, predicted, actual = counts
    by = actual if average == "weighted" else (predicted + actual > 0).astype(np.float64)
    if not by.sum():
        return math.nan, math.nan, math.nan

    def mean(numerator: np.ndarray, denominator: np.ndarray) -> float:
        each = np.divide(numerator, denominator, out=np.zeros_like(hits), where=denominator > 0)
        return float(np.sum(each * by) / by.sum())

    return mean(hits, predicted), mean(hits, actual), mean(2 * hits, predicted + actual)


# What is not simply numerator / denominator. Classes are counted as (hits [C], (predicted, actual) [2,C]).
FINISH: dict[str, Callable[[Any, Any], float]] = {
    "perplexity": _perplexity,
    "rmse": lambda numerator, denominator: math.sqrt(_ratio(numerator, denominator)),
    "precision": lambda hits, counts: averaged(hits, *counts)[0],
    "recall": lambda hits, counts: averaged(hits, *counts)[1],
    "f1": lambda hits, counts: averaged(hits, *counts)[2],
}


# Of all examples at once. Numbers of any dtype in, float64 out; what weighs nothing is as if it were not there.


def confusion_matrix(predictions: Any, targets: Any, weights: Any = None, num_classes: int | None = None) -> np.ndarray:
    """float64[C,C]: the weight of the examples of class i (row) that were predicted as class j (column).

    Args:
      predictions: class ids, int[N].
      targets: class ids, int[N].
      weights: [N]; one each by default.
      num_classes: C; by default one more than the largest id.
    """
    predictions, targets, weights = _rows(predictions, targets, weights)
    ids = targets.astype(np.int64), predictions.astype(np.int64)
    size = num_classes or 1 + int(max(each.max(initial=0) for each in ids))
    flat = np.bincount(ids[0] * size + ids[1], weights, size * size)
    return flat.reshape(size, size)


def precision_recall_f1(
    predictions: Any, targets: Any, weights: Any = None, average: str = "macro"
) -> tuple[float, float, float]:
    """Precision, recall and F1, as `averaged` says: of class ids int[N], or of labels bool[N,C] that may be many."""
    if np.ndim(predictions) == 2:
        chosen, there = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
        rows = np.ones(len(chosen)) if weights is None else np.asarray(weights, np.float64)
        return averaged(rows @ (chosen * there), rows @ chosen, rows @ there, average)
    matrix = confusion_matrix(predictions, targets, weights)
    return averaged(np.diagonal(matrix), matrix.sum(0), matrix.sum(1), average)


def roc_curve(scores: Any, targets: Any, weights: Any = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False and true positive rate, and threshold, at every distinct score, falling; first (0, 0) at infinity.

    Args:
      scores: [N], higher where a target of 1 is likelier.
      targets: [N] of 0 or 1.
      weights: [N]; one each by default.
    """
    false, true, thresholds = _counts(scores, targets, weights)
    rates = [each / each[-1] if each[-1] else np.full_like(each, math.nan) for each in (false, true)]
    return rates[0], rates[1], thresholds


def roc_auc(scores: Any, targets: Any, weights: Any = None) -> float:
    """Area under `roc_curve`: how likely a 1 scores above a 0, ties counting half; nan with only one of them.

    >>> roc_auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    0.75
    """
    false, true, _ = roc_curve(scores, targets, weights)
    if np.isnan(false[-1] + true[-1]):
        return math.nan
    return float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))


def average_precision(scores: Any, targets: Any, weights: Any = None) -> float:
    """Precision at every distinct score, averaged by the recall it adds (no interpolation); nan without a 1."""
    false, true, _ = _counts(scores, targets, weights)
    if not true[-1]:
        return math.nan
    return float(np.sum(np.diff(true) / true[-1] * true[1:] / (true[1:] + false[1:])))


def r2(predictions: Any, targets: Any, weights: Any = None) -> float:
    """Coefficient of determination, of [N] or as the mean over the columns of [N,D]; nan if targets do not vary.

    Not from sums: those of targets far from zero would cancel to nothing in float32.
    """
    predictions, targets = (each.reshape(len(each), -1) for each in _doubles(predictions, targets))
    weights = np.ones(targets.shape) if weights is None else np.asarray(weights, np.float64)
    weights = np.broadcast_to(weights.reshape(len(targets), -1), targets.shape)

    def of(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
        if not y.size or y.min() == y.max():
            return math.nan
        return 1 - np.sum(w * (y - p) ** 2) / np.sum(w * (y - np.average(y, weights=w)) ** 2)

    # What weighs nothing may be missing, that is, NaN.
    kept = [(p[w > 0], y[w > 0], w[w > 0]) for p, y, w in zip(predictions.T, targets.T, weights.T, strict=True)]
    return float(np.mean([of(*column) for column in kept]))


def recall_at(count: int, first: Any, second: Any, weights: Any = None) -> float:
    """How often row i of one [N,D] is among the `count` rows of the other nearest to row i, by cosine.

    The mean of both directions. Another row that is as near as the right one counts as nearer.
    """
    kept = np.ones(len(first), bool) if weights is None else np.asarray(weights) > 0
    towers = [tower[kept] for tower in _doubles(first, second)]
    unit = [x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in towers]
    rows = max(1, 2**24 // max(1, len(unit[0])))  # whose similarities are held at once

    def share(x: np.ndarray, y: np.ndarray) -> float:
        found = 0
        for start in range(0, len(x), rows):
            near = x[start : start + rows] @ y.T
            own = np.diagonal(near, start)[:, None]
            found += np.sum(np.sum(~(near < own), axis=-1) <= count)  # so that NaN finds nothing
        return found / len(x) if len(x) else math.nan

    return (share(*unit) + share(*unit[::-1])) / 2


def _doubles(*arrays: Any) -> list[np.ndarray]:
    return [np.asarray(array, np.float64) for array in arrays]


def _rows(values: Any, targets: Any, weights: Any) -> list[np.ndarray]:
    """[N] each in float64, without what weighs nothing."""
    weights = np.ones(np.shape(targets)) if weights is None else weights
    values, targets, weights = _doubles(values, targets, weights)
    if not values.shape == targets.shape == weights.shape or values.ndim != 1:
        raise ValueError(f"one value each an example: not {values.shape}, {targets.shape} and {weights.shape}")
    return [each[weights > 0] for each in (values, targets, weights)]


def _counts(scores: Any, targets: Any, weights: Any) -> list[np.ndarray]:
    """Weights of the 0s and of the 1s that score at least every distinct score, and those scores, falling."""
    scores, targets, weights = _rows(scores, targets, weights)
    order = np.argsort(-scores, kind="stable")
    scores, ones, weights = scores[order], targets[order] > 0, weights[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else []
    sums = [np.append(0, np.cumsum(weights * those)[last]) for those in (~ones, ones)]
    if np.isnan(scores).any():  # which have no order
        sums = [np.full_like(each, math.nan) for each in sums]
    return [*sums, np.append(math.inf, scores[last])]
