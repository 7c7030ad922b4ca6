"""Training: accumulation equals the large batch, resumed equals never stopped, what is frozen stays."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmodel import metrics as pairs
from jaxmodel.errors import InputError, Retryable
from jaxmodel.loop import Diverged, fit
from jaxmodel.model import sharded
from jaxmodel.optim import make_optimizer, make_schedule
from jaxmodel.options import Optimizer
from jaxmodel.sharding import Partitioning, make_mesh
from jaxmodel.tasks import Result, classification, language_model
from jaxmodel.train import make_state, make_step, put
from jaxmodel.weights import frozen, lora, partition, quantize
from tests.bigram import batch_of as bigram_batch
from tests.bigram import bigram, routed
from tests.contract import batch_of, built, params_of, relative, same

OPTIONS = Optimizer(learning_rate=0.01, warmup=2)
STEPS = 8
KEY = jax.random.key(5)


@functools.cache
def optimizer_of(name):
    return make_optimizer(OPTIONS, STEPS, built(name).layout)


@functools.cache
def step_of(name, accumulate=1):
    """The compiled step of a contract model, shared by the tests."""
    model = built(name)
    schedule = make_schedule(OPTIONS, STEPS)
    return make_step(model, classification(model), optimizer_of(name), accumulate, schedule=schedule)


def start(name):
    return make_state(built(name), optimizer_of(name), params=params_of(name))


def loader(name, start=0):
    return ((step, batch_of(name, step)) for step in itertools.count(start))


# Law 8. With SGD parameters move as gradients do; AdamW's first steps hardly look at their size.
@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_is_the_large_batch(accumulate):
    model = routed(bigram())
    accumulates(model, language_model(model), model.init(KEY), bigram_batch(), accumulate)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "mixture"])
def test_accumulation_is_the_large_batch_for_the_contract(name):
    batch = batch_of(name)
    batch["weights"] = (np.random.default_rng(0).random(batch["weights"].shape) < 0.6).astype(np.float32)
    batch["weights"][[2, 5]] = 0
    accumulates(built(name), language_model(built(name)), params_of(name), batch, 4)


def accumulates(model, loss, params, batch, accumulate):
    def run(accumulate):
        state = make_state(model, optax.sgd(0.1), params=params)
        state, metrics = make_step(model, loss, optax.sgd(0.1), accumulate)(state, batch, KEY)
        return jax.tree.map(lambda a, b: a - b, state.params, params), metrics

    (moved, metrics), (wanted, whole) = run(accumulate), run(1)
    assert relative(metrics, whole) < 1e-6
    off = optax.tree.norm(jax.tree.map(lambda a, b: a - b, moved, wanted))
    assert off < 1e-6 * optax.tree.norm(wanted)
    assert metrics["tokens"][0] == batch["weights"].sum() < batch["weights"].size


def test_a_piece_takes_every_nth_row():
    """So that a batch split over devices is cut within each device."""
    model = built("function")
    seen = Result(jnp.ones(()), jnp.ones(()), {}, {})

    def loss(params, batch, state, key, train):
        first = jnp.sum(params["bias"]) * 0 + batch["targets"][0].astype(jnp.float32)
        rows = jnp.sum(batch["targets"] * 10.0 ** jnp.arange(2))
        return seen._replace(sum=first, metrics={"rows": (rows, 1.0)})

    batch = {"targets": np.arange(8, dtype=np.int32)}
    optimizer = optax.sgd(0.1)
    state = make_state(model, optimizer, params=params_of("function"))
    _, metrics = make_step(model, loss, optimizer, 4)(state, batch, KEY)
    assert metrics["rows"] == (40 + 51 + 62 + 73, 4)


def test_a_batch_that_does_not_divide_is_told_so():
    batch = {name: array[:6] for name, array in batch_of("function").items()}
    with pytest.raises(InputError, match=r"6 rows does not divide into train\.accumulate=4.*train\.batch_size"):
        step_of("function", 4)(start("function"), batch, KEY)


def test_metrics_of_a_step():
    batch: Any = batch_of("function")
    state, metrics = step_of("function")(start("function"), batch, KEY)
    assert state.step == 1
    numbers = pairs.finish(metrics)
    assert set(numbers) == {"loss", "accuracy", "grad_norm", "tokens", "learning_rate"}
    assert numbers["learning_rate"] == pytest.approx(0.005) and numbers["tokens"] == 8

    def loss(params):
        result = classification(built("function"))(params, batch, {}, None, True)
        return result.sum / result.weight

    value, grads = jax.value_and_grad(loss)(params_of("function"))
    assert numbers["loss"] == pytest.approx(float(value), rel=1e-6)
    assert numbers["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)


# Law 3, and purity: "nnx" has dropout and batch statistics, so its step depends on all parts of the state.
@pytest.mark.parametrize("name", ["nnx", "function"])
def test_resumed_is_never_stopped(name):
    step = step_of(name)
    run = functools.partial(fit, step=step, key=KEY, log_every=1)
    told, resumed = [], []
    through = run(start(name), loader=loader(name), steps=6, hooks=[lambda *x: told.append(x)])
    state = run(start(name), loader=loader(name), steps=3, hooks=[lambda *x: resumed.append(x)])
    saved = jax.tree.map(np.array, state)
    del state
    state = jax.tree.map(jnp.asarray, saved)
    resumed_state = run(state, loader=loader(name, 3), steps=6, hooks=[lambda *x: resumed.append(x)])
    assert same(resumed_state, through)
    assert resumed == told and len(told) == 6
    assert not same(through.params, params_of(name))


def test_the_key_of_a_step_depends_on_the_step():
    model = built("nnx")
    dropout = make_step(model, classification(model), optax.sgd(0.0))
    state = make_state(model, optax.sgd(0.0), params=params_of("nnx"))
    losses = []
    for _ in range(2):
        state, metrics = dropout(state, batch_of("nnx"), KEY)
        losses.append(float(metrics["loss"][0]))
    assert losses[0] != losses[1]


def test_what_is_frozen_stays():
    model = built("function")
    layout = {**model.layout, "up": frozen(model.layout["up"])}
    optimizer = make_optimizer(OPTIONS, STEPS, layout)
    model = model._replace(layout=layout)
    state = make_state(model, optimizer, params=params_of("function"))
    assert state.opt_state["mean"]["up"] is None
    state, _ = make_step(model, classification(model), optimizer)(state, batch_of("function"), KEY)
    np.testing.assert_array_equal(state.params["up"], params_of("function")["up"])
    for name in ("bias", "down"):
        assert np.any(np.asarray(state.params[name] != params_of("function")[name]))


def test_an_adapter_trains_and_its_base_does_not():
    model = bigram()
    params = lora(quantize(model.init(KEY), model.layout), model.layout, rank=2, key=KEY, select="*")
    optimizer = make_optimizer(Optimizer(learning_rate=0.05, schedule="constant"), STEPS, model.layout)
    state = make_state(model, optimizer, params=params)
    step = make_step(model, language_model(model, chunk=8), optimizer)
    losses = []
    for _ in range(6):
        state, metrics = step(state, bigram_batch(), KEY)
        losses.append(pairs.finish(metrics)["loss"])
    assert losses[-1] < losses[0]
    trained, rest = partition(state.params, model.layout)
    before, rest_before = partition(params, model.layout)
    assert same(rest, rest_before)
    changes = jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), trained, before))
    assert changes == [True] * 4


def test_making_and_stepping_leave_the_callers_arrays_alone():
    model, params = built("nnx"), params_of("nnx")
    statistics = model.start()
    kept = jax.tree.map(np.array, (params, statistics))
    state = make_state(model, optimizer_of("nnx"), params=params, model_state=statistics)
    after, _ = step_of("nnx")(state, batch_of("nnx"), KEY)
    assert same((params, statistics), kept)
    assert all(array.is_deleted() for array in jax.tree.leaves(state.params))  # donated
    assert not any(array.is_deleted() for array in jax.tree.leaves(after))


def test_a_state_from_a_key_is_that_of_init():
    state = make_state(built("function"), optimizer_of("function"), jax.random.key(0))
    assert same(state.params, params_of("function"))
    assert state.step.dtype == jnp.int32 and state.step == 0


def test_a_batch_without_targets_moves_nothing_by_gradient():
    batch = batch_of("function")
    batch["weights"][:] = 0
    optimizer = optax.sgd(0.1)
    model = built("function")
    state = make_state(model, optimizer, params=params_of("function"))
    state, metrics = make_step(model, classification(model), optimizer)(state, batch, KEY)
    assert same(state.params, params_of("function"))
    assert metrics["grad_norm"][0] == 0 and math.isnan(pairs.finish(metrics)["loss"])


def test_low_precision_weights_keep_their_dtype_and_gradients_are_float32():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params_of("function"))
    seen = []

    def update(grads, state, params=None):
        seen.extend(g.dtype for g in jax.tree.leaves(grads))
        return grads, state

    optimizer = optax.GradientTransformation(lambda params: (), update)  # type: ignore[arg-type]
    model = built("function")
    for accumulate in (1, 2):
        state = make_state(model, optimizer, params=params)
        state, _ = make_step(model, classification(model), optimizer, accumulate)(state, batch_of("function"), KEY)
        assert {p.dtype for p in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    assert set(seen) == {jnp.dtype(jnp.float32)}


def test_a_sharded_state_lies_beside_its_weights_and_trains_alike():
    plain = built("function")
    layout = {"up": "embed -> mlp", "bias": "mlp", "down": "mlp -> classes"}
    partitioning = Partitioning(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    model = sharded(plain._replace(layout=layout), partitioning.mesh)
    optimizer = make_optimizer(OPTIONS, STEPS, layout)
    state = make_state(model, optimizer, jax.random.key(0), average=True, count_skipped=True, partitioning=partitioning)
    step = make_step(model, classification(model), optimizer, 2, partitioning=partitioning)

    def check(state):
        specs = partitioning.shardings(layout, state.params)
        for tree in (state.params, state.average, state.opt_state["mean"], state.opt_state["square"]):
            assert all(tree[name].sharding.is_equivalent_to(specs[name], tree[name].ndim) for name in specs)
        assert state.params["up"].addressable_shards[0].data.size * 4 == state.params["up"].size
        assert state.opt_state["count"].sharding.is_fully_replicated
        assert state.skipped.sharding.is_fully_replicated

    check(state)
    state, metrics = step(state, put(batch_of("function"), partitioning), KEY)
    check(state)
    alone, wanted = step_of("function", 2)(start("function"), batch_of("function"), KEY)
    del wanted["learning_rate"], metrics["skipped"]
    assert relative(metrics, wanted) < 1e-5
    assert relative(state.params, alone.params) < 1e-4


# The loop


class Saver:
    """A checkpointer that remembers what it was asked."""

    def __init__(self):
        self.saved, self.waited = [], 0

    def save(self, step, state):
        assert state.step == step
        self.saved.append(step)

    def wait(self):
        self.waited += 1


def test_when_fit_logs_evaluates_and_saves():
    told, saver = [], Saver()
    state = fit(
        start("function"),
        step_of("function"),
        loader("function"),
        key=KEY,
        steps=8,
        log_every=3,
        hooks=[lambda step, split, numbers: told.append((step, split, set(numbers)))],
        evaluate=lambda state: {"loss": float(state.step)},
        eval_every=4,
        checkpointer=saver,
        save_every=5,
    )
    assert [step for step, split, _ in told if split == "train"] == [1, 3, 6, 8]
    assert [step for step, split, _ in told if split == "eval"] == [4, 8]
    assert told[0][2] == {"loss", "accuracy", "grad_norm", "tokens", "learning_rate"}
    assert saver.saved == [5, 8] and saver.waited == 1 and state.step == 8
    assert fit(state, step_of("function"), iter(()), key=KEY, steps=8) is state


def test_by_default_fit_evaluates_and_saves_at_the_end():
    told, saver = [], Saver()
    fit(
        start("function"),
        step_of("function"),
        loader("function"),
        key=KEY,
        steps=3,
        hooks=[lambda step, split, numbers: told.append((step, split))],
        evaluate=lambda state: {},
        checkpointer=saver,
    )
    assert told == [(1, "train"), (3, "train"), (3, "eval")] and saver.saved == [3]


def test_asked_to_stop_fit_saves_and_can_be_run_again():
    saver, asked = Saver(), iter([False, True])
    with pytest.raises(Retryable, match="after step 2 of 8"):
        fit(
            start("function"),
            step_of("function"),
            loader("function"),
            key=KEY,
            steps=8,
            checkpointer=saver,
            should_stop=lambda: next(asked),
        )
    assert saver.saved == [2] and saver.waited == 1


def test_asked_to_stop_after_the_last_step_fit_is_done():
    state = fit(start("function"), step_of("function"), loader("function"), key=KEY, steps=1, should_stop=lambda: True)
    assert state.step == 1


@pytest.mark.parametrize("log_every, save_every", [(1, 0), (100, 2)])
def test_a_run_that_diverges_says_so_and_saves_nothing(log_every, save_every):
    def poisoned():
        for step, batch in loader("function"):
            if step == 1:
                batch["features"][0] = np.nan
            yield step, batch

    saver = Saver()
    with pytest.raises(Diverged, match=r"step 2: .* is nan.*optimizer\.learning_rate.*optimizer\.clip_norm"):
        fit(
            start("function"),
            step_of("function"),
            poisoned(),
            key=KEY,
            steps=8,
            log_every=log_every,
            checkpointer=saver,
            save_every=save_every,
        )
    assert saver.saved == []


def test_the_batches_must_begin_where_the_state_stands():
    with pytest.raises(InputError, match="step 3 where that of 0 was due"):
        fit(start("function"), step_of("function"), loader("function", 3), key=KEY, steps=8)
