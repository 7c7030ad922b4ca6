"""An optimizer's state lies beside its weights, whatever it keeps, and a mesh changes nothing but bytes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxmodel import metrics as pairs
from jaxmodel.checkpoint import Checkpointer
from jaxmodel.model import from_function, sharded
from jaxmodel.optim import beside, make_optimizer, make_schedule, state_bytes
from jaxmodel.options import Optimizer
from jaxmodel.sharding import Partitioning, make_mesh
from jaxmodel.tasks import Result
from jaxmodel.train import make_state, make_step, put
from tests.contract import same

STEPS, KEY = 5, jax.random.key(0)
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
LAYOUT = {
    "up": "layers; embed -> mlp",
    "gains": "layers; embed",
    "down": "layers; mlp -> embed",
    "head": "embed -> vocab",
}
SHAPES = {"up": (2, 16, 512), "gains": (2, 16), "down": (2, 512, 16), "head": (16, 64)}
# How many pieces each is cut into by `embed` over fsdp, and `mlp` and `vocab` over tensor.
PIECES = {"up": 4, "gains": 2, "down": 4, "head": 4}


def init(key):
    keys = jax.random.split(key, len(SHAPES))
    return {
        name: jax.random.normal(k, shape) / shape[-2] ** 0.5
        for k, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }


def apply(params, batch):
    x = batch["features"]
    for up, gains, down in zip(params["up"], params["gains"], params["down"], strict=True):
        x = x + jnp.tanh((x * (1 + gains)) @ up) @ down
    return {"prediction": x @ params["head"]}


@functools.cache
def model():
    return from_function(init, apply, layout=LAYOUT)


def loss(params, batch, state, key, train):
    off = model().apply(params, batch)["prediction"] - batch["targets"]
    return Result(jnp.sum(off**2), jnp.float32(off.size), {}, {})


def batch_of(step):
    features = np.random.default_rng(step).normal(size=(8, 16)).astype(np.float32)
    return {"features": features, "targets": np.tile(features, 4)}


def trained(optimizer, partitioning=None):
    """The losses of five steps, and the last state."""
    bound = model() if partitioning is None else sharded(model(), partitioning.mesh)
    state = make_state(bound, optimizer, KEY, partitioning=partitioning)
    step = make_step(bound, loss, optimizer, partitioning=partitioning)
    losses = []
    for i in range(STEPS):
        state, metrics = step(state, put(batch_of(i), partitioning), KEY)
        losses.append(pairs.finish(metrics)["loss"])
    return losses, state


OPTIMIZERS: dict[str, Any] = {
    "adamw": Optimizer(learning_rate=0.003),
    "adamw int8": Optimizer(learning_rate=0.003, state_dtype="int8"),
    "adafactor": Optimizer(name="adafactor"),
    "muon": Optimizer(name="muon", learning_rate=0.003),
    "optax adam": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.003)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_mesh_changes_nothing_but_bytes(name):
    said = OPTIMIZERS[name]
    optimizer = make_optimizer(said, STEPS, LAYOUT) if isinstance(said, Optimizer) else said
    wanted, alone = trained(optimizer)
    losses, state = trained(optimizer, Partitioning(make_mesh(MESH)))
    assert wanted[-1] < wanted[0]
    np.testing.assert_allclose(losses, wanted, rtol=1e-4 if "int8" in name else 1e-5)
    assert state_bytes(state.opt_state) == state_bytes(alone.opt_state)
    for path, array in jax.tree_util.tree_leaves_with_path(state.opt_state):
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        pieces = next((PIECES[each] for each in PIECES if each in text.split("/")), 1)
        if "rows" in text or "columns" in text:
            pieces = 1  # of another rank than the weight, and small
        if text.endswith("up/scale"):
            assert array.shape == (2, 16, 2)  # blocks of 256: as many as there are pieces of mlp
        if text.endswith(("down/scale", "head/scale")):
            pieces = {"down": 2, "head": 2}[text.split("/")[-2]]  # one block: only the other axis is cut
        assert array.addressable_shards[0].data.nbytes * pieces == array.nbytes, text


@pytest.mark.parametrize("name", ["adamw int8", "adafactor", "muon"])
def test_what_is_kept_is_saved_and_comes_back_on_any_mesh(name, tmp_path):
    optimizer = make_optimizer(OPTIMIZERS[name], STEPS, LAYOUT)
    _, state = trained(optimizer)
    partitioning = Partitioning(make_mesh(MESH))
    bound = sharded(model(), partitioning.mesh)
    with Checkpointer(tmp_path, bound) as checkpointer:
        checkpointer.save(STEPS, state)

    def shards(state):
        return [array.addressable_shards[0].data.shape for array in jax.tree.leaves(state)]

    fresh = make_state(bound, optimizer, KEY, partitioning=partitioning)
    placed = shards(fresh)
    with Checkpointer(tmp_path, bound) as checkpointer:
        found = checkpointer.restore(fresh)
    assert same(found, state) and found.opt_state["count"] == STEPS
    assert shards(found) == placed != shards(state)


def test_the_shape_tells_a_weight_from_a_part_of_the_state():
    mesh = make_mesh({"fsdp": 8})
    row, column, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), (None, "fsdp"), ()))
    shape = jax.ShapeDtypeStruct
    params = {"mean": shape((8, 3), "float32"), "w": {"scale": shape((3, 8), "float32")}, "scale": None}
    shardings = {"mean": row, "w": {"scale": column}, "scale": None}
    state = {
        "count": shape((), "int32"),
        "mean": {"mean": shape((8, 3), "float32"), "w": {"scale": shape((3, 8), "float32")}},
        "square": {"mean": shape((8,), "float32"), "w": {"scale": shape((3, 4), "float32")}},
    }
    found = beside(state, params, shardings, whole)
    assert found["count"] == whole and found["square"]["mean"] == whole  # of another rank
    assert found["mean"]["mean"].spec == PartitionSpec("fsdp", None)
    assert found["mean"]["w"]["scale"].spec == PartitionSpec(None, "fsdp")
    assert found["square"]["w"]["scale"].spec == PartitionSpec(None, None)  # 4 does not divide into 8


def test_the_learning_rate_that_is_logged_is_the_effective_one():
    """A loss that never falls: three windows of one step, then half the rate."""
    said = {"window": 1, "patience": 2, "decay_rate": 0.5}
    options = Optimizer(name="sgd", learning_rate=1.0, clip_norm=None, schedule="plateau", **said)
    optimizer, schedule = make_optimizer(options, 9, {"w": "dim"}), make_schedule(options, 9)
    still = from_function(lambda key: {"w": jnp.zeros(2)}, lambda params, batch: params["w"], layout={"w": "dim"})

    def constant(params, batch, state, key, train):
        weight = jnp.sum(batch["weights"])
        return Result(jnp.sum(params["w"]) * 0 + 3.0 * weight, weight, {}, {})

    state = make_state(still, optimizer, KEY)
    step, rates = make_step(still, constant, optimizer, schedule=schedule), []
    for weight in (1, 1, 0, 1, 0, 0, 1, 1, 1):  # where nothing counts there is no loss, and nothing to learn from it
        state, metrics = step(state, {"weights": np.full(2, weight, np.float32)}, KEY)
        rates.append(pairs.finish(metrics)["learning_rate"])
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert state.opt_state["plateau"].best_value == 3.0  # the mean, not the sum
