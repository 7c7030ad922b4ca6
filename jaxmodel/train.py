"""Training: a state, a step that maps it to the next one, and a plain loop that hides nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmodel import metrics as pairs
from jaxmodel.compiling import compiler_options
from jaxmodel.errors import InputError, Retryable
from jaxmodel.metrics import Metrics
from jaxmodel.model import Batch, Model, Params, State
from jaxmodel.optim import Schedule, beside, effective, global_norm
from jaxmodel.sharding import Partitioning
from jaxmodel.tasks import LossFn
from jaxmodel.weights import join, partition


class Diverged(InputError):
    """The loss or the gradients are no longer finite."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes while a model trains; saved and restored whole, a run goes on as if never stopped.

    Attributes:
      step: int32[], how many updates were made.
      params: the whole tree of weights, trained or not.
      opt_state: of the trainable part.
      model_state: batch statistics and the like; {} for most models.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    model_state: State


Step = Callable[[TrainState, Mapping[str, Any], jax.Array], tuple[TrainState, Metrics]]
Hook = Callable[[int, str, Mapping[str, float]], None]  # (step, split, numbers)
Evaluation = Callable[[TrainState], Mapping[str, float]]


class Checkpointer(Protocol):
    """What `fit` asks of whoever saves; once `save` returns, the next step reuses the state's memory."""

    def save(self, step: int, state: TrainState) -> None:
        """Save the state after `step` updates; may go on in the background."""
        ...

    def wait(self) -> None:
        """Return when all is saved, or raise."""
        ...


def make_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    key: jax.Array | None = None,
    *,
    params: Params = None,
    model_state: State = None,
    partitioning: Partitioning | None = None,
) -> TrainState:
    """The state before the first step, made in place on the devices.

    Args:
      model: what trains.
      optimizer: keeps its state for the trainable part of the params.
      key: for fresh weights; not needed with `params`.
      params: weights to start from. They are copied: a step reuses the memory of its state, never of yours.
      model_state: batch statistics to start from, copied too.
      partitioning: of a sharded model.

    Raises:
      InputError: both a key and params, or neither.
    """
    if (key is None) == (params is None):
        raise InputError("make_state: give a key for fresh weights, or params, not both")

    def make(key: jax.Array | None, params: Params, model_state: State) -> TrainState:
        params, model_state = jax.tree.map(jnp.copy, (params, model_state))
        if key is not None:
            params = model.init(key)
        if model_state is None:
            model_state = model.start()
        trainable, _ = partition(params, model.layout)
        state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trainable), model_state)
        return _placed(state, model, partitioning)

    return jax.jit(make)(key, params, model_state)


def make_step(
    model: Model,
    loss: LossFn,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    *,
    schedule: Schedule | None = None,
    partitioning: Partitioning | None = None,
) -> Step:
    """The jitted training step, (state, batch, key) -> (state, metrics); the state it is given is used up.

    The gradient is that of sum / weight over the whole batch, however many pieces it is computed in. Only the
    trainable part of the params is differentiated. Gradients are summed in float32.

    Args:
      model: what trains.
      loss: from `tasks`, or your own.
      optimizer: from `optim`, or any of optax.
      accumulate: pieces a batch is computed in, one after the other. Piece j takes every
        `accumulate`-th row from j on, so that a batch split over devices stays where it is.
      schedule: of the learning rate, for the metrics alone.
      partitioning: of a sharded model.

    Metrics are those of the loss, `grad_norm` (before clipping), `tokens` (the weight of the batch) and
    `learning_rate`. The step folds its number into the key: pass the same key every time.

    Raises:
      InputError: (when called) the batch does not divide into `accumulate` pieces.
    """

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        trainable, rest = partition(state.params, model.layout)

        def objective(
            trainable: Params, batch: Batch, model_state: State, key: jax.Array
        ) -> tuple[jax.Array, Any]:
            result = loss(join(trainable, rest), batch, model_state, key, True)
            metrics = {"loss": (result.sum, result.weight)} | result.metrics
            return result.sum, (result.weight, metrics, result.state)

        def piece(model_state: State, batch: Batch, key: jax.Array) -> tuple[Any, State, Any]:
            grads, (weight, metrics, model_state) = jax.grad(objective, has_aux=True)(
                trainable, batch, model_state, key
            )
            return jax.tree.map(lambda g: g.astype(jnp.float32), grads), model_state, (weight, metrics)

        key = jax.random.fold_in(key, state.step)
        if accumulate == 1:
            grads, model_state, (weight, metrics) = piece(state.model_state, batch, key)
        else:

            def add(carry: Any, xs: Any) -> Any:
                grads, model_state = carry
                more, model_state, sums = piece(model_state, *xs)
                return (jax.tree.map(jnp.add, grads, more), model_state), sums

            zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), trainable)
            xs = (_pieces(batch, accumulate), jax.random.split(key, accumulate))
            (grads, model_state), sums = jax.lax.scan(add, (zeros, state.model_state), xs)
            weight, metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)

        # A batch without a single weighted target leaves gradients of zero, not of 0 / 0.
        share = jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0).astype(jnp.float32)
        grads = jax.tree.map(lambda g: g * share, grads)
        total, count = metrics["loss"]
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            grads, state.opt_state, trainable, value=total / count
        )
        params = join(optax.apply_updates(trainable, updates), rest)
        one = jnp.ones((), jnp.float32)
        metrics |= {"grad_norm": (global_norm(grads), one), "tokens": (weight, one)}
        if schedule is not None:
            metrics["learning_rate"] = (effective(schedule(state.step), opt_state), one)
        state = TrainState(state.step + 1, params, opt_state, model_state)
        return _placed(state, model, partitioning), metrics

    return jax.jit(step, donate_argnums=0, compiler_options=compiler_options())


