"""Every preset, shrunk, through the same table: init, apply, grad, jit, shard, quantize, save, load."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import weights
from jaxmodel.checkpoint import Checkpointer
from jaxmodel.loading import load
from jaxmodel.model import sharded
from jaxmodel.models.presets import PRESETS
from jaxmodel.sharding import Partitioning, make_mesh
from jaxmodel.train import TrainState, put
from tests.contract import relative, same
from tests.shrink import batch_of, distinct, params_of

FACTS = {"num_features": 6, "categories": (3, 4), "num_outputs": 5, "num_classes": 5, "channels": 3}
SMALL = distinct(FACTS)
ALWAYS = 16  # of so many, one runs every day
ROWS = [pytest.param(name, marks=[] if i % ALWAYS == 0 else [pytest.mark.slow]) for i, name in enumerate(SMALL)]


@functools.cache
def built(name):
    config = SMALL[name]
    return config.build(), params_of(config), batch_of(config)


def values_of(model, params, batch, state):
    apply = jax.jit(lambda params, state, batch: model.apply(params, batch, state).values)
    return apply(params, state, batch)


def test_every_preset_is_here():
    assert {name for names in SMALL for name in names.split()} == set(PRESETS)


@pytest.mark.parametrize("name", ROWS)
def test_laws(name, tmp_path):
    model, params, batch = built(name)
    state = model.start()
    plain = values_of(model, params, batch, state)
    assert plain and all(np.isfinite(each).all() for each in plain.values())
    assert same(plain, values_of(model, params, batch, state))

    def loss(params):
        out = model.apply(params, batch, state).values
        return sum(jnp.sum(jnp.sin(each.astype(jnp.float32))) for each in out.values())

    gradients = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(each).all() for each in jax.tree.leaves(gradients))
    assert any(np.abs(each).max() > 0 for each in jax.tree.leaves(gradients))

    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    partitioning = Partitioning(mesh)
    on_mesh = sharded(model, mesh)
    placed = jax.device_put(params, partitioning.shardings(model.layout, params))
    split = values_of(on_mesh, placed, put(batch, partitioning), state)
    assert relative(split, plain) < 1e-5

    quantized = weights.quantize(params, model.layout, "int8")
    assert any(weights.is_leaf(each) for each in jax.tree.leaves(quantized, is_leaf=weights.is_leaf))
    dense = weights.densify(quantized, model.layout)
    expected = values_of(model, quantized, batch, state)
    assert relative(expected, values_of(model, dense, batch, state)) < 1e-5

    with Checkpointer(tmp_path, model) as checkpointer:
        checkpointer.save(1, TrainState(jnp.int32(1), quantized, (), state))
    loaded = load(tmp_path)
    assert loaded.model.config == model.config
    assert same(loaded.params, quantized)
    assert same(values_of(loaded.model, loaded.params, batch, loaded.model_state), expected)
