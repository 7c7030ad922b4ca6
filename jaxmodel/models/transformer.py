"""The transformer: stem -> stack -> head, from one config to pure functions."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmodel.data.audio import HOP, log_mel
from jaxmodel.errors import InputError
from jaxmodel.model import Batch, Model, Outputs, Params, State
from jaxmodel.models.configs import Transformer
from jaxmodel.models.inputs import check_batch
from jaxmodel.models.parts import Spectrogram, Waveform
from jaxmodel.nn import layer
from jaxmodel.nn.attention import Source
from jaxmodel.nn.block import Block
from jaxmodel.nn.cache import block_cache
from jaxmodel.nn.head import Head, Pool
from jaxmodel.nn.mask import ABSENT, positions_of
from jaxmodel.nn.norm import Norm
from jaxmodel.nn.relative import Relative
from jaxmodel.nn.stack import init_stack, run_stack
from jaxmodel.nn.stem import Stem
from jaxmodel.sharding import Partitioning


def build(config: Transformer, partitioning: Partitioning | None = None) -> Model:
    """A transformer as pure functions.

    The batch holds `tokens` int32[B,T] and may hold `mask` bool[B,T] (true where real), `segments` int32[B,T]
    (packed documents, 0 = padding), `positions` int32[B,T] and `types` int32[B,T]; or it holds `images`
    float32[B,H,W,C], and may hold `masked` bool[B,P], true for patches to be hidden; or it holds `audio` float32[B,S]
    and may hold `mask` bool[B,S], whose padding is behind the sound, or `frames` float32[B,N,M] of that (`log_mel`).
    Values are `hidden` [B,T,D]; with a pool, `embedding` [B,D] or [B,pool.dim]; with a head, `logits` float32[B,T,V],
    or [B,V] of the embedding; of a waveform `lengths` int32[B], how many of the T are real. A batch with `hidden` in
    place of what the model reads runs pool and head only. With `stem.image_token` it may hold `vectors` float32[N,D],
    which stand in the places of that token, row by row; too few of them give NaN. Where blocks have cross attention,
    the batch holds `encoder_hidden` [B,S,E] and perhaps `encoder_mask` bool[B,S]; a cache keeps what attention needs of
    them, so that later calls need not give them again.

    With `state=start(batch_size, length)` each call appends to the cache, so that a prompt may be read in one call
    and continued token by token; rows may be padded left or right, as `mask` says. The cache holds `length` tokens a
    row, padding included: whoever appends more overwrites the last ones.

    Raises InputError (when built or called) for fields that contradict each other, a batch that is not as
    `config.inputs` says, a sequence or a cache longer than `max_length`, dropout without a key, or packed
    segments with a cache. A model that is not causal has no cache. Token ids must be in the vocabulary: others give
    NaN.
    """
    config.check()
    kinds = config.kinds
    parts = _modules(config, kinds, partitioning)
    (reads,) = config.reads
    final_norm = config.norm.placement != "post" and not (config.pool and config.pool.norm)
    dtype = jnp.dtype(config.execution.dtype)
    one = jnp.zeros((1, 1), jnp.int32)

    def declare(key: jax.Array) -> Any:
        """Params with their layouts, from modules without a mesh: their input here is a single token, or image."""
        stem, blocks, norm, pool, head, relative = _modules(config, kinds, None)
        dims = (1, 1, config.spectrogram.bands) if config.spectrogram else config.inputs[reads][1]
        stem_key, stack_key, norm_key, head_key, pool_key = jax.random.split(key, 5)
        x = jnp.zeros((1, 1, config.embed_dim), dtype)
        shape = [1 if isinstance(dim, str) else dim for dim in dims]
        if config.waveform:
            shape[1] = config.waveform.samples(1)
        tokens = config.images.length if config.images else 1

        def block(kind: str, key: jax.Array) -> Any:
            source = Source(x, one) if config.cross else None
            return blocks[kind].init({"params": key}, x, one, None, None, None, False, 1, source)["params"]

        def made(module: Any, key: jax.Array, *args: Any) -> dict[str, Any]:
            return module.init({"params": key}, *args).get("params", {})

        types = jnp.zeros((1, tokens), jnp.int32)
        found = {
            "stem": made(stem, stem_key, jnp.zeros(shape, config.inputs[reads][0]), types, types, None, None, False),
            "stack": init_stack(stack_key, config.segments, {k: functools.partial(block, k) for k in kinds}),
        }
        if relative:
            found["relative"] = made(relative, jax.random.fold_in(stem_key, 1))
        if final_norm:
            found["norm"] = made(norm, norm_key, x)
        if config.pool:
            found["pool"] = made(pool, pool_key, x, None, types)
        if config.head:
            width = config.stem.embed_dim or config.embed_dim
            table = layer.Weight(jnp.zeros((1, width)), (width,), (1,), True)
            read = jnp.zeros((1, 1, config.read_dim), dtype)
            found["head"] = made(head, head_key, read, table if config.tied else None)
        return {name: each for name, each in found.items() if each}

    def ends(params: Params, hidden: jax.Array, batch: Batch, real: jax.Array | None) -> dict[str, jax.Array]:
        """Embedding and logits of hidden [B,T,D], as far as the model has them."""
        values: dict[str, jax.Array] = {}
        if config.pool:
            with jax.named_scope("pool"):
                inputs = hidden, real, batch.get("tokens")
                hidden = parts.pool.apply({"params": params.get("pool", {})}, *inputs)  # type: ignore[assignment]
            values["embedding"] = hidden
        if config.head:
            table = parts.stem.apply({"params": params["stem"]}, method="table") if config.tied else None
            with jax.named_scope("head"):
                values["logits"] = parts.head.apply({"params": params.get("head", {})}, hidden, table)  # type: ignore[assignment]
        return values

    def block_runner(kind: str, where: _Where, train: bool, source: Source | None, relative: Any) -> Any:
        # See `Attention`: what lies behind a piece of queries is hidden only where slots follow positions.
        pieces = config.execution.query_pieces if train and where.ordered else 1

        def run(params: Params, x: jax.Array, cache: Any, key: jax.Array | None) -> Any:
            rngs = {} if key is None else {"dropout": key}
            seen = (where.positions, where.segments, where.mask, cache, train, pieces, source, relative)
            return parts.blocks[kind].apply({"params": params}, x, *seen, rngs=rngs)

        return jax.checkpoint(run) if config.execution.remat and train else run

    def apply(
        params: Params, batch: Batch, state: State = None, *, key: jax.Array | None = None, train: bool = False
    ) -> Outputs:
        head_only = isinstance(batch, Mapping) and "hidden" in batch and reads not in batch
        check_batch(batch, config.inputs, needed=() if head_only or "frames" in batch else (reads,))
        if head_only:
            return Outputs(ends(params, batch["hidden"], batch, batch.get("mask")))
        hidden = config.waveform.mask_fraction if config.waveform else 0.0
        if train and (config.dropout or hidden) and key is None:
            said = f"dropout={config.dropout}" if config.dropout else f"waveform.mask_fraction={hidden}"
            raise InputError(f"model.{said} needs a key in training: apply(…, key=key, train=True)")
        stem_key, stack_key = (None, None) if key is None else jax.random.split(key)
        where = _Where(config, batch, state)
        with jax.named_scope("stem"):
            rngs = {} if stem_key is None else {"dropout": stem_key}
            seen = _frames(config.spectrogram, batch) if config.spectrogram else batch[reads]
            positions = where.slots if config.stem.slots else where.positions
            given = (batch.get(name) for name in ("types", "masked", "vectors"))
            inputs = seen, positions, *given, train
            x: Any = parts.stem.apply({"params": params["stem"]}, *inputs, rngs=rngs)
        source = _source(config, batch, bool(state))
        relative = parts.relative and parts.relative.apply({"params": params["relative"]})
        runners = {k: block_runner(k, where, train, source, relative) for k in kinds}
        caches = state["stack"] if state else None
        x, caches, losses = run_stack(
            params["stack"], x, caches, stack_key, config.segments, runners, scan=config.execution.scan
        )
        if final_norm:
            x = parts.norm.apply({"params": params["norm"]}, x)
        changed = {"stack": caches, "length": where.after} if state else {}
        values = {**ends(params, x, batch, where.mask), "hidden": x}
        if config.waveform:
            values["lengths"] = jnp.sum(where.real, axis=1, dtype=jnp.int32)
        return Outputs(values, changed, losses)

    def start(batch_size: int | None = None, length: int | None = None) -> State:
        if batch_size is None or length is None or not config.causal:
            return {}  # where earlier tokens see later ones, there is nothing to keep
        if length > config.max_length and config.stem.positions == "learned":
            raise InputError(f"a cache of {length} tokens is longer than model.max_length={config.max_length}")
        stack: dict[str, Any] = {}
        for i, (pattern, repeats) in enumerate(config.segments):
            stack[str(i)] = {}
            for kind in dict.fromkeys(pattern):
                cache = block_cache(kinds[kind], batch_size, length, dtype)
                count = repeats * pattern.count(kind)
                stack[str(i)][kind] = jax.tree.map(lambda z, n=count: jnp.broadcast_to(z, (n, *z.shape)), cache)
        return {"stack": stack, "length": jnp.zeros(batch_size, jnp.int32)}

    layout = layer.layout_of(jax.eval_shape(declare, jax.random.key(0)))
    return Model(lambda key: layer.params_of(declare(key)), apply, start, layout, config)


class _Parts(NamedTuple):
    """The modules of a model."""

    stem: Stem
    blocks: dict[str, Block]
    norm: Norm
    pool: Pool
    head: Head
    relative: Relative | None


def _modules(config: Transformer, kinds: dict[str, Transformer], partitioning: Partitioning | None) -> _Parts:
    blocks = {name: Block(partitioning, each) for name, each in kinds.items()}
    norm = Norm(partitioning, config.embed_dim, config.norm)
    a, init = config.attention, layer.normal(0.02 if config.init_scale is None else config.init_scale)
    relative = Relative(partitioning, a.relative, a.num_heads, a.causal, init) if a.relative else None
    stem, pool, head = Stem(partitioning, config), Pool(partitioning, config), Head(partitioning, config)
    return _Parts(stem, blocks, norm, pool, head, relative)


def _source(config: Transformer, batch: Batch, cached: bool) -> Source | None:
    """What cross attention looks at; None where there is none, or a cache has it."""
    hidden, mask = batch.get("encoder_hidden"), batch.get("encoder_mask")
    if config.cross is None or (hidden is None and cached):
        return None
    if hidden is None:
        raise InputError("encoder_hidden is missing: the model's cross attention looks at what an encoder read")
    return Source(hidden, positions_of(hidden.shape[0], hidden.shape[1], mask))


class _Where:
    """Positions, segments and reality of a batch's tokens, with what a cache already holds before them."""

    def __init__(self, config: Transformer, batch: Batch, state: State) -> None:
        (reads,) = config.reads
        there = batch[reads if reads in batch else "frames"]
        shape = there.shape[:2] if config.length is None else (len(there), config.length)
        mask, segments, positions = batch.get("mask"), batch.get("segments"), batch.get("positions")
        if config.waveform is not None:
            shape, mask = _heard(config.waveform, shape, mask)
        if shape[1] > config.max_length:
            raise InputError(f"a sequence of {shape[1]} tokens is longer than model.max_length={config.max_length}")
        if segments is not None:
            mask = segments > 0 if mask is None else mask & (segments > 0)
            if state:
                raise InputError("packed segments and a cache do not go together: give one sequence a row")
        self.slots = jnp.arange(shape[1], dtype=jnp.int32)[None] if positions is None else positions
        if positions is None:
            # One row serves all where every row is alike: its mask is made once.
            rows = 1 if mask is None and not state else shape[0]
            positions = positions_of(rows, shape[1], mask) if segments is None else _restarted(segments)
            if state:
                positions = jnp.where(positions >= 0, positions + state["length"][:, None], ABSENT)
        elif mask is not None:
            positions = jnp.where(mask, positions, ABSENT)
        if state:
            positions = jnp.broadcast_to(positions, shape)
        self.positions, self.segments, self.mask = positions, segments, mask
        self.ordered = not state and (batch.get("positions") is None or segments is not None)
        self.real = jnp.ones(shape, bool) if mask is None else mask
        self.after = state["length"] + jnp.sum(self.real, axis=1, dtype=jnp.int32) if state else None


