"""Metrics: the same numbers however the examples were cut, and those of scikit-learn, ties and weights included."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from jaxmodel import metrics


@given(st.lists(st.integers(0, 20), max_size=5), st.integers(0, 2**31))
def test_cuts_change_nothing(cuts, seed):
    rng = np.random.default_rng(seed)
    losses, weights = rng.integers(0, 100, 20), rng.integers(0, 3, 20)  # integers add up exactly
    weights[0] = 1
    edges = [0, *sorted(cuts), 20]
    total = {"loss": (0.0, 0.0)}
    for low, high in itertools.pairwise(edges):
        part = slice(low, high)
        pair = jnp.sum(jnp.asarray(losses[part] * weights[part], jnp.float32)), float(weights[part].sum())
        total = metrics.add(total, metrics.to_host({"loss": pair}))
    assert metrics.finish(total) == {"loss": (losses * weights).sum() / weights.sum()}


def test_sums_over_batches_are_of_64_bits():
    batch = {"loss": (jnp.float32(2**24), jnp.float32(2**24))}
    one = {"loss": (jnp.float32(1), jnp.float32(1))}
    numerator, _ = metrics.add(metrics.to_host(batch), metrics.to_host(one))["loss"]
    assert numerator == 2**24 + 1


def test_numbers():
    found = metrics.finish({"loss": (3.0, 2.0), "perplexity": (3.0, 2.0), "accuracy": (1.0, 2.0), "rmse": (18.0, 2.0)})
    assert found == {"loss": 1.5, "perplexity": math.exp(1.5), "accuracy": 0.5, "rmse": 3.0}


def test_nothing_counted_is_nan_and_hopeless_is_infinite():
    nothing = {"loss": (0.0, 0.0), "rmse": (0.0, 0.0), "perplexity": (0.0, 0.0), "f1": (np.zeros(3), np.zeros((2, 3)))}
    assert all(map(math.isnan, metrics.finish(nothing).values()))
    assert metrics.finish({"perplexity": (1e6, 1.0)})["perplexity"] == math.inf
    assert math.isnan(metrics.finish({"perplexity": (math.nan, 1.0)})["perplexity"])


# Of all examples at once. Scores of few values tie often; a third of the examples weigh nothing.
PROBLEMS = [(seed, size, values) for seed, (size, values) in enumerate([(6, 3), (50, 4), (200, 30), (300, 10**6)])]


def scored(seed, size, values):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, size)
    targets[:2] = 0, 1
    scores = np.round(rng.normal(size=size) + targets, 6) if values > size else rng.integers(0, values, size)
    weights = rng.random(size) * (rng.random(size) < 2 / 3)
    weights[:2] = 0.3, 0.7
    return scores, targets, weights


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_curves(problem):
    scores, targets, weights = scored(*problem)
    for each in (weights, None):
        wanted = oracle.roc_curve(targets, scores, sample_weight=each, drop_intermediate=False)
        for ours, theirs in zip(metrics.roc_curve(scores, targets, each), wanted, strict=True):
            close(ours, theirs)
        close(metrics.roc_auc(scores, targets, each), oracle.roc_auc_score(targets, scores, sample_weight=each))
        close(
            metrics.average_precision(scores, targets, each),
            oracle.average_precision_score(targets, scores, sample_weight=each),
        )


def test_curves_that_do_not_exist():
    assert math.isnan(metrics.roc_auc([0.1, 0.2], [1, 1])) and math.isnan(metrics.roc_auc([], []))
    assert math.isnan(metrics.average_precision([0.1, 0.2], [0, 0]))
    assert metrics.average_precision([0.1, 0.2], [1, 1]) == 1
    assert math.isnan(metrics.roc_auc([0.1, math.nan, 0.3], [0, 1, 1]))
    assert math.isnan(metrics.average_precision([0.1, math.nan, 0.3], [0, 1, 1]))
    assert metrics.roc_auc([0.1, math.nan, 0.3], [0, 1, 1], [1, 0, 1]) == 1
    with pytest.raises(ValueError, match=r"one value each an example: not \(2, 1\), \(2,\) and \(2,\)"):
        metrics.roc_auc([[0.1], [0.2]], [0, 1])


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("seed", range(4))
def test_classes(seed, average):
    rng = np.random.default_rng(seed)
    targets, predictions = (rng.choice([0, 1, 2, 5], 30), rng.choice([0, 1, 4, 5], 30))  # some never, some only once
    weights = rng.random(30) * (rng.random(30) < 0.7)
    kept = weights > 0
    for each in (weights, None):
        matrix = metrics.confusion_matrix(predictions, targets, each, num_classes=7)
        close(matrix, oracle.confusion_matrix(targets, predictions, sample_weight=each, labels=range(7)))
        rows = kept if each is not None else slice(None)  # scikit-learn averages over classes of no weight, too
        wanted = oracle.precision_recall_fscore_support(
            targets[rows],
            predictions[rows],
            sample_weight=None if each is None else each[rows],
            average=average,
            zero_division=0,  # pyright: ignore[reportArgumentType]
        )
        close(metrics.precision_recall_f1(predictions, targets, each, average), wanted[:3])


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_labels(average):
    rng = np.random.default_rng(0)
    targets, predictions, weights = rng.random((20, 4)) < 0.4, rng.random((20, 4)) < 0.5, rng.random(20)
    wanted = oracle.precision_recall_fscore_support(
        targets,
        predictions,
        sample_weight=weights,
        average=average,
        zero_division=0,  # pyright: ignore[reportArgumentType]
    )
    close(metrics.precision_recall_f1(predictions, targets, weights, average), wanted[:3])


@pytest.mark.parametrize("shape", [(40,), (40, 3)])
def test_r2(shape):
    rng = np.random.default_rng(0)
    targets = 1e4 + rng.normal(size=shape)
    predictions, weights = targets + 0.3 * rng.normal(size=shape), rng.random(40)
    for each in (weights, None):
        close(metrics.r2(predictions, targets, each), oracle.r2_score(targets, predictions, sample_weight=each))
    weights[3] = 0
    without = metrics.r2(np.delete(predictions, 3, 0), np.delete(targets, 3, 0), np.delete(weights, 3))
    targets[3] = math.nan
    close(metrics.r2(predictions, targets, weights), without)
    assert math.isnan(metrics.r2(predictions, np.full(shape, 0.1)))


def test_r2_of_targets_that_are_missing_here_and_there():
    rng = np.random.default_rng(0)
    targets, predictions = rng.normal(size=(2, 30, 2))
    weights = rng.random((30, 2)) * (rng.random((30, 2)) < 0.7)
    columns = [oracle.r2_score(targets[:, i], predictions[:, i], sample_weight=weights[:, i]) for i in (0, 1)]
    close(metrics.r2(predictions, np.where(weights > 0, targets, math.nan), weights), np.mean(columns))


@pytest.mark.parametrize("count", [1, 3])
def test_recall_at(count):
    rng = np.random.default_rng(0)
    first = rng.normal(size=(20, 4))
    second, weights = first + rng.normal(size=(20, 4)), np.arange(20) % 3
    x, y = first[weights > 0], second[weights > 0]
    angles = np.arccos(np.einsum("id,jd->ij", x, y) / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)))
    hits = [[i in np.argsort(row)[:count] for i, row in enumerate(each)] for each in (angles, angles.T)]
    close(metrics.recall_at(count, first, second, weights), np.mean(hits))
    assert 0 < np.mean(hits) < 1
    assert metrics.recall_at(1, x, x) == 1
    assert metrics.recall_at(1, np.ones((3, 2)), np.ones((3, 2))) == 0  # all alike: nothing is told apart
    assert metrics.recall_at(1, np.full((3, 2), math.nan), np.ones((3, 2))) == 0
    assert math.isnan(metrics.recall_at(1, x, y, np.zeros(len(x))))
