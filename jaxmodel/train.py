"""Training: a state, and a step that maps it to the next one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmodel.compiling import compiler_options
from jaxmodel.errors import InputError
from jaxmodel.metrics import Metrics
from jaxmodel.model import Batch, Model, Params, State
from jaxmodel.optim import Schedule, beside, effective, global_norm
from jaxmodel.sharding import Partitioning
from jaxmodel.tasks import LossFn
from jaxmodel.weights import join, partition


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes while a model trains; saved and restored whole, a run goes on as if never stopped.

    Attributes:
      step: int32[], how many updates were made.
      params: the whole tree of weights, trained or not.
      opt_state: of the trainable part.
      model_state: batch statistics and the like; {} for most models.
      average: a running average of the trainable part; None where none is kept.
      skipped: int32[], how many updates were left out because they were not finite; None where none ever is.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    model_state: State
    average: Any = None
    skipped: jax.Array | None = None

    def shipped(self, layout: Any) -> Params:
        """The params to evaluate and to ship: averaged, where an average is kept."""
        return self.params if self.average is None else join(self.average, partition(self.params, layout)[1])

    def exchanged(self, layout: Any) -> TrainState:
        """The average in place of what it is the average of, and the other way round; twice is the state itself.

        So it is saved: whoever loads the params of a checkpoint gets what is to be shipped.
        """
        if self.average is None:
            return self
        params = self.shipped(layout)
        return dataclasses.replace(self, params=params, average=partition(self.params, layout)[0])


Step = Callable[[TrainState, Mapping[str, Any], jax.Array], tuple[TrainState, Metrics]]


def make_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    key: jax.Array | None = None,
    *,
    params: Params = None,
    model_state: State = None,
    average: bool = False,
    count_skipped: bool = False,
    partitioning: Partitioning | None = None,
) -> TrainState:
    """The state before the first step, made in place on the devices.

    Args:
      model: what trains.
      optimizer: keeps its state for the trainable part of the params.
      key: for fresh weights; not needed with `params`.
      params: weights to start from. They are copied: a step reuses the memory of its state, never of yours.
      model_state: batch statistics to start from, copied too.
      average: whether an average of the weights is kept (see `make_step`).
      count_skipped: whether updates may be left out (see `make_step`).
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
        zero = jnp.zeros((), jnp.int32)
        state = TrainState(
            zero,
            params,
            optimizer.init(trainable),
            model_state,
            jax.tree.map(jnp.copy, trainable) if average else None,
            zero if count_skipped else None,
        )
        return _placed(state, model, partitioning)

    return jax.jit(make)(key, params, model_state)


def make_step(
    model: Model,
    loss: LossFn,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    *,
    schedule: Schedule | None = None,
    average: float = 0.999,
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
      average: decay of the average of the weights, where the state keeps one; it starts lower, at
        (1 + step) / (10 + step), so that the average does not linger on the initial weights.
      partitioning: of a sharded model.

    Metrics are those of the loss, `grad_norm` (before clipping), `tokens` (the weight of the batch) and
    `learning_rate`. Where the state counts what is skipped, an update whose loss or gradient is not finite changes
    nothing but that count, the metric `skipped`. The step folds its number into the key: pass the same key every time.

    Raises:
      InputError: (when called) the batch does not divide into `accumulate` pieces.
    """

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        trainable, rest = partition(state.params, model.layout)

        def objective(trainable: Params, batch: Batch, model_state: State, key: jax.Array) -> tuple[jax.Array, Any]:
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
            made = state.step if state.skipped is None else state.step - state.skipped  # as the optimizer counts
            metrics["learning_rate"] = (effective(schedule(made), opt_state), one)
        after = TrainState(state.step + 1, params, opt_state, model_state)
        if state.average is not None:
            now = jnp.minimum(average, (1 + state.step) / (10 + state.step))
            moved = jax.tree.map(
                lambda old, new: old + (1 - now).astype(old.dtype) * (new - old),
                state.average,
                partition(params, model.layout)[0],
            )
            after = dataclasses.replace(after, average=moved)
        if state.skipped is not None:
            finite = jnp.isfinite(total) & jnp.isfinite(metrics["grad_norm"][0])
            before = dataclasses.replace(state, step=after.step, skipped=None)
            after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
            after = dataclasses.replace(after, skipped=state.skipped + ~finite)
            metrics["skipped"] = (after.skipped.astype(jnp.float32), one)
        return _placed(after, model, partitioning), metrics

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
    average = None if state.average is None else places
    skipped = None if state.skipped is None else whole
    where = TrainState(whole, weights, kept, everywhere, average, skipped)  # type: ignore
    return jax.lax.with_sharding_constraint(state, where)


def put(batch: Mapping[str, np.ndarray], partitioning: Partitioning | None = None) -> Batch:
    """A batch from the host on the devices; with a mesh, a process gives its own rows of the whole batch."""
    if partitioning is None:
        return jax.device_put(dict(batch))
    return {
        name: jax.make_array_from_process_local_data(partitioning.batch(array.ndim), array)
        for name, array in batch.items()
    }
