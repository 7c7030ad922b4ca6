"""The loss over frames whose places are not known: of sound, against what was said.

Shapes: B batch, T frames, U targets, V classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jaxmodel.model import Batch, Model, Outputs, Params, State
from jaxmodel.options import Task as Options
from jaxmodel.tasks.base import LossFn, Result, result, weights_of

DEFAULT = Options()


def ctc(model: Model, options: Options = DEFAULT) -> LossFn:
    """Connectionist temporal classification (Graves et al. 2006) of `targets` int32[B,U], behind which are blanks.

    The model gives `logits` [B,T,V] and may give `lengths` int32[B], how many of the frames are real. A row counts
    `weights` float32[B] for each of its targets (one where none are given). A row of fewer frames than its targets
    need cannot be aligned: it counts nothing in the loss. Metrics: loss (nats a target), unaligned (the share of
    such rows) and, in evaluation, error_rate: insertions, deletions and substitutions a target, decoded greedily.
    """

    def loss(params: Params, batch: Batch, state: State, key: jax.Array | None, train: bool) -> Result:
        targets = batch["targets"]
        weights = weights_of(batch, targets.shape[:1])
        out = model.apply(params, batch, state or None, key=key, train=train)
        logits, lengths = out["logits"].astype(jnp.float32), _lengths(out)
        real = targets != options.blank
        count = jnp.sum(real, axis=1)
        # Between two targets alike a frame has to be blank.
        needed = count + jnp.sum((targets[:, 1:] == targets[:, :-1]) & real[:, 1:], axis=1)
        aligned = needed <= lengths
        silent = (jnp.arange(logits.shape[1]) >= lengths[:, None]).astype(jnp.float32)
        nats = optax.ctc_loss(logits, silent, targets, 1.0 - real, blank_id=options.blank)
        counted = jnp.where(aligned[:, None] & real, weights[:, None], 0)
        metrics = {"unaligned": (jnp.sum(jnp.where(aligned, 0, weights)), jnp.sum(weights))}
        if not train:
            found = greedy(logits, lengths, options.blank)
            wrong = edit_distance(found, jnp.sum(found != options.blank, axis=1), targets, count)
            metrics["error_rate"] = (jnp.sum(weights * wrong), jnp.sum(weights * count))
        return result(jnp.sum(jnp.where(aligned, nats * weights, 0)), counted, metrics, out)

    return loss


def _lengths(out: Outputs) -> jax.Array:
    """int32[B]: real frames of each row."""
    rows, frames = out["logits"].shape[:2]
    return out["lengths"] if "lengths" in out.values else jnp.full(rows, frames, jnp.int32)


def greedy(logits: jax.Array, lengths: jax.Array, blank: int) -> jax.Array:
    """int32[B,T]: the likeliest class of each frame, each run of one once and no blanks; behind these are blanks."""
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=blank)[:, :-1]
    place = jnp.arange(best.shape[1])
    kept = (best != blank) & (best != before) & (place < lengths[:, None])
    first = jnp.take_along_axis(best, jnp.argsort(~kept, axis=1, stable=True), axis=1)
    return jnp.where(place < jnp.sum(kept, axis=1, keepdims=True), first, blank)


def edit_distance(
    first: jax.Array, first_lengths: jax.Array, second: jax.Array, second_lengths: jax.Array
) -> jax.Array:
    """int32[B]: insertions, deletions and substitutions from rows int32[B,T] to rows int32[B,U] (Levenshtein 1966)."""
    place = jnp.arange(second.shape[1] + 1)

    def step(distance: jax.Array, seen: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        """Distances [B,U+1] to each beginning of the second rows, from one token more of the first ones."""
        token, there = seen
        changed = distance[:, :-1] + (second != token[:, None])
        best = (distance + 1).at[:, 1:].min(changed)
        best = jax.lax.cummin(best - place, axis=1) + place  # insertions
        return jnp.where(there[:, None], best, distance), None

    there = jnp.arange(first.shape[1])[:, None] < first_lengths
    begin = jnp.broadcast_to(place, (len(second), len(place)))
    distance, _ = jax.lax.scan(step, begin, (first.T, there))
    return jnp.take_along_axis(distance, second_lengths[:, None], axis=1)[:, 0]


def predict_frames(outputs: Outputs, options: Options) -> dict[str, jax.Array]:
    """`prediction` int32[B,T]: what was said, decoded greedily, and behind it blanks."""
    return {"prediction": greedy(outputs["logits"], _lengths(outputs), options.blank)}
