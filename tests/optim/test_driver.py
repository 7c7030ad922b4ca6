"""What all optimizers share: clipping, decay, learning rates by path, what is kept, and mistakes in one line."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmodel.errors import InputError
from jaxmodel.optim import OPTIMIZERS, make_optimizer, make_schedule, state_bytes
from jaxmodel.options import Optimizer
from jaxmodel.weights import LowRank, partition

LAYOUT = {"w": "embed -> mlp", "table": "vocab <- embed", "scale": "embed", "held": "frozen: embed -> mlp"}
OPTIONS = Optimizer(learning_rate=0.02, warmup=2, weight_decay=0.3, clip_norm=0.5, beta1=0.8, beta2=0.9, epsilon=1e-6)
STEPS = 5


def tree(seed):
    rng = np.random.default_rng(seed)
    shapes = {"w": (4, 3), "table": (5, 4), "scale": (4,), "held": (4, 3)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def run(optimizer, params, grads, layout: Any = LAYOUT) -> tuple[Any, Any]:
    """The trainable part after one update for each of the gradients."""
    trainable, _ = partition(params, layout)
    state = optimizer.init(trainable)
    update = jax.jit(optimizer.update)
    for grad in grads:
        updates, state = update(partition(grad, layout)[0], state, trainable)
        trainable = optax.apply_updates(trainable, updates)
    return trainable, state


def direction(grads, params=None, layout: Any = LAYOUT, **said: Any) -> Any:
    """What is left of the gradients after clipping: plain SGD moves by them."""
    said = {"clip_norm": None} | said
    options = Optimizer(name="sgd", learning_rate=1.0, schedule="constant", **said)
    params = tree(0) if params is None else params
    after, _ = run(make_optimizer(options, 1, layout), params, [grads], layout)
    return jax.tree.map(lambda a, b: np.asarray(b) - np.asarray(a), after, partition(params, layout)[0])


def test_adamw_warmed_up_and_clipped_is_that_of_float64():
    names = ("w", "table", "scale")
    p = {name: np.asarray(tree(0)[name], np.float64) for name in names}
    mean, square = ({name: np.zeros_like(p[name]) for name in names} for _ in range(2))
    for t in range(STEPS):
        grads = {name: np.asarray(tree(t + 1)[name], np.float64) for name in names}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        warm = min(1.0, (t + 1) / 2)
        fall = 0.5 * (1 - np.cos(np.pi * max(0.0, (t - 2) / (STEPS - 2))))
        rate = 0.02 * min(warm, 1 - 0.9 * fall)
        for name in names:
            g = grads[name] * min(1.0, 0.5 / norm)
            mean[name] = 0.8 * mean[name] + 0.2 * g
            square[name] = 0.9 * square[name] + 0.1 * g**2
            step = mean[name] / (1 - 0.8 ** (t + 1)) / (np.sqrt(square[name] / (1 - 0.9 ** (t + 1))) + 1e-6)
            p[name] = p[name] - rate * (step + (0.0 if name == "scale" else 0.3) * p[name])
    found, state = run(make_optimizer(OPTIONS, STEPS, LAYOUT), tree(0), [tree(t + 1) for t in range(STEPS)])
    for name in names:
        np.testing.assert_allclose(found[name], p[name], rtol=2e-6, atol=2e-7)
    assert state["count"] == STEPS and set(state) == {"count", "mean", "square"}  # as checkpoints have them


# Clipping


def test_large_gradients_are_scaled_to_the_norm_and_small_ones_left_alone():
    grads = tree(1)
    norm = np.sqrt(sum(np.sum(np.square(grads[name])) for name in ("w", "table", "scale")))
    for name, g in direction(grads, clip_norm=0.5).items():
        if g is not None:
            np.testing.assert_allclose(g, grads[name] * 0.5 / norm, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, direction(grads, clip_norm=99.0), direction(grads))


def test_values_are_cut():
    grads = tree(1)
    found = direction(grads, clip_value=0.3)
    for name in ("w", "table", "scale"):
        np.testing.assert_allclose(found[name], np.clip(grads[name], -0.3, 0.3), atol=1e-6)


def test_adaptive_clipping_is_by_unit_of_each_matrix():
    """Brock et al. 2021: of each output's weights, of a table's rows, of a layer's vector."""
    layout = {"stack": "layers; embed -> mlp", "table": "vocab <- embed", "gains": "layers; embed"}
    rng = np.random.default_rng(0)
    shapes = {"stack": (2, 4, 3), "table": (5, 4), "gains": (2, 4)}
    params, grads = ({n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()} for _ in range(2))
    params["gains"][0] = 0  # measured as if of length 1e-3
    grads["stack"][0] *= 1e-3  # short enough already
    found = direction(grads, params, layout, clip_adaptive=0.1)
    units = {
        "stack": [(layer, slice(None), unit) for layer in range(2) for unit in range(3)],
        "table": [(row,) for row in range(5)],
        "gains": [(layer,) for layer in range(2)],
    }
    for name, indices in units.items():
        for index in indices:
            most = 0.1 * max(np.linalg.norm(params[name][index]), 1e-3)
            g = grads[name][index]
            wanted = g * min(1, most / np.linalg.norm(g))
            np.testing.assert_allclose(found[name][index], wanted, rtol=1e-4, atol=5e-7)
    assert np.linalg.norm(found["gains"][0]) < 1.01e-4


