"""Every schedule against its closed form in float64, after a warmup and without, and what does not fit a run."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.errors import InputError
from jaxmodel.optim import SCHEDULES, effective, make_optimizer, make_schedule
from jaxmodel.options import Optimizer

LEFT = 60  # steps after the warmup


def cosine(way):
    return math.cos(way * math.pi / 2) ** 2


def fallen(to, height):
    return to + (1 - to) * height


def restarts(s):
    """Cycles of 8, 16, 32 steps, and the 4 that are left of the fourth."""
    start, length = next((a, b) for a, b in ((0, 8), (8, 16), (24, 32), (56, 64)) if s < a + b)
    return fallen(0.2, cosine((s - start) / length))


def triangles(s):
    """Cycles of 12 steps, each half as high as the last."""
    up = (s % 12) / 6
    return fallen(0.1, min(up, 2 - up) * 0.5 ** (s // 12))


# schedule, its options, fraction of the peak at s steps after the warmup
ROWS = [
    ("constant", {}, lambda s: 1),
    ("linear", {}, lambda s: fallen(0.1, 1 - s / 60)),
    ("linear", {"final_learning_rate": 0.0, "decay_steps": 40}, lambda s: max(0, 1 - s / 40)),
    ("cosine", {}, lambda s: fallen(0.1, cosine(s / 60))),
    ("cosine", {"final_learning_rate": 0.3, "decay_steps": 50}, lambda s: fallen(0.3, cosine(min(s / 50, 1)))),
    ("cosine_restarts", {}, lambda s: fallen(0.1, cosine(s % 15 / 15))),
    ("cosine_restarts", {"cycle_steps": 8, "cycle_growth": 2.0, "final_learning_rate": 0.2}, restarts),
    ("wsd", {}, lambda s: min(1, (60 - s) / 12)),
    ("wsd", {"decay_steps": 30, "final_learning_rate": 0.5}, lambda s: fallen(0.5, min(1, (60 - s) / 30))),
    ("inverse_sqrt", {"decay_steps": 5}, lambda s: (1 + s / 5) ** -0.5),
    ("exponential", {}, lambda s: 0.1 ** (s / 60)),
    ("exponential", {"decay_rate": 0.5, "decay_steps": 7}, lambda s: 2 ** (-s / 7)),
    ("step", {}, lambda s: 0.1 ** (s // 20)),
    ("step", {"decay_rate": 0.5, "decay_steps": 7}, lambda s: 0.5 ** (s // 7)),
    ("one_cycle", {}, lambda s: 1 - 24 / 25 * cosine(s / 18) if s < 18 else fallen(4e-6, cosine((s - 18) / 42))),
    (
        "one_cycle",
        {"rise_steps": 30, "final_learning_rate": 0.1},
        lambda s: 1 - 24 / 25 * cosine(s / 30) if s < 30 else fallen(0.1, cosine((s - 30) / 30)),
    ),
    ("cyclic", {}, lambda s: fallen(0.1, 1 - abs(s % 15 / 7.5 - 1))),
    ("cyclic", {"cycle_steps": 12, "decay_rate": 0.5}, triangles),
    ("plateau", {}, lambda s: 1),
]


@pytest.mark.parametrize("warmup", [0, 6])
@pytest.mark.parametrize(("name", "said", "shape"), ROWS, ids=[f"{row[0]}-{len(row[1])}" for row in ROWS])
def test_the_rate_is_its_closed_form(name, said, shape, warmup):
    steps = warmup + LEFT
    options = Optimizer(learning_rate=2.0, warmup=warmup, schedule=name, **said)
    found = jax.jit(jax.vmap(make_schedule(options, steps)))(jnp.arange(steps))
    wanted = [2 * shape(0) * (step + 1) / warmup for step in range(warmup)] + [2 * shape(s) for s in range(LEFT)]
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6)


def test_every_schedule_has_a_row():
    assert {row[0] for row in ROWS} == set(SCHEDULES)


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd", "one_cycle"])
def test_the_final_rate_is_reached_and_kept(name):
    rate = make_schedule(Optimizer(learning_rate=4.0, schedule=name, final_learning_rate=0.25), 20)
    np.testing.assert_allclose([rate(20), rate(99)], 1.0, rtol=1e-6)


def test_the_inverse_root_of_a_warmup_is_that_of_the_first_transformer():
    rate = make_schedule(Optimizer(learning_rate=1.0, schedule="inverse_sqrt", warmup=8), 50)
    np.testing.assert_allclose(
        [rate(i) for i in range(50)], [min((i + 1) / 8, (max(i, 8) / 8) ** -0.5) for i in range(50)], rtol=1e-6
    )


@pytest.mark.parametrize("length", [7, 49, 123])
def test_steps_are_taken_on_time(length):
    """In float32, 49 * (1 / 49) is below 1: whole steps are counted in whole numbers."""
    rate = jax.jit(
        jax.vmap(make_schedule(Optimizer(schedule="step", learning_rate=1.0, decay_rate=0.9, decay_steps=length), 400))
    )
    np.testing.assert_allclose(rate(jnp.arange(400)), 0.9 ** (np.arange(400) // length), rtol=1e-5)


def plateaued(losses, **said):
    """The rates that the updates with these losses are made with."""
    options = Optimizer(name="sgd", learning_rate=1.0, schedule="plateau", clip_norm=None, **said)
    optimizer, schedule = make_optimizer(options, 1000, {"w": "dim"}), make_schedule(options, 1000)
    params = {"w": jnp.zeros(1)}
    state, update, rates = optimizer.init(params), jax.jit(optimizer.update), []
    for step, loss in enumerate(losses):
        updates, state = update({"w": jnp.ones(1)}, state, params, value=loss)
        rates.append(float(effective(schedule(step), state)))
        assert updates["w"] == -np.float32(rates[-1])
    return rates


def test_a_plateau_lowers_the_rate():
    """Windows of 2; the best is the first, then 3 windows pass; one cools down, then 3 more; never below 0.04."""
    rates = plateaued([5.0] * 30, window=2, patience=3, cooldown=1, decay_rate=0.2, final_learning_rate=0.03)
    falls = {7: 0.2, 15: 0.04, 23: 0.03}  # the update that ends a window is made with the rate it leads to
    wanted, rate = [], 1.0
    for i in range(30):
        rate = falls.get(i, rate)
        wanted.append(rate)
    np.testing.assert_allclose(rates, wanted, rtol=1e-6)


def test_while_the_loss_falls_so_does_not_the_rate():
    assert plateaued(0.99 ** np.arange(30), window=1, patience=1) == [1.0] * 30
    noisy = 10 - np.arange(40) * 0.1 + np.tile([0.0, 3.0], 20)  # every other loss is worse than the last
    assert plateaued(noisy, window=2, patience=1) == [1.0] * 40
    assert plateaued(noisy, window=1, patience=1)[-1] < 1


def test_a_batch_without_targets_is_no_better_loss():
    rates = plateaued([5.0, math.nan, 4.0, 3.0, 2.0], window=1, patience=2)
    assert rates == [1.0] * 5


def test_a_plateau_asks_for_the_loss():
    optimizer = make_optimizer(Optimizer(schedule="plateau"), 1000, {"w": "dim"})
    params = {"w": jnp.zeros(1)}
    with pytest.raises(InputError, match=r"optimizer\.schedule=plateau watches the loss: .*value=loss"):
        optimizer.update(params, optimizer.init(params), params)
    assert effective(0.5, optimizer.init(params)) == 0.5 == effective(0.5, ()) == effective(0.5, {})
