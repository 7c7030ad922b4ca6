"""The transformer: stem -> stack -> head, from one config to pure functions."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel.data.audio import HOP, log_mel
from jaxmodel.errors import InputError
from jaxmodel.model import Batch, Key, Model, Outputs, Params, State
from jaxmodel.models.configs import Transformer
from jaxmodel.models.inputs import check_batch
from jaxmodel.models.parts import Spectrogram
from jaxmodel.nn import layer
from jaxmodel.nn.block import Block
from jaxmodel.nn.cache import block_cache
from jaxmodel.nn.head import Head, Pool
from jaxmodel.nn.mask import ABSENT, Seen, Source, positions_of
from jaxmodel.nn.norm import Norm
from jaxmodel.nn.relative import Relative
from jaxmodel.nn.stack import beside, by_kind, init_stack, run_stack
from jaxmodel.nn.stem import PerLayer, Stem
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
    kinds = config.kinds
    parts, blocks = _modules(config, partitioning)
    (reads,) = config.reads
    dtype = jnp.dtype(config.execution.dtype)

    def declare(key: jax.Array) -> Any:
        """Params with their layouts, from modules without a mesh: their input here is a single token, or image."""
        parts, blocks = _modules(config, None)
        kind, dims = config.inputs[reads]
        dims = (1, 1, config.spectrogram.bands) if config.spectrogram else dims
        shape = [config.least.get(dim, 1) if isinstance(dim, str) else dim for dim in dims]
        x, one = jnp.zeros((1, 1, config.embed_dim), dtype), jnp.zeros((1, 1), jnp.int32)
        tokens = jnp.zeros((1, config.images.length if config.images else 1), jnp.int32)
        seen = Seen(one, source=Source(x, one) if config.cross else None)
        width = config.stem.embed_dim or config.embed_dim
        table = layer.Weight(jnp.zeros((1, width)), (width,), (1,), True) if config.tied else None
        two = config.pool and config.pool.kind == "first_mean" and config.pool.activation == "none"
        read_dim = config.embed_dim * (2 if two else 1)
        stem_key, stack_key, norm_key, head_key, pool_key = jax.random.split(key, 5)
        examples = {
            "stem": (stem_key, jnp.zeros(shape, kind), tokens, {}),
            "relative": (jax.random.fold_in(stem_key, 1),),
            "per_layer": (jax.random.fold_in(stem_key, 2), one, x),
            "norm": (norm_key, x),
            "pool": (pool_key, x, None, tokens),
            "head": (head_key, jnp.zeros((1, 1, read_dim), dtype), table),
        }

        def block(kind: str, key: jax.Array) -> Any:
            a = kinds[kind].attention
            kept = jnp.zeros((1, 1, *a.sizes(config.embed_dim)[1:]), dtype)  # what one that reuses some looks at
            told = seen._replace(kept={str(a.window): (kept, kept, one)})
            return blocks[kind].init({"params": key}, x, told)["params"]

        found = {"stack": init_stack(stack_key, config.segments, {k: functools.partial(block, k) for k in kinds})}
        for name, module in parts.items():
            key, *example = examples[name]
            found[name] = module.init({"params": key}, *example).get("params", {})
        return {name: each for name, each in found.items() if each}

    def run(name: str, params: Params, *args: Any, key: Key = None) -> Any:
        """What a part gives."""
        with jax.named_scope(name):
            return parts[name].apply({"params": params.get(name, {})}, *args, rngs=layer.rngs(key))

    def ends(params: Params, hidden: jax.Array, batch: Batch, real: jax.Array | None) -> dict[str, jax.Array]:
        """Embedding and logits of hidden [B,T,D], as far as the model has them."""
        values: dict[str, jax.Array] = {}
        if config.pool:
            values["embedding"] = hidden = run("pool", params, hidden, real, batch.get("tokens"))
        if config.head:
            table: Any = parts["stem"].apply({"params": params["stem"]}, method="table") if config.tied else None
            values["logits"] = run("head", params, hidden, table)
        return values

    def block_runner(kind: str, seen: Seen) -> Any:
        def run(variables: Any, entering: Any, cache: Any, key: Key) -> Any:
            x, kept = entering
            told = x, seen._replace(kept=kept), cache
            ran: Any = blocks[kind].apply(variables, *told, rngs=layer.rngs(key), mutable=["kept"])
            (x, cache, losses), more = ran
            return (x, kept | more.get("kept", {}).get("attention", {})), cache, losses

        return jax.checkpoint(run) if config.execution.remat and seen.train else run

    def apply(params: Params, batch: Batch, state: State = None, *, key: Key = None, train: bool = False) -> Outputs:
        head_only = isinstance(batch, Mapping) and "hidden" in batch and reads not in batch
        check_batch(batch, config.inputs, needed=() if head_only or "frames" in batch else (reads,))
        if head_only:
            return Outputs(ends(params, batch["hidden"], batch, batch.get("mask")))
        hidden = config.waveform.mask_fraction if config.waveform else 0.0
        if train and (config.dropout or hidden) and key is None:
            said = f"dropout={config.dropout}" if config.dropout else f"waveform.mask_fraction={hidden}"
            raise InputError(f"model.{said} needs a key in training: apply(…, key=key, train=True)")
        stem_key, stack_key = (None, None) if key is None else jax.random.split(key)
        seen, slots, real = _seen(config, batch, state, train)
        inputs = _frames(config.spectrogram, batch) if config.spectrogram else batch[reads]
        x = run("stem", params, inputs, slots if config.stem.slots else seen.positions, batch, train, key=stem_key)
        relative = run("relative", params) if "relative" in parts else None
        seen = seen._replace(source=_source(config, batch, bool(state)), relative=relative)
        runners = {kind: block_runner(kind, seen) for kind in kinds}
        given = {"per_layer": run("per_layer", params, inputs, x)} if config.per_layer else {}
        stack, caches = beside(params["stack"], given, config.segments), state["stack"] if state else None
        (x, _), caches, losses = run_stack(
            stack, (x, {}), caches, stack_key, config.segments, runners, config.execution.scan
        )
        if "norm" in parts:
            x = run("norm", params, x)
        lengths = jnp.sum(real, axis=1, dtype=jnp.int32)
        values = {**ends(params, x, batch, seen.mask), "hidden": x, **({"lengths": lengths} if config.waveform else {})}
        after = {"stack": caches, "length": state["length"] + lengths} if state else {}
        return Outputs(values, after, losses)

    def start(batch_size: int | None = None, length: int | None = None) -> State:
        if batch_size is None or length is None or not config.causal:
            return {}  # where earlier tokens see later ones, there is nothing to keep
        if length > config.max_length and config.stem.positions == "learned":
            raise InputError(f"a cache of {length} tokens is longer than model.max_length={config.max_length}")

        def empty(kind: str, count: int, _: Any) -> Any:
            cache = block_cache(kinds[kind], batch_size, length, dtype)
            return jax.tree.map(lambda each: jnp.broadcast_to(each, (count, *each.shape)), cache)

        return {"stack": by_kind(config.segments, empty), "length": jnp.zeros(batch_size, jnp.int32)}

    layout = layer.layout_of(jax.eval_shape(declare, jax.random.key(0)))
    return Model(lambda key: layer.params_of(declare(key)), apply, start, layout, config)


def _modules(config: Transformer, partitioning: Partitioning | None) -> tuple[dict[str, layer.Layer], dict[str, Block]]:
    """The parts that a model has around its stack, and its kinds of block."""
    final_norm = config.norm.placement != "post" and not (config.pool and config.pool.norm)
    parts = {
        "stem": Stem(partitioning, config),
        "relative": Relative(partitioning, config) if config.attention.relative else None,
        "per_layer": PerLayer(partitioning, config) if config.per_layer else None,
        "norm": Norm(partitioning, config.norm) if final_norm else None,
        "pool": Pool(partitioning, config) if config.pool else None,
        "head": Head(partitioning, config) if config.head else None,
    }
    blocks = {name: Block(partitioning, each) for name, each in config.kinds.items()}
    return {name: each for name, each in parts.items() if each}, blocks


def _source(config: Transformer, batch: Batch, cached: bool) -> Source | None:
    """What cross attention looks at; None where there is none, or a cache has it."""
    hidden, mask = batch.get("encoder_hidden"), batch.get("encoder_mask")
    if config.cross is None or (hidden is None and cached):
        return None
    if hidden is None:
        raise InputError("encoder_hidden is missing: the model's cross attention looks at what an encoder read")
    return Source(hidden, positions_of(hidden.shape[0], hidden.shape[1], mask))


def _seen(config: Transformer, batch: Batch, state: State, train: bool) -> tuple[Seen, jax.Array, jax.Array]:
    """What blocks are told of a batch's tokens, behind what a cache already holds; their slots; and which are real."""
    (reads,) = config.reads
    there = batch[reads if reads in batch else "frames"]
    shape = there.shape[:2] if config.length is None else (len(there), config.length)
    mask, segments, positions = batch.get("mask"), batch.get("segments"), batch.get("positions")
    if (waveform := config.waveform) is not None:
        if shape[1] < (least := waveform.samples(1)):
            raise InputError(f"audio of {shape[1]} samples is shorter than the {least} of one frame: fill it up")
        shape = shape[0], waveform.frames(shape[1])
        if mask is not None:  # real are the frames of as many samples, from the first one on
            mask = jnp.arange(shape[1]) < waveform.frames(jnp.sum(mask, axis=1))[:, None]
    if shape[1] > config.max_length:
        raise InputError(f"a sequence of {shape[1]} tokens is longer than model.max_length={config.max_length}")
    if segments is not None:
        mask = segments > 0 if mask is None else mask & (segments > 0)
        if state:
            raise InputError("packed segments and a cache do not go together: give one sequence a row")
    slots = jnp.arange(shape[1], dtype=jnp.int32)[None] if positions is None else positions
    # See `Attention`: what lies behind a piece of queries is hidden only where slots follow positions.
    ordered = not state and (positions is None or segments is not None)
    pieces = config.execution.query_pieces if train and ordered else 1
    if positions is None:
        # One row serves all where every row is alike: its mask is made once.
        rows = 1 if mask is None and not state else shape[0]
        positions = positions_of(rows, shape[1], mask, segments)
        if state:
            positions = jnp.where(positions >= 0, positions + state["length"][:, None], ABSENT)
    elif mask is not None:
        positions = jnp.where(mask, positions, ABSENT)
    real = jnp.ones(shape, bool) if mask is None else mask
    return Seen(positions, segments, mask, pieces=pieces, train=train), slots, real


def _frames(config: Spectrogram, batch: Batch) -> jax.Array:
    """Log-mel frames of the batch's audio, which is filled up with silence; or those it holds, of full length."""
    frames, wanted = batch.get("frames"), (config.samples // HOP, config.bands)
    if frames is None:
        missing = config.samples - batch["audio"].shape[1]
        if missing < 0:
            raise InputError(f"audio of more than model.spectrogram.samples={config.samples}: cut it into pieces")
        with jax.named_scope("stem"):
            frames = log_mel(jnp.pad(batch["audio"], ((0, 0), (0, missing))), bands=config.bands)
    if frames.shape[1:] != wanted:
        raise InputError(f"frames is {list(frames.shape)}, the model reads [batch, {wanted[0]}, {wanted[1]}]")
    return frames