def test_the_units_of_an_adapter_are_columns_of_its_factors():
    params = {"t": LowRank(None, jnp.ones((4, 2)), jnp.ones((2, 5)), table=True)}
    grads = jax.tree.map(jnp.ones_like, params)
    found = direction(grads, params, {"t": "vocab <- embed"}, clip_adaptive=0.1)
    np.testing.assert_allclose(found["t"].a, 0.1, rtol=1e-5)  # each column is as long as its weights
    np.testing.assert_allclose(found["t"].b, 0.1, rtol=1e-5)


# Decay, precision, what trains


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adam"])
def test_only_weights_with_an_arrow_decay(name):
    options = Optimizer(name=name, learning_rate=0.5, weight_decay=0.1, schedule="constant")
    before = tree(0)
    after, _ = run(make_optimizer(options, STEPS, LAYOUT), before, [jax.tree.map(jnp.zeros_like, before)])
    np.testing.assert_array_equal(after["scale"], before["scale"])
    for path in ("w", "table"):
        np.testing.assert_allclose(after[path], 0.95 * before[path], rtol=1e-6)
    assert after["held"] is None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_what_trains_has_a_state(name):
    params = {"w": LowRank(jnp.ones((4, 3)), jnp.ones((4, 2)), jnp.zeros((2, 3)))}
    layout = {"w": "embed -> mlp"}
    trainable, _ = partition(params, layout)
    optimizer = make_optimizer(Optimizer(name=name), STEPS, layout)
    state: Any = optimizer.init(trainable)
    assert all(state[key]["w"].base is None for key in state if key != "count")
    updates: Any
    updates, after = optimizer.update(jax.tree.map(jnp.ones_like, trainable), state, trainable)
    assert updates["w"].base is None and np.all(np.asarray(updates["w"].a) < 0)
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_averages_are_float32_whatever_the_weights(name):
    params = {"w": jnp.ones((4, 3), jnp.bfloat16)}
    optimizer = make_optimizer(Optimizer(name=name), STEPS, {"w": "embed -> mlp"})
    found: Any = optimizer.update(params, optimizer.init(params), params)
    updates, state = found
    assert updates["w"].dtype == jnp.bfloat16
    assert all(array.dtype == jnp.float32 for array in jax.tree.leaves(state) if array.ndim)


# Learning rates by path