def _heard(
    waveform: Waveform, shape: tuple[int, int], mask: jax.Array | None
) -> tuple[tuple[int, int], jax.Array | None]:
    """Rows and frames of samples [B,S], and which frames are real: those of as many samples, from the first one on."""
    least, frames = waveform.samples(1), waveform.frames(shape[1])
    if shape[1] < least:
        raise InputError(f"audio of {shape[1]} samples is shorter than the {least} of one frame: fill it up")
    if mask is not None:
        mask = jnp.arange(frames) < waveform.frames(jnp.sum(mask, axis=1))[:, None]
    return (shape[0], frames), mask


def _frames(config: Spectrogram, batch: Batch) -> jax.Array:
    """Log-mel frames of the batch's audio, which is filled up with silence; or those it holds, of full length."""
    frames, wanted = batch.get("frames"), (config.samples // HOP, config.bands)
    if frames is None:
        missing = config.samples - batch["audio"].shape[1]
        if missing < 0:
            raise InputError(f"audio of more than model.spectrogram.samples={config.samples}: cut it into pieces")
        frames = log_mel(jnp.pad(batch["audio"], ((0, 0), (0, missing))), bands=config.bands)
    if frames.shape[1:] != wanted:
        raise InputError(f"frames is {list(frames.shape)}, the model reads [batch, {wanted[0]}, {wanted[1]}]")
    return frames


def _restarted(segments: jax.Array) -> jax.Array:
    """Positions that restart with every segment; padding (segment 0) is ABSENT."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    starts = jnp.where(segments != jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1], index, 0)
    return jnp.where(segments > 0, index - jax.lax.cummax(starts, axis=1), ABSENT)
