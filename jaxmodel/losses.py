"""Losses as sums: the loss, the weight it is over, and how many were right; never a mean.

Shapes: B batch, T time, D model dim, V vocab, N pieces.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Head = Callable[[jax.Array], jax.Array]


class Sums(NamedTuple):
    """Sums over targets, float32[] each: over `weight`, `loss` is the mean and `correct` the accuracy."""

    loss: jax.Array  # nats
    weight: jax.Array
    correct: jax.Array  # the weight of the targets that argmax finds; carries no gradient


def cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> Sums:
    """Cross entropy in nats of logits [..., V] against targets int[...], each counting weights [...].

    Computed in float32. What weighs nothing may have any target, out of range too.
    """
    logits, weights = logits.astype(jnp.float32), weights.astype(jnp.float32)
    # Compare and reduce rather than gather: the transpose of a gather is a scatter, and a gather over a
    # sharded vocabulary would collect all the logits on every device.
    ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    target = targets[..., None]
    picked = jnp.sum(jnp.where(ids == target, logits, 0), axis=-1)
    loss = jax.nn.logsumexp(logits, axis=-1) - picked
    # Right when argmax would say so: of equal logits the first wins. Argmax itself does not vectorize.
    best = jax.lax.stop_gradient(picked)[..., None]
    beaten = jnp.any(jnp.where(ids < target, logits >= best, logits > best), axis=-1)
    return Sums(jnp.sum(loss * weights), jnp.sum(weights), jnp.sum(jnp.where(beaten, 0, weights)))


def streamed_cross_entropy(
    head: Head, hidden_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array, chunk: int
) -> Sums:
    """`cross_entropy(head(hidden), targets, weights)`, never holding the logits of more than `chunk` tokens.

    `head` maps [..., D] to logits [..., V], token by token; it may close over what is differentiated. A
    piece's gradients are taken while its logits are there (the loss is a scalar, so its cotangent can be
    multiplied in later): no product is computed twice, and nothing but gradients is kept. Gradients with
    respect to `weights` are zero.
    """
    rows, columns = targets_BT.shape
    pieces = functools.partial(_pieces, splits=_splits(rows, columns, chunk))
    hidden, targets, weights = pieces(hidden_BTD), pieces(targets_BT), pieces(weights_BT)
    piece = jax.ShapeDtypeStruct(hidden.shape[1:], hidden.dtype)
    explicit, captured = jax.closure_convert(head, piece)  # type: ignore[call-arg]
    loss, correct = _streamed(explicit, captured, hidden, targets, weights)  # type: ignore[misc]
    return Sums(loss, jnp.sum(weights_BT.astype(jnp.float32)), correct)


def _splits(rows: int, columns: int, chunk: int) -> tuple[int, int]:
    """Into how many parts to split B and T so that a piece has at most `chunk` tokens; T first."""
    if chunk < rows:
        return -(-rows // max(chunk, 1)), columns
    return 1, -(-columns // (chunk // rows))


def _pieces(x_BT: jax.Array, splits: tuple[int, int]) -> jax.Array:
    """[B, T, …] to [N, b, t, …], zeros at the end.

    A piece takes every n-th row and column, so that axes split over devices stay where they are.
    """
    rows, columns = splits
    padding = [(0, -x_BT.shape[0] % rows), (0, -x_BT.shape[1] % columns)] + [(0, 0)] * (x_BT.ndim - 2)
    x = jnp.pad(x_BT, padding)
    x = x.reshape(x.shape[0] // rows, rows, x.shape[1] // columns, columns, *x.shape[2:])
    x = jnp.moveaxis(x, (1, 3), (0, 1))
    return x.reshape(rows * columns, *x.shape[2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _streamed(head: Any, captured: Sequence[Any], hidden: Any, targets: Any, weights: Any) -> Any:
    """(loss, correct) over pieces [N, b, t, …] of a head that takes what it captured as further arguments."""

    def add(sums: Any, piece: Any) -> tuple[Any, None]:
        hidden, targets, weights = piece
        loss, _, correct = cross_entropy(head(hidden, *captured), targets, weights)
        return (sums[0] + loss, sums[1] + correct), None

    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(add, (zero, zero), (hidden, targets, weights))[0]


def _streamed_forward(head: Any, captured: Sequence[Any], hidden: Any, targets: Any, weights: Any) -> Any:
    values = [array.value for array in captured]
    live = [i for i, array in enumerate(captured) if array.perturbed]  # a frozen head costs no gradient

    def add(carry: Any, piece: Any) -> tuple[Any, Any]:
        loss, correct, grads = carry
        hidden, targets, weights = piece

        def piece_loss(arrays: Sequence[jax.Array], hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
            merged = list(values)
            for i, array in zip(live, arrays, strict=True):
                merged[i] = array
            sums = cross_entropy(head(hidden, *merged), targets, weights)
            return sums.loss, sums.correct

        value_and_grad = jax.value_and_grad(piece_loss, argnums=(0, 1), has_aux=True)
        (more, right), (d_arrays, d_hidden) = value_and_grad([values[i] for i in live], hidden)
        grads = [total + d.astype(total.dtype) for total, d in zip(grads, d_arrays, strict=True)]
        return (loss + more, correct + right, grads), d_hidden

    zero = jnp.zeros((), jnp.float32)
    zeros = [jnp.zeros(values[i].shape, jnp.promote_types(values[i].dtype, jnp.float32)) for i in live]
    pieces = (hidden.value, targets.value, weights.value)
    (loss, correct, grads), d_hidden = jax.lax.scan(add, (zero, zero, zeros), pieces)
    d_captured: list[Any] = [None] * len(values)
    for i, grad in zip(live, grads, strict=True):
        d_captured[i] = grad.astype(values[i].dtype)
    return (loss, correct), (d_captured, d_hidden)


def _streamed_backward(head: Any, saved: Any, cotangents: Any) -> Any:
    del head
    g = cotangents[0]  # of the loss; that of `correct` leads nowhere
    if isinstance(g, jax.custom_derivatives.SymbolicZero):
        g = jnp.zeros(())
    d_captured, d_hidden = jax.tree.map(lambda d: d * g.astype(d.dtype), saved)
    return d_captured, d_hidden, None, None


_streamed.defvjp(_streamed_forward, _streamed_backward, symbolic_zeros=True)