def test_learning_rates_by_path_the_first_that_matches():
    scaled = Optimizer(name="sgd", learning_rate=1.0, clip_norm=None, scale=("tab*:0.5", "w:3", "t*:9"))
    grads, found = tree(1), {}
    before, _ = partition(tree(0), LAYOUT)
    after, _ = run(make_optimizer(scaled, STEPS, LAYOUT), tree(0), [grads])
    for name in ("w", "table", "scale"):
        found[name] = np.mean((before[name] - after[name]) / grads[name])
    assert found == pytest.approx({"w": 3, "table": 0.5, "scale": 1}, rel=1e-5)


def test_a_learning_rate_of_zero_freezes():
    options = dataclasses.replace(OPTIONS, scale=("w:0",))
    grads = [tree(t) for t in range(1, 4)]
    after, state = run(make_optimizer(options, STEPS, LAYOUT), tree(0), grads)
    np.testing.assert_array_equal(after["w"], tree(0)["w"])
    assert state["mean"]["w"] is None and state["square"]["w"] is None
    # The others train as if it were not there: it does not count in the norm that is clipped either.
    alone = {**LAYOUT, "w": "frozen: embed -> mlp"}
    wanted, _ = run(make_optimizer(OPTIONS, STEPS, alone), tree(0), grads, alone)
    for name in ("table", "scale"):
        np.testing.assert_array_equal(after[name], wanted[name])
        assert np.any(after[name] != tree(0)[name])


def test_an_adapter_goes_by_the_path_of_its_weight():
    params = {"mlp": {"up": LowRank(None, jnp.ones((4, 2)), jnp.ones((2, 3)))}, "head": jnp.ones((3, 2))}
    layout = {"mlp": {"up": "embed -> mlp"}, "head": "mlp -> embed"}
    options = Optimizer(name="sgd", learning_rate=1.0, clip_norm=None, scale=("mlp/*:0.25",))
    optimizer = make_optimizer(options, STEPS, layout)
    updates: Any = optimizer.update(params, optimizer.init(params), params)[0]
    assert np.all(updates["mlp"]["up"].a == -0.25) and np.all(updates["mlp"]["up"].b == -0.25)
    assert np.all(updates["head"] == -1)


# Memory


