"""Attention: a slow float64 reference, and pieces of queries that change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import weights
from jaxmodel.config import replace
from jaxmodel.errors import InputError
from jaxmodel.model import sharded
from jaxmodel.nn.attention import dot_product_attention
from jaxmodel.nn.cache import FullCache, SlidingCache
from jaxmodel.sharding import make_mesh
from tests.contract import CAUSAL, GPT, relative


@pytest.mark.parametrize("multiply", [weights.contract, weights.streamed_matmul])
@pytest.mark.parametrize("sunk", [False, True])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_dot_product_attention_against_loops(groups, softcap, sunk, multiply):
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
                shares = np.exp(np.where(mask[b, t], scores, -np.inf))
                nothing = 0.0 if sinks is None else np.exp(sinks[h])
                expected[b, t, h] = shares / (shares.sum() + nothing) @ v[b, :, group]
    a, b, c = (jnp.asarray(array, jnp.float32) for array in (q, k, v))
    sinks = None if sinks is None else jnp.asarray(sinks, jnp.float32)
    how = {"scale": 0.3, "softcap": softcap, "sinks": sinks, "multiply": multiply}
    found = dot_product_attention(a, b, c, jnp.asarray(mask), **how)
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


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 5])
def test_a_narrow_vector_a_token_is_all_that_a_cache_keeps(window):
    """Tokens one by one against all at once: on one device, on a mesh and with packed weights."""
    changes = {"attention.latent.kv_rank": 12, "attention.latent.rope_dim": 4, "attention.latent.value_dim": 6}
    config = replace(GPT, {**changes, "attention.rotary": True, "attention.head_dim": 8, "attention.window": window})
    model, split = config.build(), sharded(config.build(), make_mesh({"data": 4, "tensor": 2}))
    params = jax.jit(model.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (4, 9), 0, 64)
    cache = model.start(4, 9)["stack"]["0"]["block"]
    full, ring = isinstance(cache, FullCache), isinstance(cache, SlidingCache)
    assert (full, ring) == (window is None, window is not None)
    assert cache.keys.shape[-1] == 12 and cache.values.shape[-2 if full else -1] == 4
    for weights_of in (params, weights.quantize(params, model.layout, "int8")):
        expected = jax.jit(model.apply)(weights_of, {"tokens": tokens})["logits"]
        for each in (model, split):
            step, state = jax.jit(each.apply), each.start(4, 9)
            out = step(weights_of, {"tokens": tokens[:, :4]}, state)
            found = [out["logits"]]
            for i in range(4, 9):
                out = step(weights_of, {"tokens": tokens[:, i : i + 1]}, out.state)
                found.append(out["logits"])
            assert relative(jnp.concatenate(found, axis=1), expected) < 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention.head_dim": None}, "model.attention.head_dim=none beside model.attention.latent.rope_dim=4"),
        ({"attention.head_dim": 4}, "turn an even part of a head, not all of it"),
        ({"attention.num_kv_heads": 2}, "model.attention.num_kv_heads=2 does not go with model.attention.latent"),
        ({"attention.qk_norm": "head"}, "model.attention.qk_norm=head does not go with"),
        ({"attention.rotary": False}, "set it to true"),
    ],
)
def test_latent_attention_that_contradicts_itself_is_refused(changes, words):
    latent = {"attention.latent.kv_rank": 12, "attention.latent.rope_dim": 4, "attention.latent.value_dim": 6}
    config = replace(GPT, {**latent, "attention.rotary": True, "attention.head_dim": 8})
    config.check()
    with pytest.raises(InputError, match=words):
        replace(config, changes).check()
