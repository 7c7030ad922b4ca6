"""The habits of the loop: averages, what is skipped, watching for the best, going back, and what is told of it."""

import contextlib
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmodel import checkpoint
from jaxmodel.errors import InputError, Retryable
from jaxmodel.loading import load
from jaxmodel.loop import Diverged, Rollback, Watch, fit
from jaxmodel.model import from_function
from jaxmodel.optim import make_optimizer, make_schedule
from jaxmodel.options import Optimizer
from jaxmodel.tasks import Result
from jaxmodel.train import make_state, make_step

KEY = jax.random.key(0)
RATE = 0.25
MODEL = from_function(lambda key: {"a": jnp.zeros(2), "w": jnp.zeros(3)}, lambda params, batch: params["w"])
OPTIMIZER = optax.sgd(RATE)


def loss(params, batch, state, key, train):
    """Half the squared distance of `w` from x, a batch of one number: descent moves `w` a quarter of the way to it."""
    total = jnp.sum((params["w"] - batch["x"]) ** 2) / 2
    return Result(total, jnp.ones(()), {}, {})


STEP = make_step(MODEL, loss, OPTIMIZER)
AVERAGED = make_step(MODEL, loss, OPTIMIZER, average=0.5)


def numbers(poisoned=(), spiked=()):
    """A loader that is a function of where to begin: batch k is x = k, but for those that are spoilt."""

    def loader(first, left_out=0):
        for k in itertools.count(first):
            x = math.nan if k in poisoned else 1e3 if k in spiked else float(k)
            yield k, {"x": np.array([x], np.float32)}

    return loader


def walk(xs):
    """Where `w` is after these batches, in float64."""
    w = 0.0
    for x in xs:
        w += RATE * (x - w)
    return w


def start(**how):
    return make_state(MODEL, OPTIMIZER, KEY, **how)


def saver(tmp_path, **how):
    return checkpoint.Checkpointer(tmp_path / "run", MODEL, **how)


def test_an_average_follows_the_weights():
    state = fit(start(average=True), AVERAGED, numbers(), key=KEY, steps=6)
    w, average = 0.0, 0.0
    for k in range(6):
        w += RATE * (k - w)
        now = min(0.5, (1 + k) / (10 + k))
        average = now * average + (1 - now) * w
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-6)
    np.testing.assert_allclose(state.shipped(MODEL.layout)["w"], average, rtol=1e-6)
    assert start().shipped(MODEL.layout)["w"] is not None  # without one it is the weights themselves


def test_the_average_is_what_a_checkpoint_gives_and_a_run_goes_on_from_the_weights(tmp_path):
    whole = fit(start(average=True), AVERAGED, numbers(), key=KEY, steps=6)
    with saver(tmp_path) as keeper:
        half = fit(start(average=True), AVERAGED, numbers(), key=KEY, steps=3, checkpointer=keeper)
    np.testing.assert_array_equal(load(tmp_path / "run", model=MODEL).params["w"], half.average["w"])
    assert not np.array_equal(half.average["w"], half.params["w"])
    with saver(tmp_path) as keeper:
        state = keeper.restore(start(average=True))
        np.testing.assert_array_equal(state.params["w"], half.params["w"])
        state = fit(state, AVERAGED, numbers(), key=KEY, steps=6)
    for found, expected in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_is_not_finite_is_skipped_and_counted():
    told = []
    state = fit(
        start(count_skipped=True), STEP, numbers(poisoned={1, 3}), key=KEY, steps=5, log_every=2,
        hooks=[lambda step, split, found: told.append((step, found["skipped"]))],
    )  # fmt: skip
    np.testing.assert_allclose(state.params["w"], walk([0, 2, 4]), rtol=1e-6)
    assert state.skipped is not None and (int(state.step), int(state.skipped)) == (5, 2)
    assert told == [(1, 0), (2, 1), (4, 2), (5, 2)]