def test_bytes_of_the_state():
    params = {"w": jnp.zeros((6, 512, 512)), "bias": jnp.zeros((6, 512))}
    layout = {"w": "layers; embed -> mlp", "bias": "layers; mlp"}

    def size(name, **said):
        return state_bytes(jax.eval_shape(make_optimizer(Optimizer(name=name, **said), 9, layout).init, params))

    matrix, vector = 6 * 512 * 512, 6 * 512
    count, vectors = 4, 4 * vector
    assert size("sgd") == count
    assert size("lion") == count + 4 * matrix + vectors
    assert size("adamw") == count + 2 * (4 * matrix + vectors)
    assert size("adamw", state_dtype="bfloat16") == count + 2 * (2 * matrix + vectors)
    assert size("adamw", state_dtype="int8") == count + 2 * (matrix + 4 * matrix // 256 + vectors)
    assert size("adafactor") == count + 2 * 4 * vector + vectors
    assert size("muon", state_dtype="int8") == count + matrix + 4 * matrix // 256 + 2 * vectors
    assert size("adamw", scale=("w:0",)) == count + 2 * vectors


# Mistakes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "adamww"}, ["optimizer.name=adamww", "did you mean adamw?"]),
        ({"schedule": "cosin"}, ["optimizer.schedule=cosin", "did you mean cosine?"]),
        ({"state_dtype": "int4"}, ["optimizer.state_dtype=int4", "float32, bfloat16, int8"]),
        (
            {"momentum": 0.9},
            [
                "optimizer.momentum=0.9: the optimizer adamw does not take it",
                "it takes learning_rate, beta1, beta2, epsilon, weight_decay, state_dtype",
                "momentum is for momentum, nesterov, muon",
            ],
        ),
        ({"name": "adam", "weight_decay": 0.1}, ["optimizer.weight_decay=0.1", "adam does not", "is for sgd"]),
        ({"name": "sgd", "state_dtype": "int8"}, ["optimizer.state_dtype=int8: the optimizer sgd does not"]),
        (
            {"cycle_steps": 3},
            [
                "optimizer.cycle_steps=3: the schedule cosine does not take it",
                "it takes final_learning_rate, decay_steps",
                "cycle_steps is for cosine_restarts, cyclic",
            ],
        ),
        (
            {"schedule": "constant", "decay_rate": 0.5},
            ["optimizer.decay_rate=0.5: the schedule constant", "it takes none of these options"],
        ),
        ({"beta2": 1.0}, ["optimizer.beta2=1.0: must be below 1"]),
        ({"name": "nesterov", "momentum": 1.0}, ["optimizer.momentum=1.0: must be below 1"]),
        ({"clip_norm": 0.0}, ["optimizer.clip_norm=0.0", "none"]),
        ({"clip_value": 0.0}, ["optimizer.clip_value=0.0", "none"]),
        ({"clip_adaptive": -1.0}, ["optimizer.clip_adaptive=-1.0", "at least 0"]),
        ({"schedule": "step", "decay_rate": 0.0}, ["optimizer.decay_rate=0.0", "above 0"]),
        ({"schedule": "plateau", "decay_rate": 1.0}, ["optimizer.decay_rate=1.0", "below 1"]),
        ({"warmup": 10}, ["optimizer.warmup=10 takes up all of train.steps=10"]),
        (
            {"decay_steps": 11},
            ["optimizer.decay_steps=11 with train.steps=10 is longer than the run", "lower optimizer.decay_steps"],
        ),
        (
            {"warmup": 4, "decay_steps": 7},
            ["optimizer.decay_steps=7", "longer than the 6 that optimizer.warmup=4 leaves", "raise train.steps"],
        ),
        ({"schedule": "cyclic", "cycle_steps": 11}, ["optimizer.cycle_steps=11", "longer than the run"]),
        ({"schedule": "one_cycle", "rise_steps": 10}, ["optimizer.rise_steps=10", "is all of the run"]),
        (
            {"schedule": "plateau", "patience": 5, "window": 2},
            ["optimizer.patience=5 (and one) * optimizer.window=2", "longer than the run", "lower one"],
        ),
        ({"scale": ("w",)}, ["optimizer.scale=w: must be a path or a glob, a colon and a number", "stack/*:0.1"]),
        ({"scale": ("w:-1",)}, ["optimizer.scale=w:-1", "at least 0"]),
        ({"scale": ("w:inf",)}, ["optimizer.scale=w:inf"]),
        ({"scale": ("tabel:2",)}, ["optimizer.scale=tabel:2 matches no weight", "did you mean table:2?"]),
        ({"scale": ("stack/*:0",)}, ["scale=stack/*:0 matches no weight", "are held, scale, table, w"]),
        ({"scale": ("w:0", "*:0")}, ["optimizer.scale=w:0,*:0 freezes every weight"]),
    ],
)  # fmt: skip
def test_mistakes_name_the_flag(change, words):
    with pytest.raises(InputError) as error:
        make_optimizer(Optimizer(**change), 10, LAYOUT)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"decay_steps": 10},
        {"warmup": 4, "decay_steps": 6},
        {"warmup": 9},
        {"schedule": "one_cycle", "rise_steps": 9},
        {"schedule": "one_cycle", "warmup": 9},
        {"schedule": "plateau"},
        {"schedule": "plateau", "patience": 4, "window": 2},
        {"name": "sgd", "weight_decay": 0.1, "schedule": "cosine_restarts", "cycle_steps": 10},
    ],
)
def test_what_just_fits_is_fine(change):
    rate = make_schedule(Optimizer(learning_rate=1.0, **change), 10)
    assert all(0 <= float(rate(step)) <= 1 for step in range(10))
