"""Losses over sequences of tokens: predicted from those before, from those around, or from a source.

Shapes: B batch, T time, D model dim, V vocab.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmodel.losses import Sums, cross_entropy, streamed_cross_entropy
from jaxmodel.model import Batch, Model, Outputs, Params, State
from jaxmodel.options import Task as Options
from jaxmodel.tasks.base import LossFn, Result, result, weights_of

DEFAULT = Options()


def language_model(model: Model, options: Options = DEFAULT, *, chunk: int | None = None, shards: int = 1) -> LossFn:
    """Cross entropy of `targets` int32[B,T], each counting `weights` float32[B,T] (one where none are given).

    Metrics: loss (nats a token), accuracy, perplexity, and the model's own losses by name. In training with
    `label_smoothing` the loss is that of smoothed targets, from which no perplexity follows: there is none then.

    Args:
      model: gives `logits` [B,T,V]; if it gives `hidden` too, many logits are never held at once.
      options: `label_smoothing`.
      chunk: tokens whose logits may be held at once; by default what is fastest.
      shards: among how many devices those tokens are shared out; `chunk` counts for each.
    """

    def loss(params: Params, batch: Batch, state: State, key: jax.Array | None, train: bool) -> Result:
        targets = batch["targets"]
        weights = weights_of(batch, targets.shape)
        out = model.apply(params, batch, state or None, key=key, train=train)
        return streamed(params, out, targets, weights, train)

    streamed = _streaming(model, options, chunk, shards)
    return loss


def seq2seq(model: Model, options: Options = DEFAULT, *, chunk: int | None = None, shards: int = 1) -> LossFn:
    """Cross entropy of `targets` int32[B,T], what follows each of the batch's `decoder_tokens` [B,T].

    Teacher forcing is up to the data: `decoder_tokens` are the targets moved on by one behind a start token. A
    target counts its `weights` ([B,T], or [B] for whole rows; one where none are given), and nothing where
    `decoder_mask` is false. Metrics and arguments are those of `language_model`; `hidden`, if there is any, is
    the decoder's.
    """

    def loss(params: Params, batch: Batch, state: State, key: jax.Array | None, train: bool) -> Result:
        targets = batch["targets"]
        weights = weights_of(batch, targets.shape) * batch.get("decoder_mask", 1)
        out = model.apply(params, batch, state or None, key=key, train=train)
        return streamed(params, out, targets, weights, train)

    streamed = _streaming(model, options, chunk, shards)
    return loss


def masked_language_model(
    model: Model,
    options: Options = DEFAULT,
    *,
    mask_id: int,
    vocab_size: int,
    chunk: int | None = None,
    shards: int = 1,
) -> LossFn:
    """Cross entropy of the `tokens` int32[B,T] that `corrupt` chose, predicted from what it made of the row.

    Padding (where `mask` is false or `segments` is 0) and what weighs nothing are neither chosen nor changed:
    give special tokens a weight of 0. In evaluation (no key) what is chosen follows from each row's own tokens, so
    that a row counts the same in any batch, however padded. Metrics are those of `language_model`.

    Args:
      model: gives `logits` [B,T,V], and `hidden` if many logits are not to be held at once.
      options: `label_smoothing` and `mask_fraction`.
      mask_id: the token that stands for what is hidden.
      vocab_size: tokens to draw from; not V, which may be rounded up.
      chunk: as in `language_model`.
      shards: as in `language_model`.
    """

    def loss(params: Params, batch: Batch, state: State, key: jax.Array | None, train: bool) -> Result:
        tokens = batch["tokens"]
        weights = weights_of(batch, tokens.shape)
        real = weights > 0
        if "mask" in batch:
            real &= batch["mask"]
        if "segments" in batch:
            real &= batch["segments"] > 0
        mine, rest = (None, None) if key is None else jax.random.split(key)
        seen, chosen = corrupt(
            tokens, real, mine, mask_id=mask_id, vocab_size=vocab_size, fraction=options.mask_fraction
        )
        out = model.apply(params, {**batch, "tokens": seen}, state or None, key=rest, train=train)
        return streamed(params, out, tokens, jnp.where(chosen, weights, 0), train)

    streamed = _streaming(model, options, chunk, shards)
    return loss


def predict_tokens(outputs: Outputs, options: Options) -> dict[str, jax.Array]:
    """`prediction` int32[B,T], the likeliest token everywhere."""
    del options
    return {"prediction": jnp.argmax(outputs["logits"], axis=-1).astype(jnp.int32)}


def corrupt(
    tokens_BT: jax.Array,
    real_BT: jax.Array,
    key: jax.Array | None,
    *,
    mask_id: int,
    vocab_size: int,
    fraction: float = 0.15,
) -> tuple[jax.Array, jax.Array]:
    """Tokens to learn to restore, and bool[B,T], which were chosen: a `fraction` of the real ones (arXiv:1810.04805).

    Of those 80% become `mask_id`, 10% any token and 10% stay. In a row with real tokens at least one is chosen.
    Without a key, what is drawn for a row is a function of its real tokens.
    """
    index = jnp.cumsum(real_BT, axis=1) - 1  # among the real ones: the same, left or right of how much padding
    if key is None:
        key, rows = jax.random.key(0, impl="threefry2x32"), _hash(tokens_BT, index, real_BT)
    else:
        rows = jnp.arange(tokens_BT.shape[0])
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys = jax.vmap(fold)(fold(key, rows), index)
    bits = jax.vmap(jax.vmap(lambda key: jax.random.bits(key, (3,))))(keys)
    choice, fate = (bits[..., i] >> 8 for i in (0, 1))  # of 24 bits, which float32 holds
    choice = jnp.where(real_BT, choice, 2**24)
    chosen = real_BT & ((choice < fraction * 2**24) | (choice == jnp.min(choice, axis=1, keepdims=True)))
    changed = jnp.where(fate < 0.8 * 2**24, mask_id, (bits[..., 2] % vocab_size).astype(tokens_BT.dtype))
    return jnp.where(chosen & (fate < 0.9 * 2**24), changed, tokens_BT), chosen


def _hash(tokens_BT: jax.Array, index_BT: jax.Array, real_BT: jax.Array) -> jax.Array:
    """uint32[B] from the real tokens of a row and their order."""
    x = tokens_BT.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + index_BT.astype(jnp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the end of MurmurHash3
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return jnp.sum(jnp.where(real_BT, x ^ (x >> 16), 0), axis=1, dtype=jnp.uint32)


def _streaming(model: Model, options: Options, chunk: int | None, shards: int):
    """(params, outputs, targets, weights, train) -> Result of cross entropy, streamed where the model lets us."""

    def of(params: Params, out: Outputs, targets: jax.Array, weights: jax.Array, train: bool) -> Result:
        smoothing = options.label_smoothing if train else 0.0
        logits = out["logits"]
        piece = (chunk or _default_chunk(logits.shape[-1])) * shards
        if "hidden" in out.values and targets.size > piece:
            # Nobody reads `logits` now, so under jit they are never computed.
            sums = streamed_cross_entropy(
                lambda hidden: model.apply(params, {"hidden": hidden}, train=train)["logits"],
                out["hidden"],
                targets,
                weights,
                piece,
                smoothing,
            )
        else:
            sums = cross_entropy(logits, targets, weights, smoothing)
        return result(sums.loss, weights, _metrics(sums, smoothing), out)

    return of


def _metrics(sums: Sums, smoothing: float) -> dict[str, tuple[jax.Array, jax.Array]]:
    found = {"accuracy": (sums.correct, sums.weight)}
    return found if smoothing else {**found, "perplexity": (sums.loss, sums.weight)}


def _default_chunk(vocab_size: int) -> int:
    """Tokens whose logits are held at once.

    On a CPU a piece that stays in the cache beats even the direct form, 1.8 times at 4096 tokens and 1,024 to
    32,768 logits each; elsewhere large products are what is fast, and pieces hold 128 MB.
    """
    return 512 if jax.default_backend() == "cpu" else max(1024, 2**27 // (4 * vocab_size))
