"""Attention: a slow float64 reference, and pieces of queries that change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.config import replace
from jaxmodel.nn.attention import dot_product_attention
from tests.contract import CAUSAL, relative


@pytest.mark.parametrize("sunk", [False, True])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_dot_product_attention_against_loops(groups, softcap, sunk):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 5, h, 8)) for h in (4, groups, groups))
    mask = np.tril(np.ones((5, 5), bool))[None] & (rng.random((2, 5, 5)) < 0.8) | np.eye(5, dtype=bool)
    sinks = rng.normal(size=4) if sunk else None
    expected = np.zeros_like(q)
    for b in range(2):
        for t in range(5):
            for h in range(4):
                group = h // (4 // groups)
                scores = k[b, :, group] @ q[b, t, h] * 0.3
                scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
                weights = np.exp(np.where(mask[b, t], scores, -np.inf))
                nothing = 0.0 if sinks is None else np.exp(sinks[h])
                expected[b, t, h] = weights / (weights.sum() + nothing) @ v[b, :, group]
    a, b, c = (jnp.asarray(array, jnp.float32) for array in (q, k, v))
    sinks = None if sinks is None else jnp.asarray(sinks, jnp.float32)
    found = dot_product_attention(a, b, c, jnp.asarray(mask), scale=0.3, softcap=softcap, sinks=sinks)
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("name", ["gpt", pytest.param("pattern", marks=pytest.mark.slow)])
def test_pieces_of_queries_change_nothing(name):
    """Packed documents and padding at the end, gradients too; 128 tokens are four pieces of 32."""
    config = replace(CAUSAL[name], {"max_length": 128})
    segments = jnp.asarray([[1] * 50 + [2] * 60 + [0] * 18, [1] * 128], jnp.int32)
    batch = {"tokens": jax.random.randint(jax.random.key(1), (2, 128), 0, 64), "segments": segments}
    params = jax.jit(config.build().init)(jax.random.key(0))

    def gradient(pieces):
        model = replace(config, {"execution.query_pieces": pieces}).build()

        def loss(params):
            logits = model.apply(params, batch, train=True)["logits"]
            return jnp.sum(jnp.where(segments > 0, jax.nn.logsumexp(logits, axis=-1), 0.0) ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    (whole, grads), (pieced, pieced_grads) = gradient(1), gradient(4)
    assert relative(pieced, whole) < 1e-6
    largest = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grads))
    assert (
        max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), pieced_grads, grads)))
        < 1e-5 * largest
    )