def test_what_is_skipped_does_not_move_the_schedule():
    """The rate that is told is the one the update is made with: that of as many updates as were made."""
    options = Optimizer(name="sgd", learning_rate=1.0, schedule="linear", warmup=0, clip_norm=None)
    optimizer, schedule = make_optimizer(options, 4, MODEL.layout), make_schedule(options, 4)
    state = make_state(MODEL, optimizer, KEY, count_skipped=True)
    step = make_step(MODEL, loss, optimizer, schedule=schedule)
    rates, where = [], []
    for _, batch in itertools.islice(numbers(poisoned={1})(0), 3):
        state, sums = step(state, {"x": batch["x"] + 1}, KEY)
        rates.append(float(sums["learning_rate"][0]))
        where.append(float(state.params["w"][0]))
    assert rates == [float(schedule(0)), float(schedule(1)), float(schedule(1))]
    np.testing.assert_allclose(where, [rates[0], rates[0], rates[0] + rates[1] * (3 - rates[0])], rtol=1e-6)


def test_skipping_everything_is_no_training():
    with pytest.raises(Diverged, match=r"step 14: none of the last 10 updates was finite; .*optimizer\.learning_rate"):
        fit(start(count_skipped=True), STEP, numbers(poisoned=set(range(4, 40))), key=KEY, steps=40, log_every=2)


def test_the_first_weight_that_is_not_finite_is_named():
    with pytest.raises(Diverged, match=r"step 2: loss is nan \(so is w, the first of the weights\)"):
        fit(start(), STEP, numbers(poisoned={1}), key=KEY, steps=4, log_every=1)


@pytest.mark.parametrize(
    ("how", "values", "best", "since"),
    [
        ({"mode": "min"}, [3.0, 1.0, 2.0, 1.0], [(1.0, 2)], 2),  # of equals the first
        ({"mode": "max", "keep": 2}, [3.0, 1.0, 4.0, 2.0], [(4.0, 3), (3.0, 1)], 1),
        ({"mode": "min", "min_delta": 0.5}, [3.0, 2.7, 2.4, 2.0], [(2.4, 3)], 1),
        ({"mode": "max"}, [1.0, math.nan], [(1.0, 1)], 1),
    ],
    ids=["ties", "two best", "min_delta", "not finite"],
)
def test_the_best_is_watched(how, values, best, since):
    watch = Watch("m", **how)
    for step, value in enumerate(values, 1):
        watch.see(step, {"m": value})
    assert watch.best[: len(best)] == best and watch.since == since
    again = Watch("m", **how)
    again.resume(watch.to_dict())
    assert again == watch


def evaluate(values):
    """An evaluation that gives these, one after the other."""
    values = iter(values)
    return lambda state: {"m": next(values), "w": float(state.params["w"][0])}


def test_patience_ends_a_run_with_its_best_step(tmp_path):
    told = []
    with saver(tmp_path, keep=1) as keeper:
        state = fit(
            start(), STEP, numbers(), key=KEY, steps=100, checkpointer=keeper, save_every=1,
            evaluate={"eval": evaluate([5, 3, 1, 4, 4, 0]), "other": lambda state: {"n": 1.0}}, eval_every=1,
            hooks=[lambda step, split, found: told.append((step, split))], log_every=100,
            watch=Watch("m", patience=2, keep=2),
        )  # fmt: skip
    assert told == [(1, "train"), *((k, split) for k in range(1, 6) for split in ("eval", "other"))]
    assert int(state.step) == 3
    np.testing.assert_allclose(state.params["w"], walk(range(3)), rtol=1e-6)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [2, 3, 5]  # the best two, and the newest
    best = {"step": 3, "monitor": "m", "value": 1, "stopped_early": True}
    assert checkpoint.chosen(tmp_path / "run") == best
    np.testing.assert_array_equal(load(tmp_path / "run", model=MODEL).params["w"], state.params["w"])


