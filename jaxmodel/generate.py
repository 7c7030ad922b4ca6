"""Text from a language model: prompts of any lengths in one batch, the whole loop one compiled function.

B batch, P prompt slots, N new tokens, V vocab.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodel import weights
from jaxmodel.compiling import compiler_options, decoding_options, streams
from jaxmodel.errors import InputError
from jaxmodel.interop.signature import limits_of, of_config
from jaxmodel.model import Apply, Batch, Model, Outputs, Params, Start, State
from jaxmodel.nn.cache import FullCache
from jaxmodel.nn.stack import unstack, unstack_layout

Prompt = Sequence[int] | np.ndarray
SMALLEST_BUCKET = 16
STOPS = 8  # stop ids come in groups of this many, so that few or none compile alike
COLDEST = 1e-6  # colder than this, logits divided by the temperature overflow


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[Prompt] | Mapping[str, Any],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: Sequence[int] = (),
    separator: int | None = None,
    begin: Sequence[int] | None = None,
) -> list[list[int]]:
    """Continue every prompt; returns the new tokens of each, without the stop token that ended it.

    Of an encoder and a decoder a prompt is what the encoder reads, once, and the new tokens are the decoder's.

    What row i becomes depends on its prompt, `seed`, i and the positions of its own tokens, not on other
    rows: to continue a continuation with the same seed gives what one longer call gives. Compiled once for
    each number of prompts, power of two of their length, `max_new_tokens`, `top_k` and way of drawing.

    Args:
      model: gives `logits` [B,T,V] for `tokens`, causally. With a cache (from `start(batch_size, length)`)
        it reads each token once, and `mask` says where its rows, padded left, begin; without one it reads
        everything anew for each token, padded right and without a mask.
      params: its weights. For decoding they are `prepared`, a copy: whoever calls often, or lacks the memory
        for two, does that once and keeps only what it gives.
      prompts: token ids, one sequence a prompt; or a batch, `tokens` int[B,T], or what else an encoder reads, and
        perhaps `mask` bool[B,T], and what else the model reads with a prompt: `images`.
      max_new_tokens: how many tokens to add at most.
      temperature: divides the logits before a token is drawn; 0 takes the likeliest.
      top_k: draw from this many of the likeliest tokens.
      top_p: draw from the fewest likeliest tokens that together have this probability, after temperature and
        top_k (arXiv:1904.09751).
      seed: of the draws.
      stop: ids that end a text.
      separator: the id that stands in for an empty prompt; documents start with it.
      begin: tokens that every text of a decoder beside an encoder begins with; None: `config.start_token`.

    Raises:
      InputError: the model is not causal, an option out of bounds, no prompt, an empty one without a separator, an
        id outside the vocabulary, a prompt that ends with an image, or one that with the new tokens is longer than
        the model's `max_length`.
    """
    _check_options(max_new_tokens, temperature, top_k, top_p)
    if of_config(model.config, "causal") is False:
        raise InputError(
            "the model's attention is not causal, so it cannot continue a text: earlier tokens would see later ones"
        )
    limits, source = limits_of(model), {}
    limit = limits.get("length")
    if paired := "decoder_tokens" in (of_config(model.config, "reads") or ()):
        source = _source(model, prompts, separator, limit)
        prompts, limit = _begun(model, source, begin), limits.get("decoder_length")
    elif isinstance(prompts, Mapping):
        beside = {name: each for name, each in prompts.items() if name not in ("tokens", "mask")}
        source = {name: each for name, each in beside.items() if each is not None}
    rows = _rows(prompts, separator)
    _check_rows(rows, max_new_tokens, limit, of_config(model.config, "vocab_size"))
    image_token = of_config(model.config, "image_token")
    if image_token is not None and any(row[-1] == image_token for row in rows):
        raise InputError(
            f"a prompt ends with the token of an image, {image_token}: put words behind it, as its template does"
        )

    longest = max(map(len, rows))
    slots = longest if longest == 1 else 1 + max(SMALLEST_BUCKET, 1 << (longest - 2).bit_length())
    if limit is not None:
        slots = min(slots, limit - max_new_tokens + 1)
    tokens = np.zeros((len(rows), slots), np.int32)
    for row, prompt in zip(tokens, rows, strict=True):
        row[slots - len(prompt) :] = prompt

    greedy = temperature == 0
    nucleus = not greedy and top_p is not None and top_p < 1  # 1 keeps everything, but for rounding
    how = Sampling(greedy, None if greedy else top_k, nucleus)
    cached, quick = _cache(model.start) is not None, _streams(model)
    # Dequantizing before the loop is quicker where there is memory for it; elsewhere reading few bytes is.
    run = _compiled(
        model.apply, model.start, max_new_tokens, how, cached, jax.default_backend() == "cpu", quick, paired
    )
    found = run(
        prepared(model, params),
        tokens,
        np.array([len(prompt) for prompt in rows], np.int32),
        jax.random.key(seed),
        np.array([*stop, *[-1] * (-len(stop) % STOPS or STOPS)], np.int32),
        np.float32(max(temperature, COLDEST)),
        np.float32(1.0 if top_p is None else top_p),
        source,
    )
    return [_cut(row, set(stop)) for row in np.asarray(found).tolist()]


def prepared(model: Model, params: Params) -> Params:
    """Params as `generate` reads them: unstacked; on CPU, in the order that streams them, and so dense.

    What is prepared already stays as it is, and so do the params of a model without a cache, and of an export.
    """
    cache = _cache(model.start)
    if cache is None:
        return params
    apart = unstack(params, cache)
    if not _streams(model):
        return apart
    # A table that no head multiplies by is only looked up in.
    return weights.stream(apart, unstack_layout(model.layout, cache), of_config(model.config, "tied") is not False)


def _streams(model: Model) -> bool:
    """Whether a model's weights are streamed: not an export's, whose blocks lie apart already, as its programs say."""
    cache = _cache(model.start)
    return cache is not None and streams() and unstack_layout(model.layout, cache) != model.layout


def likeliest(logits: jax.Array, top_k: int | None = None, top_p: jax.Array | float | None = None) -> jax.Array:
    """Logits [..., V] with all but the likeliest tokens at -inf; what ties with the last one kept stays too.

    Args:
      logits: unnormalised log probabilities.
      top_k: how many are kept; None: all.
      top_p: of those, the fewest that together have this share of their probability; None: all.
    """
    V = logits.shape[-1]
    kept, _ = jax.lax.top_k(logits, min(top_k or V, V))  # sorted, the largest first
    if top_p is not None:
        shares = jax.nn.softmax(kept, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        # A token stays if those before it do not reach top_p yet; the first always does.
        stays = (before < top_p).at[..., 0].set(True)
        kept = jnp.where(stays, kept, jnp.inf)
    return jnp.where(logits >= jnp.min(kept, axis=-1, keepdims=True), logits, -jnp.inf)


class Sampling(NamedTuple):
    """What is compiled in of how a token is chosen."""

    greedy: bool
    top_k: int | None
    nucleus: bool


class Reader(NamedTuple):
    """How a model reads a batch of texts.

    Attributes:
      begin: params -> the state once all but the last token of every prompt are read.
      read: (params, token int32[B], its position int32[B], state) -> (logits [B,V] after it, the next state).
    """

    begin: Callable[[Params], Any]
    read: Callable[[Params, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


@functools.lru_cache(maxsize=16)
def _compiled(
    apply: Apply,
    start: Start,
    num_new: int,
    how: Sampling,
    cached: bool,
    hoist: bool,
    quick: bool = False,
    paired: bool = False,
) -> Callable[..., jax.Array]:
    """(params, tokens [B,P] padded left, lengths [B], key, stop, temperature, top_p, source) -> int32[B,N], -1: none.

    `hoist` lets XLA compute what depends on the params alone, such as dense weights of quantized ones, once.
    `quick`: the params are `prepared`, to be streamed. `source` is what is read with the prompt; `paired`: it
    is what an encoder reads, and the tokens are those of the decoder beside it.
    """
    prefix = "decoder_" if paired else ""
    start = _streaming(start) if quick else start

    def choose(logits_BV: jax.Array, keys_B: jax.Array, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
        if how.greedy:
            return _argmax(logits_BV)
        logits_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / temperature
        if how.top_k is not None or how.nucleus:
            logits_BV = likeliest(logits_BV, how.top_k, top_p if how.nucleus else None)
        return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)

    def run(
        params: Params,
        tokens_BP: jax.Array,
        lengths_B: jax.Array,
        key: jax.Array,
        stop: jax.Array,
        temperature: jax.Array,
        top_p: jax.Array,
        source: dict[str, jax.Array],
    ) -> jax.Array:
        B = tokens_BP.shape[0]
        row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(B))
        if not paired and tokens_BP.shape[1] == 1:
            source = {}  # one token is no place for an image
        reading = _with_cache if cached else _without_cache
        reader = reading(_named(apply, prefix), start, tokens_BP, lengths_B, num_new, source)

        def more(carry: Any) -> jax.Array:
            i, _, stopped_B, _, _ = carry
            return (i < num_new) & ~jnp.all(stopped_B)

        def step(carry: Any) -> Any:
            i, token_B, stopped_B, text_BN, state = carry
            held = params if hoist else jax.lax.optimization_barrier((params, i))[0]
            logits_BV, state = reader.read(held, token_B, lengths_B + i - 1, state)
            keys_B = jax.vmap(jax.random.fold_in)(row_keys, lengths_B + i)
            token_B = choose(logits_BV, keys_B, temperature, top_p)
            stopped_B = stopped_B | jnp.any(token_B[:, None] == stop, axis=1)
            return i + 1, token_B, stopped_B, text_BN.at[:, i].set(token_B), state

        # The last token of a prompt is the first that the loop reads; it is in the same slot in every row.
        empty = jnp.full((B, num_new), -1, jnp.int32)
        carry = jnp.zeros((), jnp.int32), tokens_BP[:, -1], jnp.zeros(B, bool), empty, reader.begin(params)
        return jax.lax.while_loop(more, step, carry)[3]

    return jax.jit(run, compiler_options=decoding_options() if quick else compiler_options())


def _streaming(start: Start) -> Start:
    """Start, with caches that are read as streamed weights are."""

    def streaming(each: Any) -> Any:
        return dataclasses.replace(each, multiply=weights.streamed_matmul) if isinstance(each, FullCache) else each

    def starting(batch_size: int | None = None, length: int | None = None) -> State:
        return jax.tree.map(streaming, start(batch_size, length), is_leaf=lambda each: isinstance(each, FullCache))

    return starting


def _argmax(logits_BV: jax.Array) -> jax.Array:
    """int32[B], the first of the largest, in two passes that vectorize; `jnp.argmax` does not on CPU."""
    ids = jax.lax.broadcasted_iota(jnp.int32, logits_BV.shape, 1)
    last = logits_BV.shape[1] - 1
    return jnp.min(jnp.where(logits_BV == jnp.max(logits_BV, axis=1, keepdims=True), ids, last), axis=1)


def _named(apply: Apply, prefix: str) -> Callable[..., Outputs]:
    """(params, what the encoder reads, what the decoder reads, state) -> Outputs; the latter's names get the prefix."""

    def named(params: Params, source: Batch, target: Batch, state: State) -> Outputs:
        return apply(params, {**source, **{prefix + name: each for name, each in target.items()}}, state)

    return named


