"""Every optimizer against float64 numpy from its paper, against optax's, and on a small problem."""

import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest

from jaxmodel.optim import OPTIMIZERS, make_optimizer
from jaxmodel.optim_options import OPTIMIZER_TAKES
from jaxmodel.options import Optimizer
from jaxmodel.weights import decays
from tests.optim.problem import learnt

LAYOUT = {
    "matrix": "embed -> mlp",
    "stack": "layers; embed -> mlp",
    "experts": "layers experts; mlp -> embed",
    "table": "vocab <- embed",
    "head": "embed -> vocab",
    "norm": "embed",
    "gains": "layers; embed",
}
SHAPES = {
    "matrix": (4, 3),
    "stack": (2, 4, 3),
    "experts": (2, 3, 3, 4),
    "table": (5, 4),
    "head": (4, 5),
    "norm": (4,),
    "gains": (2, 4),
}
FLAT = {"matrix", "table", "head", "norm"}  # optax knows no stacks
HIDDEN = {"matrix", "stack", "experts"}
STEPS = 3
SAID = {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-6, "momentum": 0.7, "weight_decay": 0.3}


def tree(seed, names: Any = LAYOUT) -> Any:
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return {name: arrays[name] for name in names}


def options_of(name, **changes: Any) -> Optimizer:
    said: dict[str, Any] = {option: value for option, value in SAID.items() if option in OPTIMIZER_TAKES[name]}
    said |= {"learning_rate": 0.02, "schedule": "constant", "clip_norm": None}
    return Optimizer(name=name, **(said | changes))


def run(optimizer, params, grads) -> Any:
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for grad in grads:
        updates, state = update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return params


# References, one matrix (or vector) at a time: (is hidden) -> step(t from 1, g, p) -> direction.


def sgd(hidden):
    return lambda t, g, p: g


def momentum(hidden, nesterov=False):
    kept = [0.0]

    def step(t, g, p):
        kept[0] = 0.7 * kept[0] + g
        return g + 0.7 * kept[0] if nesterov else kept[0]

    return step


def rmsprop(hidden):
    kept = [0.0]

    def step(t, g, p):
        kept[0] = 0.9 * kept[0] + 0.1 * g**2
        return g / (np.sqrt(kept[0]) + 1e-6)

    return step


def adagrad(hidden):
    kept = [0.0]

    def step(t, g, p):
        kept[0] = kept[0] + g**2
        return g / (np.sqrt(kept[0]) + 1e-6)

    return step


def adam(hidden):
    past = []

    def step(t, g, p):
        past.append(g)  # the averages as the weighted sums that they are
        mean = sum(0.2 * 0.8 ** (t - 1 - i) * g for i, g in enumerate(past)) / (1 - 0.8**t)
        square = sum(0.1 * 0.9 ** (t - 1 - i) * g**2 for i, g in enumerate(past)) / (1 - 0.9**t)
        return mean / (np.sqrt(square) + 1e-6)

    return step


def adafactor(hidden):
    """Algorithm 4 of the paper for matrices, 5 for vectors."""
    kept = [0.0, 0.0]

    def step(t, g, p):
        decay, square = 1 - t**-0.8, g**2 + 1e-6
        if g.ndim == 2:
            kept[0] = decay * kept[0] + (1 - decay) * square.sum(1)
            kept[1] = decay * kept[1] + (1 - decay) * square.sum(0)
            square = np.outer(kept[0], kept[1]) / kept[0].sum()
        else:
            square = kept[0] = decay * kept[0] + (1 - decay) * square
        u = g / np.sqrt(square)
        u = u / max(1, np.sqrt(np.mean(u**2)))
        return u * max(1e-3, np.sqrt(np.mean(p**2)))

    return step


def lion(hidden):
    kept = [0.0]

    def step(t, g, p):
        direction = np.sign(0.8 * kept[0] + 0.2 * g)
        kept[0] = 0.9 * kept[0] + 0.1 * g
        return direction

    return step


def muon(hidden):
    """Newton-Schulz steps leave the singular vectors alone, and map the singular values by a polynomial."""
    if not hidden:
        return adam(hidden)
    kept = [0.0]

    def step(t, g, p):
        kept[0] = 0.7 * kept[0] + 0.3 * g
        u, s, v = np.linalg.svd(0.7 * kept[0] + 0.3 * g, full_matrices=False)
        s = s / np.sqrt(np.sum(s**2))
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        return 0.2 * np.sqrt(max(g.shape)) * (u * s) @ v

    return step


