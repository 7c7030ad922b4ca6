"""Losses against float64 numpy; the streamed form against the direct: values, gradients, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import losses, weights
from jaxmodel.losses import cross_entropy, streamed_cross_entropy

D, V = 12, 29


def problem(rows=3, columns=7, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(rows, columns, D)), dtype)
    params = {"w": jnp.asarray(rng.normal(size=(D, V)), jnp.float32), "b": jnp.asarray(rng.normal(size=V), jnp.float32)}
    targets = jnp.asarray(rng.integers(0, V, (rows, columns)), jnp.int32)
    counts = jnp.asarray(rng.integers(0, 3, (rows, columns)), jnp.float32)
    return params, hidden, targets, counts


def head(params, hidden):
    return (hidden @ params["w"].astype(hidden.dtype)).astype(jnp.float32) + params["b"]


def direct(params, hidden, targets, counts, smoothing=0.0):
    return cross_entropy(head(params, hidden), targets, counts, smoothing)


def streamed(params, hidden, targets, counts, chunk, smoothing=0.0):
    return streamed_cross_entropy(lambda h: head(params, h), hidden, targets, counts, chunk, smoothing)


def close(a, b, tolerance=2e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * np.max(np.abs(y)))


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_is_that_of_float64(smoothing):
    params, hidden, targets, counts = problem()
    targets = targets.at[0, 0].set(-100).at[1, 2].set(V + 5)  # whatever the target, no weight no loss
    counts = counts.at[0, 0].set(0).at[1, 2].set(0)
    logits = 30 * np.asarray(head(params, hidden), np.float64)
    aims = (1 - smoothing) * np.eye(V)[np.clip(targets, 0, V - 1)] + smoothing / V
    found = cross_entropy(jnp.asarray(logits, jnp.float32), targets, counts, smoothing)
    np.testing.assert_allclose(found.loss, -((aims * log_softmax(logits)).sum(-1) * counts).sum(), rtol=1e-6)
    assert found.weight == np.sum(counts)
    assert found.correct == np.sum((logits.argmax(-1) == targets) * counts)


def test_of_equal_logits_the_first_is_the_prediction():
    logits = jnp.asarray([[0.0, 1, 1, 0]] * 4)
    targets = jnp.arange(4, dtype=jnp.int32)
    right = [float(cross_entropy(logits[i], targets[i], jnp.ones(())).correct) for i in range(4)]
    assert right == [0, 1, 0, 0]


# Pieces that divide the batch and that do not, of many rows, of one row, of a single token, of everything.
@pytest.mark.parametrize(
    "rows, columns, chunk, smoothing",
    [(3, 7, 5, 0.0), (3, 7, 2, 0.1), (4, 6, 8, 0.0), (2, 3, 1, 0.5), (3, 7, 999, 0.1)],
)
def test_streamed_is_direct(rows, columns, chunk, smoothing):
    params, hidden, targets, counts = problem(rows, columns)

    def of(sums):
        return 0.7 * sums.loss / sums.weight, sums

    gradient = jax.value_and_grad(
        lambda p, h: of(direct(p, h, targets, counts, smoothing)), argnums=(0, 1), has_aux=True
    )
    same = jax.value_and_grad(
        lambda p, h: of(streamed(p, h, targets, counts, chunk, smoothing)), argnums=(0, 1), has_aux=True
    )
    close(jax.jit(same)(params, hidden), gradient(params, hidden))
    ours = streamed(params, hidden, targets, counts, chunk, smoothing)
    close(ours, direct(params, hidden, targets, counts, smoothing))


def test_streamed_keeps_dtypes():
    params, hidden, targets, counts = problem(dtype=jnp.bfloat16)
    found = jax.grad(lambda p, h: streamed(p, h, targets, counts, 6).loss, argnums=(0, 1))(params, hidden)
    wanted = jax.grad(lambda p, h: direct(p, h, targets, counts).loss, argnums=(0, 1))(params, hidden)
    close(found, wanted, 1e-2)


def test_streamed_holds_few_logits():
    rows, columns, vocab, chunk = 8, 64, 4096, 32
    hidden, w = jnp.zeros((rows, columns, D)), jnp.zeros((D, vocab))
    targets, counts = jnp.zeros((rows, columns), jnp.int32), jnp.ones((rows, columns))

    def held(loss):
        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(hidden, w).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    def stream(h, w):
        return streamed_cross_entropy(lambda x: x @ w, h, targets, counts, chunk).loss

    logits = rows * columns * vocab * 4
    assert held(lambda h, w: cross_entropy(h @ w, targets, counts).loss) >= logits
    assert held(stream) < logits / 3


def test_a_frozen_head_costs_no_gradient():
    params, hidden, targets, counts = problem()

    def products(argnums):
        gradient = jax.grad(lambda p, h: streamed(p, h, targets, counts, 6).loss, argnums=argnums)
        return str(jax.make_jaxpr(gradient)(params, hidden)).count("dot_general")

    assert products((0, 1)) == 3  # the logits, and the two gradients: nothing twice
    assert products(1) == 2


def test_streamed_through_an_adapted_quantized_head():
    params, hidden, targets, counts = problem()
    layout = {"w": "embed -> vocab"}
    tree = weights.quantize({"w": params["w"]}, layout, "int8", select="*")
    tree = weights.lora(tree, layout, rank=2, key=jax.random.key(0), select="*")
    trainable, rest = weights.partition(tree, layout)
    trainable = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(1), x.shape), trainable)

    def loss(trainable, form):
        w = weights.join(trainable, rest)["w"]
        return form(lambda h: weights.matmul(h, w))

    found = jax.jit(jax.grad(loss), static_argnums=1)(
        trainable, lambda head: streamed_cross_entropy(head, hidden, targets, counts, 6).loss
    )
    wanted = jax.jit(jax.grad(loss), static_argnums=1)(
        trainable, lambda head: cross_entropy(head(hidden), targets, counts).loss
    )
    assert len(jax.tree.leaves(found)) == 2
    close(found, wanted)


def test_streamed_under_vmap_gives_each_rows_gradient():
    params, hidden, targets, counts = problem()

    def of_row(form):
        def gradient(h, t, c):
            return jax.grad(lambda p: form(p, h[None], t[None], c[None]).loss)(params)

        return jax.jit(jax.vmap(gradient))(hidden, targets, counts)

    close(of_row(lambda *x: streamed(*x, chunk=3)), of_row(direct))


def test_accuracy_has_no_gradient():
    params, hidden, targets, counts = problem()
    gradient = jax.jit(jax.grad(lambda h: streamed(params, h, targets, counts, 6).correct))
    assert not np.any(gradient(hidden))


def test_many_pieces_lose_no_digit():
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4096, 2)), jnp.float32)
    targets, counts = jnp.zeros((2, 4096), jnp.int32), jnp.ones((2, 4096))
    loss = jax.jit(lambda h: streamed_cross_entropy(lambda x: x, h, targets, counts, 2).loss)(hidden)
    np.testing.assert_allclose(loss, -log_softmax(hidden)[..., 0].sum(), rtol=2e-7)


@pytest.mark.parametrize("smoothing, threshold", [(0.0, 0.5), (0.2, 0.8)])
def test_sigmoid_cross_entropy_and_its_gradient(smoothing, threshold):
    z = np.asarray([-1e4, -90, -20, -3, -0.1, 0, 0.2, 1.3, 1.5, 3, 20, 90, 1e4] * 2, np.float32)
    y = np.repeat([0.0, 1.0], 13)
    counts = np.arange(26) % 3
    aim = (1 - smoothing) * y + smoothing / 2
    x = z.astype(np.float64)
    nats = aim * np.logaddexp(0, -x) + (1 - aim) * np.logaddexp(0, x)
    y[0] = np.nan  # whatever the target, no weight no loss

    def run(z):
        sums = losses.sigmoid_cross_entropy(z, jnp.asarray(y), jnp.asarray(counts), smoothing, threshold)
        return sums.loss, sums

    slope, found = jax.grad(run, has_aux=True)(jnp.asarray(z))
    np.testing.assert_allclose(found.loss, (nats * counts).sum(), rtol=1e-6)
    assert found.weight == counts.sum()
    right = (np.exp(-np.logaddexp(0, -x)) >= threshold) == (y == 1)
    assert found.correct == (right * counts).sum()
    np.testing.assert_allclose(slope, (np.exp(-np.logaddexp(0, -x)) - aim) * counts, atol=1e-6)


def test_huber_and_pinball():
    errors = np.asarray([-3, -1, -0.5, 0, 0.2, 1, 4], np.float64)
    bent = np.where(np.abs(errors) < 0.7, errors**2 / 2, 0.7 * (np.abs(errors) - 0.35))
    np.testing.assert_allclose(losses.huber(jnp.asarray(errors), 0.7), bent, rtol=1e-6)
    slope = jax.grad(lambda e: losses.huber(e, 0.7).sum())(jnp.asarray(errors, jnp.float32))
    np.testing.assert_allclose(slope, np.clip(errors, -0.7, 0.7), rtol=1e-6)

    two = np.stack([errors, errors + 1], -1)
    tilted = np.where(two < 0, [0.1, 0.8], [0.9, 0.2]) * np.abs(two)  # too low costs q, too high 1 - q
    np.testing.assert_allclose(losses.pinball(jnp.asarray(two), (0.1, 0.8)), tilted.mean(-1), rtol=1e-6)


def test_contrastive_leaves_out_what_weighs_nothing():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 5))
    b += 0.5 * a
    counts = np.asarray([1, 0, 2, 1, 0, 0.5])
    kept = counts > 0
    x, y = (each[kept] / np.linalg.norm(each[kept], axis=-1, keepdims=True) for each in (a, b))
    scores = x @ y.T / 0.2
    both = [np.diagonal(log_softmax(each)) for each in (scores, scores.T)]
    right = [each.argmax(-1) == np.arange(4) for each in (scores, scores.T)]

    def run(a, b, counts=counts):
        logits = losses.similarities(jnp.asarray(a), jnp.asarray(b), 0.2)
        return losses.contrastive(logits, jnp.asarray(counts))

    found = run(a, b)
    np.testing.assert_allclose(found.loss, -(np.mean(both, 0) * counts[kept]).sum(), rtol=1e-5)
    np.testing.assert_allclose(found.correct, (np.mean(right, 0) * counts[kept]).sum())
    assert found.weight == counts.sum()
    slopes = jax.grad(lambda *x: run(*x).loss, argnums=(0, 1))(jnp.asarray(a), jnp.asarray(b))
    for slope in slopes:
        assert np.all(np.isfinite(slope)) and np.all((np.abs(slope).max(-1) > 0) == kept)
    nobody = run(a, 0 * b, 0 * counts)
    assert (nobody.loss, nobody.weight) == (0, 0)


def test_sigmoid_contrastive_is_its_formula_over_the_rows_that_count():
    rng = np.random.default_rng(5)
    logits, counts = rng.normal(size=(5, 5)) * 3, np.array([1.0, 0.5, 0.0, 2.0, 1.0])
    sums = losses.sigmoid_contrastive(jnp.asarray(logits, jnp.float32), jnp.asarray(counts, jnp.float32))
    expected, right, there = 0.0, 0.0, [0, 1, 3, 4]
    for i in there:
        for j in there:
            expected += np.log1p(np.exp(-logits[i, j] if i == j else logits[i, j])) * (counts[i] + counts[j]) / 2
        right += (
            counts[i]
            * ((max(there, key=lambda j: logits[i, j]) == i) + (max(there, key=lambda j: logits[j, i]) == i))
            / 2
        )
    np.testing.assert_allclose(sums.loss, expected, rtol=1e-6)
    np.testing.assert_allclose([sums.weight, sums.correct], [counts.sum(), right])


def test_sigmoid_contrastive_holds_where_logits_are_large_or_not_there():
    logits = jnp.array([[1e4, -1e4, jnp.nan], [-1e4, 1e4, jnp.nan], [jnp.nan] * 3])
    weights = jnp.array([1.0, 1.0, 0.0])
    assert float(losses.sigmoid_contrastive(logits, weights).loss) == 0.0
    gradient = jax.grad(lambda x: losses.sigmoid_contrastive(x, weights).loss)(-jnp.nan_to_num(logits))
    assert np.all(np.isfinite(gradient)) and float(gradient[0, 0]) == -1.0 and float(gradient[2, 2]) == 0.0
