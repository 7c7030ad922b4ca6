"""Rotary positions: what turns, by how much, and how it is made to reach further."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.models.parts import SCALINGS as NAMES
from jaxmodel.models.parts import Attention, Rope
from jaxmodel.nn.rope import SCALINGS, attention_factor, frequencies, rotate
from tests.contract import relative

LONG = {
    "linear": Rope(scaling="linear", factor=4.0),
    "dynamic": Rope(scaling="dynamic", factor=4.0),
    "llama3": Rope(scaling="llama3", factor=8.0, original_length=64),
    "yarn": Rope(scaling="yarn", factor=4.0, original_length=64, beta_fast=8.0),
    "longrope": Rope(
        scaling="longrope",
        factor=4.0,
        original_length=64,
        short_factors=(1.0, 1.1, 1.2, 1.3),
        long_factors=(1, 2, 3, 4),
    ),
    "proportional": Rope(scaling="proportional", factor=2.0, fraction=0.5),
}


def turn(x, positions, rope, theta=100.0):
    return rotate(x, jnp.asarray([positions]), Attention(num_heads=1, rope_theta=theta, rope=rope), 64)


def of(rope, length=1, theta=100.0, turned=8):
    found = frequencies(rope, theta, turned, 64, jnp.full((1, 1, 1), length))
    return np.asarray(found, np.float64).reshape(-1)


@pytest.mark.parametrize("rope", [Rope(), Rope(interleaved=True), Rope(fraction=0.5), LONG["llama3"]])
def test_rotation_keeps_lengths_and_depends_on_distance_only(rope):
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    near, far = (jnp.sum(turn(q, [a], rope) * turn(k, [b], rope)) for a, b in ((3, 7), (23, 27)))
    assert relative(near, far) < 1e-5
    assert relative(jnp.linalg.norm(turn(q, [7], rope)), jnp.linalg.norm(q)) < 1e-6


def test_each_pair_turns_by_its_own_angle():
    x = jax.random.normal(jax.random.key(0), (1, 2, 1, 8))
    angles = np.array([3, 5])[:, None] * 100.0 ** -(np.arange(4) / 4)
    for rope, pairs in ((Rope(), np.arange(8).reshape(2, 4)), (Rope(interleaved=True), np.arange(8).reshape(4, 2).T)):
        low, high = np.asarray(x, np.float64)[0, :, 0][:, pairs].transpose(1, 0, 2)
        whole = (low + 1j * high) * np.exp(1j * angles)
        found = np.asarray(turn(x, [3, 5], rope))[0, :, 0][:, pairs].transpose(1, 0, 2)
        assert relative(found, np.stack([whole.real, whole.imag])) < 1e-6


def test_a_fraction_leaves_the_rest_alone():
    x = jax.random.normal(jax.random.key(0), (1, 1, 1, 8))
    found = turn(x, [9], Rope(fraction=0.5))
    assert jnp.array_equal(found[..., 4:], x[..., 4:])
    assert jnp.array_equal(found[..., :4], turn(x[..., :4], [9], Rope()))


def test_scalings_by_their_formulas():
    assert set(SCALINGS) == set(NAMES) == {"none", *LONG}
    plain = 100.0 ** -(np.arange(4) / 4)
    assert relative(of(Rope()), plain) < 1e-6
    assert relative(of(LONG["linear"]), plain / 4) < 1e-6
    assert relative(of(LONG["dynamic"], 64), plain) < 1e-6
    # Twice as long: the base grows by (4 * 2 - 3) ** (8 / 6).
    grown = 100.0 * 5 ** (8 / 6)
    assert relative(of(LONG["dynamic"], 128), grown ** -(np.arange(4) / 4)) < 1e-6
    turns = 64 * plain / (2 * math.pi)  # 10.2, 3.2, 1.02, 0.3: kept, by degrees, nearly all and all stretched
    kept = np.clip((turns - 1) / 3, 0, 1)
    assert relative(of(LONG["llama3"]), plain * (kept + (1 - kept) / 8)) < 1e-6
    assert relative(of(LONG["longrope"], 64), plain / [1.0, 1.1, 1.2, 1.3]) < 1e-6
    assert relative(of(LONG["longrope"], 65), plain / [1, 2, 3, 4]) < 1e-6
    assert relative(of(LONG["proportional"]), plain / 2 * [1, 1, 0, 0]) < 1e-6


def test_yarn_stretches_slow_turns_alone():
    ratio = of(LONG["yarn"], turned=32) / of(Rope(), turned=32)
    turns = 64 * of(Rope(), turned=32) / (2 * math.pi)
    assert np.all(np.diff(ratio) <= 1e-6)
    assert relative(ratio[turns > 12], 1.0) < 1e-6 and relative(ratio[turns < 0.7], 0.25) < 1e-6


def test_longer_contexts_sharpen_attention():
    assert attention_factor(LONG["yarn"], 64) == pytest.approx(1 + 0.1 * math.log(4))
    assert attention_factor(LONG["longrope"], 64) == pytest.approx(math.sqrt(1 + math.log(4) / math.log(64)))
    assert attention_factor(Rope(scaling="yarn", factor=4.0, attention_factor=1.5), 64) == 1.5
    assert attention_factor(LONG["llama3"], 64) == 1.0
    x = jax.random.normal(jax.random.key(0), (1, 1, 1, 8))
    assert relative(turn(x, [0], Rope(attention_factor=1.5)), 1.5 * x) < 1e-6


def test_a_row_is_as_long_as_itself():
    rope, x = LONG["dynamic"], jax.random.normal(jax.random.key(0), (2, 3, 1, 8))
    attention = Attention(num_heads=1, rope_theta=100.0, rope=rope)
    positions = jnp.asarray([[0, 1, 2], [100, 101, 102]])
    together = rotate(x, positions, attention, 64)
    assert jnp.array_equal(together[:1], rotate(x[:1], positions[:1], attention, 64))
