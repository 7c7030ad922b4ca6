"""Losses as sums: the loss, the weight it is over, and how many were right; never a mean.

Shapes: B batch, T time, D model dim, V vocab, N pieces.
"""

from __future__ import annotations

import functools
import math
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


def cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array, smoothing: float = 0.0) -> Sums:
    """Cross entropy in nats of logits [..., V] against targets int[...], each counting weights [...].

    Computed in float32. What weighs nothing may have any target, out of range too. With `smoothing` a target is
    that much of the uniform distribution, and the rest of itself (arXiv:1512.00567, section 7).
    """
    logits, weights = logits.astype(jnp.float32), weights.astype(jnp.float32)
    # Compare and reduce rather than gather: the transpose of a gather is a scatter, and a gather over a
    # sharded vocabulary would collect all the logits on every device.
    ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    target = targets[..., None]
    picked = jnp.sum(jnp.where(ids == target, logits, 0), axis=-1)
    aim = picked if not smoothing else (1 - smoothing) * picked + smoothing * jnp.mean(logits, axis=-1)
    loss = jax.nn.logsumexp(logits, axis=-1) - aim
    # Right when argmax would say so: of equal logits the first wins. Argmax itself does not vectorize.
    best = jax.lax.stop_gradient(picked)[..., None]
    beaten = jnp.any(jnp.where(ids < target, logits >= best, logits > best), axis=-1)
    return Sums(jnp.sum(loss * weights), jnp.sum(weights), jnp.sum(jnp.where(beaten, 0, weights)))


def sigmoid_cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, smoothing: float = 0.0, threshold: float = 0.5
) -> Sums:
    """Cross entropy in nats of the probabilities sigmoid(logits [...]) against targets [...] of 0 or 1, or between.

    Computed in float32. What weighs nothing may have any target. With `smoothing` a target moves that much of
    the way to 1/2. Right is what lies on the target's side of the `threshold`, a probability.
    """
    logits, weights = logits.astype(jnp.float32), weights.astype(jnp.float32)
    targets = jnp.where(weights > 0, targets.astype(jnp.float32), 0)
    aim = targets if not smoothing else (1 - smoothing) * targets + smoothing / 2
    # Not softplus(logits) - aim * logits: what is known for sure would be lost in the difference.
    loss = aim * jax.nn.softplus(-logits) + (1 - aim) * jax.nn.softplus(logits)
    right = above(logits, threshold) == (targets >= 0.5)
    return Sums(jnp.sum(loss * weights), jnp.sum(weights), jnp.sum(jnp.where(right, weights, 0)))


def above(logits: jax.Array, threshold: float) -> jax.Array:
    """Whether sigmoid(logits) reaches the threshold, decided where float32 has more digits than probabilities."""
    return logits >= math.log(threshold) - math.log1p(-threshold)


def huber(errors: jax.Array, delta: float) -> jax.Array:
    """errors² / 2 up to `delta`, from there on as steep as there (Huber, 1964)."""
    size = jnp.minimum(jnp.abs(errors), delta)
    return size * (jnp.abs(errors) - size / 2)


def pinball(errors: jax.Array, quantiles: Sequence[float]) -> jax.Array:
    """Mean over [..., Q] predictions - target of the loss that a quantile minimises (Koenker and Bassett, 1978)."""
    q = jnp.asarray(quantiles, errors.dtype)
    return jnp.mean(jnp.maximum(-q * errors, (1 - q) * errors), axis=-1)


def similarities(first: jax.Array, second: jax.Array, temperature: float) -> jax.Array:
    """Cosines of every row of [B,D] with every row of the other over `temperature`, float32[B,B]."""
    return jnp.matmul(unit(first), unit(second).T, precision="highest") / temperature


