"""Experts and the softmax they are chosen by: float64 references for values, slopes and routing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.nn.attention import UNSEEN, softmax
from tests.contract import MIXTURE, relative


def test_softmax_of_masked_scores_and_its_gradient():
    x = jax.random.normal(jax.random.key(0), (5, 7)).at[:, 4:].add(UNSEEN).at[0].set(UNSEEN)
    assert relative(softmax(x), jax.nn.softmax(x)) < 1e-6
    weigh = jax.random.normal(jax.random.key(1), (5, 7))
    ours, theirs = (jax.grad(lambda x, f=f: jnp.sum(f(x) * weigh))(x) for f in (softmax, jax.nn.softmax))
    assert float(jnp.max(jnp.abs(ours - theirs))) < 1e-6


@pytest.mark.parametrize("normalize", [True, False])
def test_experts_against_a_loop_over_tokens(normalize):
    """Every token through its top experts one by one in float64, and both losses of each sequence."""
    import dataclasses

    from jaxmodel.nn.layer import normal, params_of
    from jaxmodel.nn.mlp import MoE

    assert MIXTURE.moe is not None
    config = dataclasses.replace(MIXTURE.moe, normalize=normalize, balance_loss=0.5, z_loss=0.25)
    layer = MoE(None, config=config, dim=32, init_input=normal(None), init_output=normal(None))
    x = jax.random.normal(jax.random.key(0), (2, 5, 32))
    real = jnp.asarray([[True] * 5, [True] * 3 + [False] * 2])
    params = params_of(layer.init({"params": jax.random.key(1)}, x, real)["params"])
    y, losses = layer.apply({"params": params}, x, real)

    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    inputs = np.asarray(x, np.float64)
    logits = inputs @ p["router"]
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.zeros_like(inputs)
    chosen = np.zeros(probabilities.shape)
    for b in range(2):
        for t in range(5):
            top = np.argsort(-probabilities[b, t])[: config.experts_per_token]
            gates = probabilities[b, t, top] / (probabilities[b, t, top].sum() if normalize else 1)
            for share, e in zip(gates, top, strict=True):
                gate = inputs[b, t] @ p["gate"][e]
                hidden = gate / (1 + np.exp(-gate)) * (inputs[b, t] @ p["up"][e])
                expected[b, t] += share * hidden @ p["down"][e]
                chosen[b, t, e] = 1
    assert relative(y, expected) < 1e-5
    for b, count in enumerate((5, 3)):
        share = chosen[b, :count].sum(0) / (count * config.experts_per_token)
        balance = config.num_experts * (share * probabilities[b, :count].mean(0)).sum()
        z = (np.log(np.exp(logits[b, :count]).sum(-1)) ** 2).mean()
        assert relative(losses["balance"][b], 0.5 * balance) < 1e-5
        assert relative(losses["router_z"][b], 0.25 * z) < 1e-5
