"""AdamW against float64 numpy and optax, what decays and what does not, and schedules at their corners."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmodel.config import fields
from jaxmodel.errors import InputError
from jaxmodel.optim import OPTIMIZERS, SCHEDULES, global_norm, make_optimizer, make_schedule
from jaxmodel.options import Optimizer
from jaxmodel.weights import LowRank, decays, partition

LAYOUT = {"w": "embed -> mlp", "table": "vocab <- embed", "scale": "embed", "held": "frozen: embed -> mlp"}
OPTIONS = Optimizer(
    learning_rate=0.02, warmup=2, weight_decay=0.3, clip_norm=0.5, beta1=0.8, beta2=0.9, epsilon=1e-6
)
STEPS = 5


def tree(seed):
    rng = np.random.default_rng(seed)
    shapes = {"w": (4, 3), "table": (5, 4), "scale": (4,), "held": (4, 3)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def run(optimizer, params, grads) -> tuple[Any, Any]:
    """The trainable part after one update for each of the gradients."""
    trainable, _ = partition(params, LAYOUT)
    state = optimizer.init(trainable)
    update = jax.jit(optimizer.update)
    for grad in grads:
        updates, state = update(partition(grad, LAYOUT)[0], state, trainable)
        trainable = optax.apply_updates(trainable, updates)
    return trainable, state


def test_adamw_is_that_of_float64():
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
    assert state["count"] == STEPS


def test_adamw_is_that_of_optax():
    schedule = make_schedule(OPTIONS, STEPS)
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(schedule, 0.8, 0.9, 1e-6, weight_decay=0.3, mask=lambda params: decays(LAYOUT, params)),
    )
    grads = [tree(t + 1) for t in range(STEPS)]
    found, _ = run(make_optimizer(OPTIONS, STEPS, LAYOUT), tree(0), grads)
    wanted, _ = run(optimizer, tree(0), grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found, wanted)


def test_small_gradients_are_not_clipped():
    never = dataclasses.replace(OPTIONS, clip_norm=None)
    grads = [jax.tree.map(lambda g: 0.01 * g, tree(1))]
    found, _ = run(make_optimizer(OPTIONS, STEPS, LAYOUT), tree(0), grads)
    wanted, _ = run(make_optimizer(never, STEPS, LAYOUT), tree(0), grads)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_only_weights_with_an_arrow_decay():
    options = Optimizer(learning_rate=0.5, weight_decay=0.1, schedule="constant")
    still = jax.tree.map(jnp.zeros_like, tree(0))
    before = tree(0)
    after, _ = run(make_optimizer(options, STEPS, LAYOUT), before, [still])
    np.testing.assert_array_equal(after["scale"], before["scale"])
    for name in ("w", "table"):
        np.testing.assert_allclose(after[name], 0.95 * before[name], rtol=1e-6)
    assert after["held"] is None


def test_only_what_trains_has_a_state():
    params = {"w": LowRank(jnp.ones((4, 3)), jnp.ones((4, 2)), jnp.zeros((2, 3)))}
    layout = {"w": "embed -> mlp"}
    trainable, _ = partition(params, layout)
    optimizer = make_optimizer(OPTIONS, STEPS, layout)
    state: Any = optimizer.init(trainable)
    assert jax.tree.structure(state["mean"]) == jax.tree.structure(trainable)
    updates: Any
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, trainable), state, trainable)
    assert updates["w"].base is None and np.all(np.asarray(updates["w"].a) < 0)


def test_averages_are_float32_whatever_the_weights():
    params = {"w": jnp.ones((4, 3), jnp.bfloat16)}
    optimizer = make_optimizer(OPTIONS, STEPS, {"w": "embed -> mlp"})
    found: Any = optimizer.update(params, optimizer.init(params), params)
    updates, state = found
    assert updates["w"].dtype == jnp.bfloat16
    assert state["mean"]["w"].dtype == state["square"]["w"].dtype == jnp.float32


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedules_at_their_corners(name):
    options = Optimizer(learning_rate=2.0, warmup=4, schedule=name, final_learning_rate=0.25)
    rate = jax.jit(make_schedule(options, 20))
    rates = np.asarray([rate(step) for step in range(25)])
    np.testing.assert_allclose(rates[:5], [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-6)
    halfway, final = 1.25, 0.5
    np.testing.assert_allclose(rates[12], halfway, rtol=1e-6)
    np.testing.assert_allclose(rates[20:], final, rtol=1e-6)
    assert np.all(np.diff(rates[4:]) <= 0)


def test_without_warmup_the_first_step_is_at_the_peak():
    assert make_schedule(Optimizer(learning_rate=3.0), 10)(0) == 3.0


def test_a_cosine_is_slow_at_its_ends():
    options = Optimizer(learning_rate=1.0, final_learning_rate=0.0)
    rate = make_schedule(options, 4)
    np.testing.assert_allclose([rate(i) for i in range(5)], np.cos(np.arange(5) * np.pi / 8) ** 2, atol=1e-7)


def test_every_choice_is_known_and_every_known_one_a_choice():
    assert fields(Optimizer)["name"].choices == tuple(OPTIMIZERS)
    assert set(fields(Optimizer)["schedule"].choices or ()) == set(SCHEDULES)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"name": "adamv"}, "optimizer.name=adamv.*adamw"),
        ({"schedule": "cosin"}, "optimizer.schedule=cosin.*cosine"),
        ({"warmup": 10}, "optimizer.warmup=10.*train.steps=10"),
        ({"clip_norm": 0.0}, "optimizer.clip_norm"),
    ],
)
def test_bad_options_name_the_flag(change, words):
    with pytest.raises(InputError, match=words):
        make_optimizer(dataclasses.replace(OPTIONS, **change), 10, LAYOUT)


def test_global_norm():
    assert global_norm({"a": jnp.asarray([3.0]), "b": None, "c": jnp.asarray([[4.0]])}) == 5.0
    assert global_norm({}) == 0.0