def _with_cache(
    apply: Callable[..., Outputs], start: Start, tokens_BP: jax.Array, lengths_B: jax.Array, num_new: int, source: Batch
) -> Reader:
    """The state is the cache: source and prompts are read in one go, then a token at a time."""
    B, P = tokens_BP.shape

    def begin(params: Params) -> Any:
        state = start(B, P + num_new - 1)
        state = unstack(state, state)
        if P == 1:
            return apply(params, source, {}, state).state if source else state
        mask = jnp.arange(P) >= P - lengths_B[:, None]
        # Nobody reads these logits, so they are never computed.
        return apply(params, source, {"tokens": tokens_BP[:, :-1], "mask": mask[:, :-1]}, state).state

    def read(params: Params, token_B: jax.Array, _: jax.Array, state: Any) -> Any:
        out = apply(params, {}, {"tokens": token_B[:, None]}, state)
        return out["logits"][:, -1], out.state

    return Reader(begin, read)


def _without_cache(
    apply: Callable[..., Outputs], start: Start, tokens_BP: jax.Array, lengths_B: jax.Array, num_new: int, source: Batch
) -> Reader:
    """The state is the text so far, padded right, hidden by causality; all is read each time."""
    B, P = tokens_BP.shape
    length = P + num_new - 1
    rows = jnp.arange(B)

    def begin(_: Params) -> jax.Array:
        shifted = jnp.arange(length) + (P - lengths_B)[:, None]
        return jnp.take_along_axis(tokens_BP, jnp.minimum(shifted, P - 1), axis=1)

    def read(params: Params, token_B: jax.Array, position_B: jax.Array, text: jax.Array) -> Any:
        text = text.at[rows, position_B].set(token_B)
        logits = apply(params, source, {"tokens": text}, start(B, length))["logits"]
        return logits[rows, position_B], text

    return Reader(begin, read)


