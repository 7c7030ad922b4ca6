"""Cross entropy against float64 numpy; the streamed form against the direct: values, gradients, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import weights
from jaxmodel.losses import cross_entropy, streamed_cross_entropy

D, V = 12, 29


def problem(rows=3, columns=7, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(rows, columns, D)), dtype)
    params = {
        "w": jnp.asarray(rng.normal(size=(D, V)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=V), jnp.float32),
    }
    targets = jnp.asarray(rng.integers(0, V, (rows, columns)), jnp.int32)
    counts = jnp.asarray(rng.integers(0, 3, (rows, columns)), jnp.float32)
    return params, hidden, targets, counts


def head(params, hidden):
    return (hidden @ params["w"].astype(hidden.dtype)).astype(jnp.float32) + params["b"]


def direct(params, hidden, targets, counts):
    return cross_entropy(head(params, hidden), targets, counts)


def streamed(params, hidden, targets, counts, chunk):
    return streamed_cross_entropy(lambda h: head(params, h), hidden, targets, counts, chunk)


def close(a, b, tolerance=2e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * np.max(np.abs(y)))


def test_cross_entropy_is_that_of_float64():
    params, hidden, targets, counts = problem()
    targets = targets.at[0, 0].set(-100).at[1, 2].set(V + 5)  # whatever the target, no weight no loss
    counts = counts.at[0, 0].set(0).at[1, 2].set(0)
    logits = 30 * np.asarray(head(params, hidden), np.float64)
    top = logits.max(-1, keepdims=True)
    logs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    valid = np.clip(targets, 0, V - 1)
    picked = np.take_along_axis(logs, valid[..., None], -1)[..., 0]
    found = cross_entropy(jnp.asarray(logits, jnp.float32), targets, counts)
    np.testing.assert_allclose(found.loss, -(picked * counts).sum(), rtol=1e-6)
    assert found.weight == np.sum(counts)
    assert found.correct == np.sum((logits.argmax(-1) == targets) * counts)


def test_of_equal_logits_the_first_is_the_prediction():
    logits = jnp.asarray([[0.0, 1, 1, 0]] * 4)
    targets = jnp.arange(4, dtype=jnp.int32)
    right = [float(cross_entropy(logits[i], targets[i], jnp.ones(())).correct) for i in range(4)]
    assert right == [0, 1, 0, 0]


# Pieces that divide the batch and that do not, of many rows, of one row, of a single token, of everything.
@pytest.mark.parametrize("rows, columns, chunk", [(3, 7, 5), (3, 7, 2), (4, 6, 8), (2, 3, 1), (3, 7, 999)])
def test_streamed_is_direct(rows, columns, chunk):
    params, hidden, targets, counts = problem(rows, columns)

    def of(sums):
        return 0.7 * sums.loss / sums.weight, sums

    gradient = jax.value_and_grad(lambda *x: of(direct(*x)), argnums=(0, 1), has_aux=True)
    same = jax.value_and_grad(lambda *x: of(streamed(*x, chunk=chunk)), argnums=(0, 1), has_aux=True)
    close(jax.jit(same)(params, hidden, targets, counts), gradient(params, hidden, targets, counts))
    close(streamed(params, hidden, targets, counts, chunk), direct(params, hidden, targets, counts))


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