@pytest.mark.parametrize(("steps", "patience"), [(100, 2), (5, None)], ids=["patience", "steps"])
def test_a_run_that_was_killed_before_it_chose_chooses_when_it_is_resumed(steps, patience, tmp_path):
    common = {"key": KEY, "save_every": 1, "eval_every": 1, "steps": steps}
    for values in ([5, 3, 1, 4, 4], []):  # it makes no step, and evaluates nothing, again
        with saver(tmp_path, keep=1) as keeper:
            state, watch = keeper.restore(start()), Watch("m", patience=patience)
            before = checkpoint.info_of(tmp_path / "run", int(state.step))
            state = fit(
                state, STEP, numbers(), checkpointer=keeper, evaluate=evaluate(values), watch=watch, before=before,
                **common,
            )  # fmt: skip
        assert int(state.step) == 3 and load(tmp_path / "run", model=MODEL).step == 3
        (tmp_path / "run" / "checkpoints" / "chosen.json").unlink()


def test_a_watch_is_resumed(tmp_path):
    """Stopped after an evaluation and gone on with, the run ends where it would have."""
    asked = iter([False, False, False, True])
    common = {"key": KEY, "steps": 100, "eval_every": 1}
    with saver(tmp_path) as keeper, pytest.raises(Retryable):
        fit(
            start(), STEP, numbers(), checkpointer=keeper, evaluate=evaluate([5, 1, 2, 3]),
            watch=Watch("m", patience=3), should_stop=lambda: next(asked), **common,
        )  # fmt: skip
    with saver(tmp_path) as keeper:
        state, watch = keeper.restore(start()), Watch("m", patience=3)
        before = checkpoint.info_of(tmp_path / "run", 4)
        assert int(state.step) == 4 and before["watch"] == {"monitor": "m", "best": [[1, 2]], "since": 2}
        state = fit(
            state, STEP, numbers(), checkpointer=keeper, evaluate=evaluate([4, 0]), watch=watch, before=before,
            **common,
        )  # fmt: skip
    assert int(state.step) == 2


def test_a_monitor_that_is_no_metric_is_said_so(tmp_path):
    with (
        saver(tmp_path) as keeper,
        pytest.raises(InputError, match=r"train.monitor=los is no metric .*did you mean loss"),
    ):
        fit(
            start(), STEP, numbers(), key=KEY, steps=2, checkpointer=keeper, watch=Watch("los"),
            evaluate=lambda state: {"loss": 1.0},
        )  # fmt: skip


@pytest.mark.parametrize("spoilt", ["poisoned", "spiked"])
def test_a_run_goes_back_and_leaves_the_window_out(tmp_path, spoilt):
    """Batch 5 spoils it, seen after step 6; the newest checkpoint is of step 4: batches 4 and 5 are left out."""
    told = []
    with saver(tmp_path, keep=9) as keeper:
        state = fit(
            start(), STEP, numbers(**{spoilt: {5}}), key=KEY, steps=8, checkpointer=keeper, save_every=4, log_every=1,
            hooks=[lambda step, split, found: told.append((step, split, dict(found)))],
            rollback=Rollback(retries=1, spike=100.0),
        )  # fmt: skip
    np.testing.assert_allclose(state.params["w"], walk([0, 1, 2, 3, 6, 7, 8, 9]), rtol=1e-6)
    (back,) = [each for each in told if each[1] == "rollback"]
    assert back == (4, "rollback", {"from": 6, "retries": 1, "skipped_batches": 2})
    assert checkpoint.info_of(tmp_path / "run", 8)["offset"] == 2