def contrastive(logits: jax.Array, weights: jax.Array) -> Sums:
    """Symmetric InfoNCE (arXiv:1807.03748, arXiv:2103.00020): each row of [B,B] is to find its partner, both ways.

    Computed in float32. A row of weight zero neither asks nor is a wrong answer. All else being equal, the loss grows
    with the number of rows: it is that of telling one from all.
    """
    valid, logits = weights > 0, logits.astype(jnp.float32)
    targets = jnp.arange(logits.shape[0], dtype=jnp.int32)
    # Not -inf, which would make the loss of a batch without a valid row NaN.
    ways = [jnp.where(valid, each, -1e30) for each in (logits, logits.T)]
    sums = [cross_entropy(each, targets, weights) for each in ways]
    return jax.tree.map(lambda a, b: (a + b) / 2, *sums)


def sigmoid_contrastive(logits: jax.Array, weights: jax.Array) -> Sums:
    """Each pair of [B,B] logits on its own: a row belongs to its partner and to no other (arXiv:2303.15343).

    Computed in float32; a row's loss is the sum over its pairs, in nats, the mean of both directions. A row of weight
    zero is in no pair. Right is a row whose partner has the largest logit, as `contrastive` counts it.
    """
    logits, weights = logits.astype(jnp.float32), weights.astype(jnp.float32)
    valid = weights > 0
    sign = 2 * jnp.eye(logits.shape[0], dtype=jnp.float32) - 1
    counts = (weights[:, None] * valid + valid[:, None] * weights) / 2
    # Selected before it is multiplied: what stands in a row that is not there may be anything, NaN too.
    pairs = jnp.where(counts > 0, sign * logits, 0)
    targets = jnp.arange(logits.shape[0], dtype=jnp.int32)
    ways = [jnp.where(valid, each, -1e30) for each in (logits, logits.T)]
    right = [cross_entropy(each, targets, weights).correct for each in ways]
    return Sums(jnp.sum(counts * jax.nn.softplus(-pairs)), jnp.sum(weights), (right[0] + right[1]) / 2)


def unit(x: jax.Array) -> jax.Array:
    """x [..., D] at length one, float32; zeros stay zeros."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def streamed_cross_entropy(
    head: Head, hidden_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array, chunk: int, smoothing: float = 0.0
) -> Sums:
    """`cross_entropy(head(hidden), targets, weights, smoothing)`, never holding the logits of more than `chunk` tokens.

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
    loss, correct = _streamed(explicit, smoothing, captured, hidden, targets, weights)  # type: ignore[misc]
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _streamed(head: Any, smoothing: float, captured: Sequence[Any], hidden: Any, targets: Any, weights: Any) -> Any:
    """(loss, correct) over pieces [N, b, t, …] of a head that takes what it captured as further arguments."""

    def sums(_: Any, piece: Any) -> tuple[Any, Any]:
        hidden, targets, weights = piece
        loss, _, correct = cross_entropy(head(hidden, *captured), targets, weights, smoothing)
        return None, (loss, correct)

    # Added up at the end: one by one, a thousand pieces would lose the sixth digit of an evaluation.
    return jax.tree.map(jnp.sum, jax.lax.scan(sums, None, (hidden, targets, weights))[1])


def _streamed_forward(
    head: Any, smoothing: float, captured: Sequence[Any], hidden: Any, targets: Any, weights: Any
) -> Any:
    values = [array.value for array in captured]
    live = [i for i, array in enumerate(captured) if array.perturbed]  # a frozen head costs no gradient

    def add(carry: Any, piece: Any) -> tuple[Any, Any]:
        loss, correct, grads = carry
        hidden, targets, weights = piece

        def piece_loss(arrays: Sequence[jax.Array], hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
            merged = list(values)
            for i, array in zip(live, arrays, strict=True):
                merged[i] = array
            sums = cross_entropy(head(hidden, *merged), targets, weights, smoothing)
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


def _streamed_backward(head: Any, smoothing: float, saved: Any, cotangents: Any) -> Any:
    del head, smoothing
    g = cotangents[0]  # of the loss; that of `correct` leads nowhere
    if isinstance(g, jax.custom_derivatives.SymbolicZero):
        g = jnp.zeros(())
    d_captured, d_hidden = jax.tree.map(lambda d: d * g.astype(d.dtype), saved)
    return d_captured, d_hidden, None, None


_streamed.defvjp(_streamed_forward, _streamed_backward, symbolic_zeros=True)
