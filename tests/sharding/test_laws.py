"""Sharding changes nothing but bytes: losses, initial weights, bytes a device and collectives, on eight devices."""

import functools
import math
import re

import jax
import numpy as np
import pytest

from jaxmodel import optim, options, tasks, weights
from jaxmodel.model import sharded
from jaxmodel.sharding import Partitioning, make_mesh
from jaxmodel.train import make_state, make_step, put
from tests.contract import CONTRACT, batch_of, built, params_of, same

STEPS = 20
MESHES = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "tensor": {"tensor": 8},
    "cube": {"data": 2, "fsdp": 2, "tensor": 2},
    "expert": {"data": 2, "expert": 4},
}
ALWAYS = {("gpt", "fsdp"), ("gpt", "tensor"), ("mixture", "cube"), ("conv", "cube"), ("function", "cube")}
ROWS = [
    pytest.param(name, mesh, marks=[] if (name, mesh) in ALWAYS else [pytest.mark.slow])
    for name in CONTRACT
    for mesh in MESHES
    if mesh != "expert" or name == "mixture"
] + [pytest.param("mixture", "expert")]


def optimizer_of(model):
    return optim.make_optimizer(options.Optimizer(learning_rate=1e-3, warmup=2), STEPS, model.layout)


def train(name: str, mesh: str | None):
    """Losses of twenty steps, the last state, and the compiled step."""
    model, partitioning = built(name), None
    if mesh is not None:
        partitioning = Partitioning(make_mesh(MESHES[mesh]))
        model = sharded(model, partitioning.mesh)
    loss = getattr(tasks, CONTRACT[name].task)(model)
    optimizer = optimizer_of(model)
    state = make_state(model, optimizer, jax.random.key(0), partitioning=partitioning)
    first = jax.tree.map(np.asarray, state.params)
    step = make_step(model, loss, optimizer, partitioning=partitioning)
    batches = [put(batch_of(name, i), partitioning) for i in range(STEPS)]
    compiled = step.lower(state, batches[0], jax.random.key(1)).compile()
    losses = []
    for batch in batches:
        state, metrics = compiled(state, batch, jax.random.key(1))
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
    return np.asarray(losses), first, state, compiled.as_text()


@functools.cache
def unsharded(name: str):
    losses, _, state, _ = train(name, None)
    loss = getattr(tasks, CONTRACT[name].task)(built(name))
    result = jax.jit(loss, static_argnums=4)(
        state.params, put(batch_of(name, 0)), state.model_state, jax.random.key(2), True
    )
    return losses, float(result.metrics["loss"][0] / result.metrics["loss"][1])


def reference(name: str):
    """Losses of twenty steps without a mesh."""
    return unsharded(name)[0]


def learnt(name: str) -> float:
    """The loss, after those steps, of the very first batch."""
    return unsharded(name)[1]


@pytest.mark.parametrize(("name", "mesh"), ROWS)
def test_losses_bytes_and_collectives(name, mesh):
    losses, first, state, text = train(name, mesh)
    expected = reference(name)
    assert learnt(name) < expected[0]  # it learns, or agreement would mean little
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert same(first, params_of(name)), "initial weights depend on the mesh"
    check_bytes(name, mesh, state)
    check_collectives(name, mesh, text)


@pytest.mark.parametrize("name", ["function", "nnx"])
@pytest.mark.parametrize(("rows", "rows_a_device"), [(8, 1), (6, 6)])
def test_a_model_made_from_code_splits_a_batch_that_lies_anywhere(name, rows, rows_a_device):
    model = sharded(built(name), make_mesh({"data": 4, "fsdp": 2}))
    batch = {"features": batch_of(name, rows=rows)["features"]}
    logits = jax.jit(model.apply)(model.init(jax.random.key(0)), batch, model.start())["logits"]
    assert logits.addressable_shards[0].data.shape == (rows_a_device, 10)
    alone = built(name).apply(params_of(name), batch, built(name).start())["logits"]
    np.testing.assert_allclose(logits, alone, rtol=1e-5, atol=1e-6)


def check_bytes(name: str, mesh: str, state) -> None:
    """Every array lies as its layout says; what multiplies is cut into as many pieces as the mesh cuts it."""
    partitioning = Partitioning(make_mesh(MESHES[mesh]))
    shardings = partitioning.shardings(built(name).layout, state.params)
    for array, sharding in zip(jax.tree.leaves(state.params), jax.tree.leaves(shardings), strict=True):
        assert array.addressable_shards[0].data.shape == sharding.shard_shape(array.shape)
    # The moments of a weight lie beside it: each shape is cut alike in params and in the optimizer's state.
    cut = {(a.shape, a.addressable_shards[0].data.shape) for a in jax.tree.leaves(state.params)}
    moments = [a for a in jax.tree.leaves(state.opt_state) if a.ndim]
    assert moments and {(a.shape, a.addressable_shards[0].data.shape) for a in moments} == cut
    if name == "gpt":
        pieces = {"data": 1, "fsdp": 8, "tensor": 8, "cube": 4}[mesh]

        def count(layout, array):
            if layout.multiplies:
                assert array.addressable_shards[0].data.nbytes * pieces == array.nbytes

        weights.map_weights(count, built(name).layout, state.params)


def shapes_of(text: str, collective: str) -> list[tuple[int, ...]]:
    """Result shapes of every such collective in compiled HLO, without their axes of size one, sorted."""
    found = []
    for result in re.findall(rf"= (.*?) {collective}(?:-start)?\(", text):
        for dims in re.findall(r"\w+\[([\d,]*)\]", result):
            found.append(tuple(sorted(int(d) for d in dims.split(",") if d and d != "1")))
    return found


def whole_weights(name: str, mesh: str) -> set[tuple[int, ...]]:
    """Shapes (one layer's, sorted) that a weight has when it multiplies: gathered over fsdp, cut over tensor."""
    partitioning, shapes = Partitioning(make_mesh(MESHES[mesh])), set()

    def add(layout, array):
        spec = partitioning.spec(layout.axes, array.shape, without=("fsdp",))
        local = jax.sharding.NamedSharding(partitioning.mesh, spec).shard_shape(array.shape)
        for depth in range(len(layout.stack) + 1):
            shapes.add(tuple(sorted(d for d in local[depth:] if d != 1)))

    weights.map_weights(add, built(name).layout, params_of(name))
    return shapes


def check_collectives(name: str, mesh: str, text: str) -> None:
    gathers = shapes_of(text, "all-gather")
    if mesh == "data":
        assert not gathers
    if mesh == "tensor":
        # Activations may be (two key/value heads do not divide by eight); a weight never is.
        whole = {
            tuple(sorted(a.shape[len(layout.stack) :]))
            for layout, a in _pairs(name)
            if layout.multiplies and math.prod(a.shape) > 8
        }
        assert not whole & set(gathers)
    if mesh == "fsdp":
        # Models made from code whose dims no rule names are whole on every device: there is nothing to gather.
        specs = jax.tree.leaves(Partitioning(make_mesh(MESHES[mesh])).specs(built(name).layout, params_of(name)))
        assert bool(gathers) == any(any(spec) for spec in specs)
        assert set(gathers) <= whole_weights(name, mesh), "only weights are gathered"
    assert not shapes_of(text, "all-to-all")


def _pairs(name: str):
    found = []
    weights.map_weights(lambda layout, array: found.append((layout, array)), built(name).layout, params_of(name))
    return found