def _pieces(batch: Batch, accumulate: int) -> Batch:
    """Arrays [B, …] to [accumulate, B / accumulate, …]; piece j holds rows j, j + accumulate, …"""

    def split(x: jax.Array) -> jax.Array:
        if x.shape[0] % accumulate:
            raise InputError(
                f"a batch of {x.shape[0]} rows does not divide into train.accumulate={accumulate} pieces: "
                "make train.batch_size a multiple, or change train.accumulate"
            )
        return jnp.moveaxis(x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), 1, 0)

    return jax.tree.map(split, dict(batch))


def _placed(state: TrainState, model: Model, partitioning: Partitioning | None) -> TrainState:
    """The state, every array where it lives: what an optimizer keeps for a weight lies beside the weight."""
    if partitioning is None:
        return state
    weights = partitioning.shardings(model.layout, state.params)
    whole = partitioning.replicated()
    trainable, places = (partition(tree, model.layout)[0] for tree in (state.params, weights))
    kept = beside(state.opt_state, trainable, places, whole)
    everywhere = jax.tree.map(lambda _: whole, state.model_state)
    return jax.lax.with_sharding_constraint(state, TrainState(whole, weights, kept, everywhere))  # type: ignore


def put(batch: Mapping[str, np.ndarray], partitioning: Partitioning | None = None) -> Batch:
    """A batch from the host on the devices; with a mesh, a process gives its own rows of the whole batch."""
    if partitioning is None:
        return jax.device_put(dict(batch))
    return {
        name: jax.make_array_from_process_local_data(partitioning.batch(array.ndim), array)
        for name, array in batch.items()
    }


def fit(
    state: TrainState,
    step: Step,
    loader: Iterable[tuple[int, Mapping[str, np.ndarray]]],
    *,
    key: jax.Array,
    steps: int,
    hooks: Sequence[Hook] = (),
    log_every: int = 10,
    evaluate: Evaluation | Mapping[str, Evaluation] | None = None,
    eval_every: int = 0,
    checkpointer: Checkpointer | None = None,
    save_every: int = 0,
    should_stop: Callable[[], bool] | None = None,
    put: Callable[[Mapping[str, np.ndarray]], Batch] = put,
) -> TrainState:
    """Train until `steps` updates were made, in this run and those before it; returns the last state.

    The host waits for the device only where it logs, evaluates or saves. A state that has made its `steps`
    comes back as it is.

    Args:
      state: where to go on from; it is used up.
      step: from `make_step`.
      loader: gives (step, batch), beginning at `state.step`.
      key: for dropout and the like; the same in a run that goes on.
      steps: updates in all.
      hooks: called with (step, "train", numbers) after the first step, every `log_every` and the last, and
        with (step, "eval", numbers) after an evaluation.
      log_every: steps between calls of the hooks.
      evaluate: state -> numbers, or several by name (the split that hooks are told), every `eval_every` steps and
        after the last.
      eval_every: steps between evaluations; 0: only after the last.
      checkpointer: saves every `save_every` steps and after the last.
      save_every: steps between saves; 0: only after the last.
      should_stop: asked after every step, and must answer alike in all processes; the state is saved first.
      put: batch on the host -> batch on the devices, done one batch ahead.

    Raises:
      Diverged: loss or gradients are not finite where they are logged or would be saved.
      InputError: the loader does not begin at `state.step`.
      Retryable: `should_stop()` was true before the last step.
    """
    sets = evaluate if isinstance(evaluate, Mapping) else {} if evaluate is None else {"eval": evaluate}
    done = int(state.step)
    if done >= steps:
        return state
    batches = iter(loader)

    def fetch(due: int) -> Batch:
        index, batch = next(batches)
        if index != due:
            raise InputError(
                f"the loader gave the batch of step {index} where that of {due} was due: begin it at state.step"
            )
        return put(batch)

    def due(every: int) -> bool:
        return done == steps or (every > 0 and done % every == 0)

    ahead = fetch(done)
    while done < steps:
        state, sums = step(state, ahead, key)  # returns at once; the device works on
        done += 1
        if done < steps:
            ahead = fetch(done)
        if due(log_every) or done == 1:
            _check_finite(done, sums)
            numbers = pairs.finish(sums)
            for hook in hooks:
                hook(done, "train", numbers)
        if due(eval_every):
            for name, measure in sets.items():
                numbers = measure(state)
                for hook in hooks:
                    hook(done, name, numbers)
        stop = should_stop is not None and should_stop() and done < steps
        if checkpointer is not None and (stop or due(save_every)):
            _check_finite(done, sums)  # what has diverged must not replace what has not
            checkpointer.save(done, state)
        if stop:
            if checkpointer is not None:
                checkpointer.wait()
            raise Retryable(f"stopped after step {done} of {steps}; the same command goes on from there")
    if checkpointer is not None:
        checkpointer.wait()
    return state


def _check_finite(step: int, sums: Metrics) -> None:
    for name, (numerator, _) in pairs.to_host(sums).items():
        if not math.isfinite(numerator):
            raise Diverged(
                f"step {step}: {name} is {numerator}; training has diverged. Lower optimizer.learning_rate, "
                "lengthen optimizer.warmup, or set optimizer.clip_norm=1"
            )