@functools.lru_cache(maxsize=16)
def _cache(start: Start) -> State:
    """The shapes of a state with a cache; None where `start` makes no more of a batch than of nothing."""
    fresh, sized = (jax.eval_shape(functools.partial(start, *sizes)) for sizes in ((), (1, 1)))
    return None if jax.tree.structure(fresh) == jax.tree.structure(sized) else sized


def _rows(prompts: Sequence[Prompt] | Mapping[str, Any], separator: int | None) -> list[list[int]]:
    """The prompts as lists; an empty one is the separator."""
    if isinstance(prompts, Mapping):
        tokens = np.asarray(prompts["tokens"])
        mask = np.asarray(prompts.get("mask", np.ones(tokens.shape, bool)))
        prompts = [row[real] for row, real in zip(tokens, mask, strict=True)]
    if not len(prompts):
        raise InputError("there is no prompt: give at least one")
    rows = [[int(token) for token in prompt] for prompt in prompts]
    if separator is None and not all(rows):
        raise InputError(f"prompt {rows.index([])} is empty, and no separator is known: give it a token")
    return [row or [int(separator or 0)] for row in rows]


def _source(
    model: Model, prompts: Sequence[Prompt] | Mapping[str, Any], separator: int | None, limit: int | None
) -> dict[str, np.ndarray]:
    """What an encoder reads of the prompts: token ids padded right to a power of two; all else as it is."""
    if isinstance(prompts, Mapping) and prompts.get("tokens") is None:
        return {name: np.asarray(each) for name, each in prompts.items() if each is not None}
    rows = _rows(prompts, separator)
    _check_rows(rows, 0, limit, of_config(model.config, "encoder").vocab_size)
    slots = min(max(SMALLEST_BUCKET, 1 << (max(map(len, rows)) - 1).bit_length()), limit or sys.maxsize)
    tokens = np.zeros((len(rows), slots), np.int32)
    mask = np.arange(slots) < np.array([len(row) for row in rows])[:, None]
    tokens[mask] = np.concatenate(rows)
    return {"tokens": tokens, "mask": mask}


