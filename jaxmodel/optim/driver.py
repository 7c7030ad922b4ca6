"""One driver for all optimizers: clip, find a direction, decay, move by the learning rate of the weight."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmodel.errors import InputError
from jaxmodel.optim import storage
from jaxmodel.optim.clipping import clipped
from jaxmodel.optim.schedules import make_plateau, make_schedule
from jaxmodel.optim.table import OPTIMIZERS
from jaxmodel.optim.weight import Weight, check_scales, weights_of
from jaxmodel.options import Optimizer
from jaxmodel.weights import num_bytes


def make_optimizer(options: Optimizer, steps: int, layout: Any) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a run of `steps`; it is given the trainable part of the params, holes and all.

    Weight decay is decoupled from the gradient, times the learning rate, and meets only weights whose layout has an
    arrow: no norms, no biases. A weight whose `scale` is 0 stays as it is, has no state and does not count in
    the norm that is clipped.

    The state is a dict: `count`, and what the optimizer keeps (`mean`, `square`, …), each a tree like the params
    with holes where nothing is kept. With the schedule "plateau", `update(…, value=loss)` watches the loss.

    Raises:
      InputError: an unknown optimizer or schedule (the nearest one is named), an option that they do not take, a path
        that no weight has, or other options out of bounds.
    """
    schedule = make_schedule(options, steps)  # checks all options, the name too
    options = options.resolved(steps)
    scales = options.scales()
    check_scales(layout, scales)
    rule = OPTIMIZERS[options.name](options)
    plateau = make_plateau(options)
    weight_decay = options.weight_decay or 0.0

    def dtype_of(weight: Weight) -> str:
        return (options.state_dtype or "float32") if weight.multiplies else "float32"

    def init(params: Any) -> dict[str, Any]:
        arrays, structure = jax.tree.flatten(params)
        kept: list[dict[str, Any]] = [{} for _ in arrays]
        for i, (weight, p) in enumerate(zip(weights_of(layout, params, scales), arrays, strict=True)):
            if weight.scale:
                for name, shape in rule.keeps(weight, p).items():
                    kept[i][name] = storage.zeros(shape, dtype_of(weight), name != "square")
        state = {"count": jnp.zeros((), jnp.int32)} | _by_name(kept, structure)
        return state if plateau is None else state | {"plateau": plateau.init(jnp.zeros(()))}

    def update(
        grads: Any, state: dict[str, Any], params: Any = None, *, value: Any = None, **_: Any
    ) -> tuple[Any, dict[str, Any]]:
        arrays, structure = jax.tree.flatten(params)
        weights = weights_of(layout, params, scales)
        moving = [i for i, weight in enumerate(weights) if weight.scale]
        columns = {
            name: structure.flatten_up_to(tree) for name, tree in state.items() if name not in ("count", "plateau")
        }
        count, rate = state["count"] + 1, schedule(state["count"])
        after: dict[str, Any] = {"count": count}
        if plateau is not None:
            if value is None:
                raise InputError("optimizer.schedule=plateau watches the loss: call optimizer.update(…, value=loss)")
            watched: Any = plateau.update(jnp.ones(()), state["plateau"], value=value)[1]
            # A batch that counted nothing has no loss: it says nothing of a plateau.
            said = jnp.isfinite(value)
            watched = jax.tree.map(lambda new, old: jnp.where(said, new, old), watched, state["plateau"])
            rate, after["plateau"] = rate * watched.scale, watched

        flat = structure.flatten_up_to(grads)
        picked = ([each[i] for i in moving] for each in (arrays, flat))
        gradients = clipped(options, [weights[i] for i in moving], *picked)
        updates = [jnp.zeros_like(p) for p in arrays]
        kept: list[dict[str, Any]] = [{} for _ in arrays]
        for i, g in zip(moving, gradients, strict=True):
            weight, p = weights[i], arrays[i]
            before = {name: storage.read(each[i]) for name, each in columns.items() if each[i] is not None}
            direction, found = rule.step(weight, count.astype(jnp.float32), g, p, before)
            if weight_decay and weight.multiplies:
                direction = direction + weight_decay * p.astype(jnp.float32)
            updates[i] = (-rate * weight.scale * direction).astype(p.dtype)
            for j, (name, x) in enumerate(found.items()):
                kept[i][name] = storage.store(x, dtype_of(weight), name != "square", count, 2 * i + j)
        return structure.unflatten(updates), after | _by_name(kept, structure)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def _by_name(kept: list[dict[str, Any]], structure: Any) -> dict[str, Any]:
    """What is kept for each array, as a tree for each name, with holes where an array has none."""
    names = dict.fromkeys(name for each in kept for name in each)
    return {name: structure.unflatten([each.get(name) for each in kept]) for name in names}


def state_bytes(state: Any) -> int:
    """Bytes of an optimizer's state as it is stored, over all devices; works on shapes alone."""
    return num_bytes(state)
