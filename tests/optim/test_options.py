"""The options of optimizers and schedules: who takes what, in one table that agrees with what is there."""

import dataclasses
import re
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxmodel import config
from jaxmodel.config import fields
from jaxmodel.optim import OPTIMIZERS, SCHEDULES
from jaxmodel.optim.weight import weights_of
from jaxmodel.optim_options import OPTIMIZER_TAKES, SCHEDULE_TAKES, Span
from jaxmodel.options import Optimizer

SHARED = {"find_lr", "name", "schedule", "warmup", "clip_norm", "clip_value", "clip_adaptive", "scale"}


def test_every_choice_is_known_and_every_known_one_a_choice():
    assert fields(Optimizer)["name"].choices == tuple(OPTIMIZERS) == tuple(OPTIMIZER_TAKES)
    assert fields(Optimizer)["schedule"].choices == tuple(SCHEDULES) == tuple(SCHEDULE_TAKES)


def test_every_option_is_shared_or_taken_and_says_its_defaults():
    taken = {name for row in (OPTIMIZER_TAKES | SCHEDULE_TAKES).values() for name in row}
    assert taken | SHARED == set(fields(Optimizer)) and not taken & SHARED
    for name in taken:
        assert fields(Optimizer)[name].default is None
    assert "0.9 (adam, adamw, lion, muon)" in fields(Optimizer)["beta1"].help


class Watched:
    """Options that remember what was read."""

    def __init__(self, options):
        self.options, self.read = options, set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self.options, name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_reads_what_it_takes(name):
    watched = Watched(Optimizer(name=name).resolved(9))
    rule = OPTIMIZERS[name](watched)
    for layout, shape in (("in -> out", (3, 2)), ("out", (2,))):
        p = jnp.ones(shape)
        (weight,) = weights_of(layout, p)
        kept = {key: jnp.ones(each) for key, each in rule.keeps(weight, p).items()}
        rule.step(weight, jnp.float32(1), p, p, kept)
    by_the_driver = {"learning_rate", "weight_decay", "state_dtype"}
    assert watched.read == set(OPTIMIZER_TAKES[name]) - by_the_driver


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_reads_what_it_takes(name):
    watched = Watched(Optimizer(schedule=name).resolved(90))
    SCHEDULES[name](watched, 90)(jnp.int32(3))
    by_the_driver = set(SCHEDULE_TAKES[name]) if name == "plateau" else set()
    assert watched.read == set(SCHEDULE_TAKES[name]) - by_the_driver


def test_resolved_fills_in_what_was_not_said():
    options = Optimizer(name="lion", beta1=0.5, schedule="wsd", warmup=10).resolved(60)
    assert (options.beta1, options.beta2, options.learning_rate) == (0.5, 0.99, 1e-4)
    assert (options.decay_steps, options.final_learning_rate) == (10, 0.0)
    assert options.momentum is None and options.decay_rate is None  # not taken
    assert options.resolved(60) == options
    lengths = {
        (name, option): default.of(0, 10)
        for name, row in SCHEDULE_TAKES.items()
        for option, default in row.items()
        if isinstance(default, Span)
    }
    assert all(1 <= length <= 10 for length in lengths.values())
    assert dataclasses.asdict(Optimizer(scale=("a:1", "b/*:0.5")))["scale"] == ("a:1", "b/*:0.5")
    assert Optimizer(scale=("a:1", "b:c:0.5")).scales() == (("a", 1.0), ("b:c", 0.5))


def test_the_documentation_shows_each_of_them_and_its_defaults():
    text = (Path(__file__).parents[2] / "docs/training.md").read_text()
    infos, shown = fields(Optimizer), set()
    for line in re.findall(r"^    (--optimizer\..*)$", text, re.MULTILINE):
        said = dict(re.findall(r"--optimizer\.(\w+)=(\S+)", line))
        values = {name: config.parse(value, infos[name], name) for name, value in said.items()}
        config.create(Optimizer, values).check(1000)
        shown |= {("name", values.get("name")), ("schedule", values.get("schedule")), *values}
    assert shown >= {("name", name) for name in OPTIMIZERS} | {("schedule", name) for name in SCHEDULES}
    assert shown >= set(infos) - {"beta1", "epsilon", "cooldown"}
    for name, takes in OPTIMIZER_TAKES.items():
        (row,) = re.findall(rf"^\| `{name}` \| (.*?) \|", text, re.MULTILINE)
        pairs = [*re.findall(r"(\w+)=([\w.-]+)", row), ("learning_rate", re.findall(r"\((.*)\)", row)[0])]
        assert all(float(value) == takes[option] for option, value in pairs)