REFERENCES = {
    "sgd": sgd,
    "momentum": momentum,
    "nesterov": functools.partial(momentum, nesterov=True),
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "adam": adam,
    "adamw": adam,
    "adafactor": adafactor,
    "lion": lion,
    "muon": muon,
}
# Newton-Schulz steps multiply small singular values, and the rounding errors in them, by up to 3.4445 ** 5 = 485.
TOLERANCE = {"muon": 485 * 2e-7 * 0.02}


def referred(name):
    """The params in float64 after `STEPS` updates, each matrix of a stack by itself."""
    params = {path: p.astype(np.float64) for path, p in tree(0).items()}
    grads = [{path: g.astype(np.float64) for path, g in tree(t).items()} for t in range(1, STEPS + 1)]
    decay = SAID["weight_decay"] if "weight_decay" in OPTIMIZER_TAKES[name] else 0.0
    for path, p in params.items():
        stacked = len(LAYOUT[path].partition(";")[0].split()) if ";" in LAYOUT[path] else 0
        for index in np.ndindex(p.shape[:stacked]):
            step = REFERENCES[name](path in HIDDEN)
            for t, grad in enumerate(grads, 1):
                direction = step(t, grad[path][index], p[index])
                decayed = decay * p[index] if "-" in LAYOUT[path] else 0.0
                p[index] = p[index] - 0.02 * (direction + decayed)
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_steps_are_those_of_float64(name):
    found = run(make_optimizer(options_of(name), STEPS, LAYOUT), tree(0), [tree(t) for t in range(1, STEPS + 1)])
    wanted = referred(name)
    for path in LAYOUT:
        np.testing.assert_allclose(found[path], wanted[path], rtol=0, atol=TOLERANCE.get(name, 1e-6))
        assert np.max(np.abs(wanted[path] - tree(0)[path])) > 0.01  # it moved


OPTAX = {
    "sgd": optax.identity(),
    "momentum": optax.trace(0.7),
    "nesterov": optax.trace(0.7, nesterov=True),
    "rmsprop": optax.scale_by_rms(0.9, 1e-6, eps_in_sqrt=False),
    "adagrad": optax.scale_by_rss(0.0, 0.0),
    "adam": optax.scale_by_adam(0.8, 0.9, 1e-6),
    "adamw": optax.scale_by_adam(0.8, 0.9, 1e-6),
    "adafactor": optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=2, epsilon=1e-6),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(1e-3),
    ),
    "lion": optax.scale_by_lion(0.8, 0.9),
}


@pytest.mark.parametrize("name", OPTAX)
def test_steps_are_those_of_optax(name):
    layout = {path: LAYOUT[path] for path in FLAT}
    decay = SAID["weight_decay"] if "weight_decay" in OPTIMIZER_TAKES[name] else 0.0
    theirs = optax.chain(
        OPTAX[name], optax.add_decayed_weights(decay, lambda params: decays(layout, params)), optax.scale(-0.02)
    )
    options = options_of(name, **({"epsilon": 0.0} if name == "adagrad" else {}))
    grads = [tree(t, FLAT) for t in range(1, STEPS + 1)]
    found, wanted = (
        run(optimizer, tree(0, FLAT), grads) for optimizer in (make_optimizer(options, STEPS, layout), theirs)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7), found, wanted)


def test_what_each_keeps():
    """Only what it needs: a row and a column for Adafactor's matrices, no squares for Muon's."""
    states: dict[str, Any] = {
        name: make_optimizer(options_of(name), STEPS, LAYOUT).init(tree(0)) for name in OPTIMIZERS
    }
    kept = {
        name: {
            key: {path for path in LAYOUT if each[path] is not None} for key, each in state.items() if key != "count"
        }
        for name, state in states.items()
    }
    every, outer = set(LAYOUT), set(LAYOUT) - HIDDEN
    matrices = HIDDEN | {"table", "head"}
    assert kept == {
        "sgd": {},
        "momentum": {"mean": every},
        "nesterov": {"mean": every},
        "rmsprop": {"square": every},
        "adagrad": {"square": every},
        "adam": {"mean": every, "square": every},
        "adamw": {"mean": every, "square": every},
        "adafactor": {"rows": matrices, "columns": matrices, "square": every - matrices},
        "lion": {"mean": every},
        "muon": {"mean": every, "square": outer},
    }
    state = states["adafactor"]
    assert state["rows"]["experts"].shape == (2, 3, 3) and state["columns"]["experts"].shape == (2, 3, 4)


# What is left of the loss after 200 steps with nothing said but the optimizer; Lion's rate is meant for longer runs.
LEFT = dict.fromkeys(OPTIMIZERS, 0.35) | {"lion": 0.75}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_learns_by_its_defaults(name):
    first, last = learnt(Optimizer(name=name))
    assert last < LEFT[name] * first
