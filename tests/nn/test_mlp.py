"""Experts and the softmax they are chosen by: float64 references for values, slopes and routing."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.config import replace
from jaxmodel.model import sharded
from jaxmodel.nn.attention import UNSEEN, softmax
from jaxmodel.nn.layer import normal, params_of
from jaxmodel.nn.mlp import MoE
from jaxmodel.sharding import make_mesh
from tests.contract import MIXTURE, relative


def test_softmax_of_masked_scores_and_its_gradient():
    x = jax.random.normal(jax.random.key(0), (5, 7)).at[:, 4:].add(UNSEEN).at[0].set(UNSEEN)
    assert relative(softmax(x), jax.nn.softmax(x)) < 1e-6
    weigh = jax.random.normal(jax.random.key(1), (5, 7))
    ours, theirs = (jax.grad(lambda x, f=f: jnp.sum(f(x) * weigh))(x) for f in (softmax, jax.nn.softmax))
    assert float(jnp.max(jnp.abs(ours - theirs))) < 1e-6


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 100.0])
def test_experts_with_little_room_take_the_first_tokens_of_each_sequence(factor, packed):
    """Against a loop in float64 that counts what each expert has; padding takes no room, and moves nothing else."""
    assert MIXTURE.moe is not None
    config = dataclasses.replace(MIXTURE.moe, capacity_factor=factor)
    layer = MoE(None, config=config, dim=32, init_input=normal(None), init_output=normal(None))
    x = jax.random.normal(jax.random.key(0), (3, 12, 32)) + 0.3
    real = np.ones((3, 12), bool)
    real[1, 7:], real[2, [0, 4]] = False, False
    segments = np.ones((3, 12), int)
    segments[1, 7:] = 0
    if packed:
        segments[0, 5:], segments[0, 9:], segments[2, 8:] = 2, 3, 2
    given = jnp.asarray(segments) if packed else None
    params = params_of(layer.init({"params": jax.random.key(1)}, x, jnp.asarray(real))["params"])
    y, _ = layer.apply({"params": params}, x, jnp.asarray(real), given)

    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    inputs, expected, dropped = np.asarray(x, np.float64), np.zeros((3, 12, 32)), 0
    for b in range(3):
        for segment in range(1, 4):
            tokens = [t for t in range(12) if real[b, t] and segments[b, t] == segment]
            room = [math.ceil(factor * len(tokens) * config.experts_per_token / 8)] * 8
            for t in tokens:
                probabilities = np.exp(inputs[b, t] @ p["router"])
                top = np.argsort(-probabilities)[: config.experts_per_token]
                for e in top:
                    dropped += room[e] == 0
                    if room[e]:
                        room[e] -= 1
                        gate = inputs[b, t] @ p["gate"][e]
                        hidden = gate / (1 + np.exp(-gate)) * (inputs[b, t] @ p["up"][e])
                        expected[b, t] += probabilities[e] / probabilities[top].sum() * hidden @ p["down"][e]
    assert (dropped > 0) == (factor < 100)
    assert relative(y, expected) < 1e-5 and not np.any(np.asarray(y)[~real])


@pytest.mark.slow
def test_room_for_tokens_on_a_mesh_and_in_generation():
    """Experts split over devices drop the same tokens, with the same gradients; a cache drops none."""
    config = replace(MIXTURE, {"moe.capacity_factor": 0.5})
    batch = {"tokens": jax.random.randint(jax.random.key(0), (4, 16), 1, 64)}
    params = jax.jit(config.build().init)(jax.random.key(1))

    def loss(model, params):
        return jnp.sum(jnp.sin(model.apply(params, batch)["logits"]))

    plain, split = config.build(), sharded(config.build(), make_mesh({"data": 2, "expert": 2, "tensor": 2}))
    found = [jax.jit(jax.value_and_grad(functools.partial(loss, model)))(params) for model in (plain, split)]
    assert relative(found[1][0], found[0][0]) < 1e-5
    for ours, theirs in zip(*(jax.tree.leaves(each[1]) for each in found), strict=True):
        assert relative(theirs, ours) < 1e-5
    assert all(float(jnp.max(jnp.abs(each))) > 0 for each in jax.tree.leaves(found[0][1]["stack"]["1"]))
    dropless = MIXTURE.build()
    cached = plain.apply(params, batch, plain.start(4, 16))["logits"]
    assert relative(cached, dropless.apply(params, batch)["logits"]) < 1e-5
    assert relative(plain.apply(params, batch)["logits"], cached) > 1e-3


@pytest.mark.parametrize("normalize", [pytest.param(True, marks=pytest.mark.slow), False])
def test_experts_against_a_loop_over_tokens(normalize):
    """Every token through its top experts one by one in float64, and both losses of each sequence."""
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