def _begun(model: Model, source: Mapping[str, np.ndarray], begin: Sequence[int] | None) -> list[list[int]]:
    """What each of the decoder's texts begins with."""
    start = of_config(model.config, "start_token")
    if begin is None and start is None:
        raise InputError("the model does not say which token a text begins behind: pass begin=, its ids")
    return [list(begin or [start])] * len(next(iter(source.values())))


def _cut(row: list[int], stop: set[int]) -> list[int]:
    """A row up to where it stopped, or the loop did."""
    end = next((i for i, token in enumerate(row) if token < 0 or token in stop), len(row))
    return row[:end]


def _check_options(max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature={temperature}: must be at least 0; 0 takes the likeliest token")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k={top_k}: must be at least 1, or none for all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p={top_p}: must be above 0 and at most 1, or none for all tokens")


def _check_rows(rows: list[list[int]], max_new_tokens: int, limit: int | None, vocab_size: int | None) -> None:
    for i, row in enumerate(rows):
        if limit is not None and len(row) + max_new_tokens > limit:
            left = limit - len(row)
            mend = f"ask for {left} at most, or shorten the prompt" if left > 0 else "shorten the prompt"
            raise InputError(
                f"prompt {i} has {len(row)} tokens; with max_new_tokens={max_new_tokens} that is more than "
                f"the model's max_length={limit}: {mend}"
            )
        bad = next((token for token in row if not 0 <= token < (vocab_size or np.inf)), None)
        if bad is not None:
            raise InputError(
                f"prompt {i} holds the token {bad}, outside the model's vocabulary of {vocab_size}: "
                "encode it with the model's own tokenizer"
            )