def test_a_run_that_went_back_is_resumed_where_it_was(tmp_path):
    """Which batches it left out, how often it may still go back, and the losses a spike is held against."""
    loader, told = numbers(poisoned={1}, spiked={9, 13}), []
    common = {
        "key": KEY, "save_every": 2, "log_every": 1, "rollback": Rollback(retries=2, spike=100.0),
        "hooks": [lambda step, split, found: told.append((step, split, dict(found)))],
    }  # fmt: skip
    with saver(tmp_path) as keeper:
        fit(start(), STEP, loader, steps=6, checkpointer=keeper, **common)
    before = checkpoint.info_of(tmp_path / "run", 6)
    assert (before["offset"], before["retries"], len(before["guard"]["losses"])) == (2, 1, 6)
    with saver(tmp_path) as keeper:
        state = keeper.restore(start())
        state = fit(state, STEP, loader, steps=8, checkpointer=keeper, before=before, **common)
    np.testing.assert_allclose(state.params["w"], walk([2, 3, 4, 5, 6, 7, 10, 11]), rtol=1e-6)
    backs = [each for each in told if each[1] == "rollback"]
    assert backs[-1] == (6, "rollback", {"from": 8, "retries": 2, "skipped_batches": 4}) and len(backs) == 2
    before = checkpoint.info_of(tmp_path / "run", 8)
    for retries in (2, 1):  # two losses from before and one of its own: enough to know a spike by; no retry is left
        common["rollback"] = Rollback(retries, spike=100.0)
        with saver(tmp_path) as keeper, pytest.raises(Diverged, match=r"over train\.spike=100 times"):
            fit(keeper.restore(start()), STEP, loader, steps=10, checkpointer=keeper, before=before, **common)


@pytest.mark.parametrize("stop", [2, 6, 8, 14])
def test_a_run_stopped_about_a_spike_is_as_one_never_stopped(stop, tmp_path):
    """Batch 7 passes, as three logged losses are needed to know a spike by, and batch 11 does not.

    So the run goes back from step 12 to step 8. A stop that is not logged looks at the loss, and must not count it.
    """

    def run(name, stops):
        """Stopped after so many updates each time, and resumed as by a new process: the state, and what is told."""
        told = []
        for due in (*stops, None):
            with checkpoint.Checkpointer(tmp_path / name, MODEL, keep=9) as keeper:
                state, made = keeper.restore(start()), itertools.count(1)
                how = {
                    "key": KEY, "steps": 16, "log_every": 4, "save_every": 8, "checkpointer": keeper,
                    "rollback": Rollback(retries=1, spike=20.0),
                    "before": checkpoint.info_of(tmp_path / name, int(state.step)),
                    "hooks": [lambda step, split, found: told.append((step, split, dict(found)))],
                    "should_stop": lambda made=made, due=due: next(made) == due,
                }  # fmt: skip
                with contextlib.nullcontext() if due is None else pytest.raises(Retryable):
                    state = fit(state, STEP, numbers(spiked={7, 11}), **how)
        return state, told, checkpoint.info_of(tmp_path / name, 16)

    whole, told, info = run("whole", [])
    assert [each[:2] for each in told if each[1] == "rollback"] == [(8, "rollback")] and info["offset"] == 4
    state, *same = run("stopped", [stop])
    assert same == [told, info]
    for found, expected in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_was_watched_goes_back_too_and_a_trace_may_begin_anew(tmp_path):
    """Batch 4 is seen after step 5; the newest checkpoint is of step 3: the evaluation of step 4 counts once."""
    watch, told = Watch("m", patience=5), []
    with saver(tmp_path, keep=9) as keeper:
        fit(
            start(), STEP, numbers(poisoned={4}), key=KEY, steps=9, checkpointer=keeper, save_every=3, log_every=5,
            evaluate=evaluate(range(9)), eval_every=1, watch=watch, rollback=Rollback(),
            hooks=[lambda step, split, found: told.append((step, split))], profile=(5, 6, tmp_path / "profile"),
        )  # fmt: skip
    assert [step for step, split in told if split == "eval"] == [1, 2, 3, 4, 4, 5, 6]
    assert (watch.best, watch.since) == ([(0.0, 1)], 5)


def test_retries_are_bounded(tmp_path):
    told = []
    with saver(tmp_path) as keeper, pytest.raises(Diverged, match="loss is nan"):
        fit(
            start(), STEP, numbers(poisoned=set(range(3, 99))), key=KEY, steps=9, checkpointer=keeper, log_every=1,
            rollback=Rollback(retries=2), hooks=[lambda step, split, found: told.append(split)],
        )  # fmt: skip
    assert told.count("rollback") == 2


def test_a_trace_is_written_of_the_steps_that_were_asked_for(tmp_path):
    fit(start(), STEP, numbers(), key=KEY, steps=4, profile=(2, 3, tmp_path / "profile"))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
