"""CTC: a sum over rows that does not depend on padding, and an error rate against a plain edit distance."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import metrics
from jaxmodel.model import Outputs, from_function
from jaxmodel.options import Task
from jaxmodel.tasks import ctc
from jaxmodel.tasks.frames import edit_distance, greedy, predict_frames

V = 5


def given(logits, lengths=None):
    """A model that gives these logits, and perhaps lengths."""
    more = {} if lengths is None else {"lengths": jnp.asarray(lengths)}
    return from_function(lambda key: {"logits": jnp.asarray(logits)}, lambda params, batch: {**params, **more})


def run(model, batch, train=False, **options):
    params = model.init(jax.random.key(0))
    return ctc(model, Task(name="ctc", **options))(params, batch, {}, None, train)


def plain_distance(a, b):
    """Levenshtein's table, cell by cell."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i, j in itertools.product(range(1, len(a) + 1), range(1, len(b) + 1)):
        around = table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
        table[i, j] = min(around)
    return table[-1, -1]


def every_path(logits, target, blank):
    """Nats of a row: minus the log of the summed probabilities of all the paths that read as the target."""
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    total = 0.0
    for path in itertools.product(range(V), repeat=len(logits)):
        runs = [key for key, _ in itertools.groupby(path) if key != blank]
        if runs == list(target):
            total += np.exp(sum(logs[t, each] for t, each in enumerate(path)))
    return -np.log(total)


@pytest.mark.parametrize("blank", [0, 3])
def test_the_loss_is_that_of_all_paths(blank):
    rng = np.random.default_rng(0)
    logits, lengths = rng.normal(size=(2, 5, V)).astype(np.float32), [5, 4]
    targets = np.array([[1, 1, blank], [2, 4, 1]], np.int32)
    out = run(given(logits, lengths), {"targets": targets}, train=True, blank=blank)
    nats = [every_path(logits[0], [1, 1], blank), every_path(logits[1, :4], [2, 4, 1], blank)]
    assert float(out.sum) == pytest.approx(sum(nats), rel=1e-5)
    assert float(out.weight) == 5
    assert set(out.metrics) == {"loss", "unaligned"}


def test_padding_and_rows_without_weight_change_nothing():
    rng = np.random.default_rng(1)
    logits, targets = (rng.normal(size=(3, 6, V)).astype(np.float32), rng.integers(1, V, (3, 2)).astype(np.int32))
    short = run(given(logits, [6, 5, 6]), {"targets": targets, "weights": jnp.array([1.0, 2.0, 0.0])})
    longer = np.pad(logits, ((0, 0), (0, 3), (0, 0)), constant_values=7.0)
    padded = run(
        given(longer[:2], [6, 5]), {"targets": np.pad(targets, ((0, 0), (0, 2)))[:2], "weights": jnp.array([1.0, 2.0])}
    )
    found = [metrics.finish(each.metrics) for each in (short, padded)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert float(short.weight) == float(padded.weight) == 6


def test_a_row_that_cannot_be_aligned_counts_nothing():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(2, 3, V)).astype(np.float32)
    targets = np.array([[1, 1], [2, 2]], np.int32)  # three frames are just enough, two are not
    out = run(given(logits, [3, 2]), {"targets": targets}, train=True)
    assert float(out.sum) == pytest.approx(every_path(logits[0], [1, 1], 0), rel=1e-5)
    assert float(out.weight) == 2
    assert metrics.finish(out.metrics)["unaligned"] == 0.5

    def objective(logits):
        model = given(logits, [3, 2])
        return ctc(model, Task(name="ctc"))({"logits": logits}, {"targets": targets}, {}, None, True).sum

    gradient = jax.grad(objective)(jnp.asarray(logits))
    assert np.isfinite(gradient).all() and not gradient[1].any()


def test_greedy_decoding_and_its_error_rate():
    best = np.array([[0, 1, 1, 0, 1, 2], [3, 3, 0, 4, 4, 4], [0, 0, 0, 0, 0, 0]])
    logits, lengths = np.eye(V, dtype=np.float32)[best], [6, 4, 6]
    expected = [[1, 1, 2, 0, 0, 0], [3, 4, 0, 0, 0, 0], [0] * 6]
    assert greedy(jnp.asarray(logits), jnp.asarray(lengths), 0).tolist() == expected
    outputs = Outputs({"logits": jnp.asarray(logits), "lengths": jnp.asarray(lengths)})
    assert predict_frames(outputs, Task(name="ctc"))["prediction"].tolist() == expected
    targets = np.array([[1, 2, 2], [3, 4, 0], [1, 0, 0]], np.int32)
    found = metrics.finish(run(given(logits, lengths), {"targets": targets}).metrics)
    assert found["error_rate"] == pytest.approx((1 + 0 + 1) / 6)


def test_edit_distance_is_levenshteins():
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, 3, (200, 7)), rng.integers(0, 3, (200, 5))
    sizes = rng.integers(0, 8, 200), rng.integers(0, 6, 200)
    found = jax.jit(edit_distance)(first, sizes[0], second, sizes[1])
    expected = [plain_distance(a[:n], b[:m]) for a, n, b, m in zip(first, sizes[0], second, sizes[1], strict=True)]
    assert found.tolist() == expected
