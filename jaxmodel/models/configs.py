"""What a model is made of, as frozen dataclasses: no jax here, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from jaxmodel import config as _config
from jaxmodel.config import field, register
from jaxmodel.errors import InputError
from jaxmodel.models.parts import (
    GATED,
    MLP,
    SUBLAYERS,
    UNGATED,
    Attention,
    ConvStem,
    Execution,
    Head,
    Images,
    Latent,
    MoE,
    Norm,
    Pool,
    Recurrence,
    Spectrogram,
    Stem,
    Waveform,
)
from jaxmodel.models.sizes import fit_sizes

if TYPE_CHECKING:
    from jaxmodel.model import Model
    from jaxmodel.sharding import Partitioning

Inputs = dict[str, tuple[str, tuple[int | str, ...]]]


@register
@dataclasses.dataclass(frozen=True)
class Variant:
    """A kind of block by name, as overrides of the model's own: `("attention.window", 512)`."""

    name: str
    overrides: tuple[tuple[str, Any], ...] = ()


@register
@dataclasses.dataclass(frozen=True)
class Transformer:
    """A stem, a stack of blocks and a head: GPT-2, Llama, BERT, ViT and their kin are presets of this one config.

    The layers are `first`, then `pattern` again and again until there are `num_layers`; each name is a
    `Variant`, and `block` is the model's own. `segments` is what that comes to.
    """

    vocab_size: int | None = field(help="tokens in the vocabulary; none: it reads images", low=1)
    max_length: int = field(help="longest sequence in tokens", low=1)
    embed_dim: int = field(help="width of the residual stream", low=1)
    num_layers: int = field(help="blocks in the stack", low=1)
    attention: Attention = field(help="attention of a block")
    mlp: MLP = field(help="feed-forward half of a block")
    moe: MoE | None = field(None, help="mixture of experts in place of the MLP")
    recurrence: Recurrence | None = field(None, help="recurrence of a block that has one")
    sublayers: tuple[str, ...] = field(
        ("attention", "mlp"),
        help="what a block is made of, in order, each with its norm and residual: attention, a recurrence or both "
        "side by side (hybrid, arXiv:2507.22448), perhaps cross attention, and perhaps an MLP (or experts)",
        choices=SUBLAYERS,
    )
    cross: Attention | None = field(None, help="attention of a block to what an encoder read")
    norm: Norm = field(Norm(), help="normalisation")
    stem: Stem = field(Stem(), help="how tokens become vectors")
    images: Images | None = field(None, help="images in place of tokens")
    waveform: Waveform | None = field(None, help="samples of sound in place of tokens")
    spectrogram: Spectrogram | None = field(None, help="sound in place of tokens, as log-mel frames")
    pool: Pool | None = field(None, help="one vector a sequence, which the head reads")
    head: Head | None = field(Head(), help="from hidden to logits")
    tied: bool = field(False, help="the head is the embedding table")
    dropout: float = field(
        0.0, help="dropped fraction of each half block's output and of the embeddings", low=0.0, high=1.0
    )
    init_scale: float | None = field(
        None, help="standard deviation of the initial weights (default: by fan-in)", low=0.0
    )
    residual_init: float | None = field(
        None,
        help="scale of the initial weights that write to the residual stream (default: 1/sqrt(2 num_layers)); "
        "at 0 every block starts as the identity",
        low=0.0,
    )
    residual_scale: float | None = field(None, help="of what each half of a block adds (Granite)", low=0.0)
    block_scale: bool = field(False, help="a number a block, which scales all that it gives (Gemma 4)")
    layer_scale: float | None = field(
        None, help="initial value of a learned scale of what each half of a block adds (arXiv:2103.17239)", low=0.0
    )
    first: tuple[str, ...] = field((), help="variants of the first layers")
    pattern: tuple[str, ...] = field(("block",), help="variants of the following layers, repeated")
    variants: tuple[Variant, ...] = field((), help="block variants by name", flag=False)
    execution: Execution = field(Execution(), help="how it runs")

    @property
    def segments(self) -> tuple[tuple[tuple[str, ...], int], ...]:
        """`((pattern, repeats), …)` that together hold `num_layers` blocks."""
        segments: list[tuple[tuple[str, ...], int]] = []
        first = self.first[: self.num_layers]
        while first:
            run = next((i for i, name in enumerate(first) if name != first[0]), len(first))
            segments.append((first[:1], run))
            first = first[run:]
        repeats, rest = divmod(self.num_layers - len(self.first[: self.num_layers]), len(self.pattern))
        if repeats:
            segments.append((self.pattern, repeats))
        if rest:
            segments.append((self.pattern[:rest], 1))
        return tuple(segments)

    @property
    def reads(self) -> tuple[str, ...]:
        """What it cannot do without in a batch."""
        return ("images",) if self.images else ("audio",) if self.waveform or self.spectrogram else ("tokens",)

    @property
    def length(self) -> int | None:
        """Tokens that what it reads becomes; None: as many as there are."""
        return getattr(self.images or self.spectrogram, "length", None)

    def fitted(self, facts: Mapping[str, Any]) -> Transformer:
        """This config, with as many outputs as the data have classes; InputError where it does not hold the data."""
        fit_sizes(self, facts)
        if self.head is not None and "num_outputs" in facts:
            self = dataclasses.replace(self, head=fit_sizes(self.head, facts, "head.", outputs="num_outputs"))
        if facts.get("length", 0) > self.max_length:
            raise InputError(
                f"--data.length={facts['length']} is longer than --model.max_length={self.max_length}: "
                "lower the one or raise the other"
            )
        if facts.get("vocab_size", 0) > (self.vocab_size or 0):
            raise InputError(
                f"the tokenizer has {facts['vocab_size']} tokens, --model.vocab_size={self.vocab_size} is "
                "smaller: raise it, or lower --data.vocab_size"
            )
        return self

    @property
    def inputs(self) -> Inputs:
        """What a batch may hold: dtype and dims by name, a dim that is a word being free."""
        if self.images is not None:
            size, patches = self.images.size, self.images.length - self.images.class_token
            found: Inputs = {"images": ("float32", ("batch", size, size, self.images.channels))}
            return found | ({"masked": ("bool", ("batch", patches))} if self.images.mask_token else {})
        if self.waveform is not None:
            dims = ("batch", "samples")
            return {"audio": ("float32", dims), "mask": ("bool", dims)}
        if self.spectrogram is not None:
            return {"audio": ("float32", ("batch", "samples"))}
        dims = ("batch", "length")
        names = ("tokens", "segments", "positions", *(("types",) if self.stem.num_types else ()))
        found: Inputs = {**dict.fromkeys(names, ("int32", dims)), "mask": ("bool", dims)}
        if self.stem.image_token is not None:
            found["vectors"] = ("float32", ("vectors", self.embed_dim))
        return found

    @property
    def limits(self) -> dict[str, int]:
        """The largest that free dims may be; `capacity` is that of a cache, which rotary positions leave open."""
        if self.waveform is not None:
            return {"samples": self.waveform.samples(self.max_length)}
        learned = self.stem.positions == "learned"
        if self.spectrogram is not None:
            return {"samples": self.spectrogram.samples}
        return {"length": self.max_length} | ({"capacity": self.max_length} if learned else {})

    @property
    def least(self) -> dict[str, int]:
        """The smallest that free dims may be, where one will not do."""
        return {} if self.waveform is None else {"samples": self.waveform.samples(1)}

    @property
    def causal(self) -> bool:
        """Whether no token sees a later one, in any block."""
        kinds = {name for pattern, _ in self.segments for name in pattern}
        blocks = [self.variant(name) for name in kinds]
        return all(each.attention.causal for each in blocks if each.has("attention"))

    @property
    def num_outputs(self) -> int:
        """Logits; 0 without a head."""
        return 0 if self.head is None else self.head.outputs or self.vocab_size or 0

    @property
    def read_dim(self) -> int:
        """Width of what the head reads."""
        two = self.pool is not None and self.pool.kind == "first_mean" and self.pool.activation == "none"
        return 2 * self.embed_dim if two else self.embed_dim

    def variant(self, name: str) -> Transformer:
        """This config as the block called `name` sees it; InputError when there is no such variant."""
        if name == "block":
            return self
        for variant in self.variants:
            if variant.name == name:
                return _config.replace(self, dict(variant.overrides))
        known = ", ".join(["block", *(v.name for v in self.variants)])
        raise InputError(f"model.pattern names the block variant {name!r}; this model has {known}")

    def flops_per_token(self, length: int) -> float:
        """Multiply-adds of a forward pass for one token of a sequence of `length`, times two, times three to train.

        The convention of arXiv:2204.02311, appendix B: products only, attention over the whole sequence (or the
        window), a recurrence token by token, nothing for recomputation.
        """
        width = (self.head and self.head.dim) or self.embed_dim
        products = self.num_outputs * width * (self.pool is None) + self.embed_dim * (self.stem.embed_dim or 0)
        if self.images is not None:
            products += self.images.patch**2 * self.images.channels * self.embed_dim
        if self.waveform is not None:
            products += self.waveform.products(self.embed_dim)
        if self.spectrogram is not None:
            products += 3 * (2 * self.spectrogram.bands + self.embed_dim) * self.embed_dim
        for pattern, repeats in self.segments:
            for name in pattern:
                block = self.variant(name)
                products += repeats * sum(block._products(half, length) for half in block.sublayers)
        return 6.0 * products

    def _products(self, sublayer: str, length: int) -> int:
        """Multiply-adds of a token in one sublayer of this block."""
        if sublayer == "hybrid":
            return self._products("attention", length) + self._products("recurrence", length)
        if sublayer in ("attention", "cross"):
            a = getattr(self, sublayer)
            width = a.head_dim or self.embed_dim // a.num_heads
            heads, groups = a.num_heads * width, (a.num_kv_heads or a.num_heads) * width
            seen = min(length, a.window or length)
            if a.latent is not None:
                return _latent_products(self.embed_dim, a.num_heads, width, a.latent, seen)
            return self.embed_dim * ((2 + a.gate) * heads + 2 * groups) + 2 * heads * seen
        if sublayer == "recurrence":
            assert self.recurrence is not None
            r, delta = self.recurrence, self.recurrence.kind == "delta"
            heads, groups = r.num_heads * r.head_dim, 2 * r.groups * r.state_dim
            # The state is written and read, by the delta rule twice.
            written = (2 + delta) * heads * r.state_dim
            inputs = groups + 3 * heads + (1 + delta) * r.num_heads
            return self.embed_dim * inputs + r.kernel * (groups + heads) + written
        half = self.moe or self.mlp
        matrices = 3 if half.activation in GATED else 2
        experts = self.moe.experts_per_token if self.moe else 1
        hidden = experts * half.dim + (self.moe.shared_dim or 0 if self.moe else 0)
        return matrices * self.embed_dim * hidden

    def check(self) -> None:
        """InputError naming both fields and both fixes when two of them do not fit together."""
        _config.validate(self, "model.")
        if self.dropout == 1.0:
            raise InputError("model.dropout=1.0 drops everything: give a fraction below 1")
        self._check_ends()
        for name in dict.fromkeys((*self.first, *self.pattern)):
            self.variant(name)._check_sublayers()
            attention = self.variant(name).attention
            self._check_heads("attention", attention)
            _check_latent(attention)
            head_dim = attention.head_dim or self.embed_dim // attention.num_heads
            if attention.rotary and head_dim % 2:
                raise InputError(
                    f"model.attention.rotary needs an even head width, not {head_dim}: set "
                    "model.attention.head_dim, or model.attention.rotary=false"
                )
            moe = self.variant(name).moe
            if moe is not None and moe.experts_per_token > moe.num_experts:
                raise InputError(
                    f"model.moe.experts_per_token={moe.experts_per_token} exceeds model.moe.num_experts="
                    f"{moe.num_experts}: change one of them"
                )
            if moe is not None:
                size, rest = divmod(moe.num_experts, moe.num_groups)
                held = size * min(moe.groups_per_token, moe.num_groups)
                if rest or (moe.num_groups > 1 and size < moe.group_best) or held < moe.experts_per_token:
                    raise InputError(
                        f"model.moe.num_experts={moe.num_experts} do not make model.moe.num_groups={moe.num_groups} "
                        f"of {moe.group_best} or more, {moe.groups_per_token} with {moe.experts_per_token} together"
                    )

    def has(self, part: str) -> bool:
        """Whether this block has attention, a recurrence or an MLP, whatever is beside it."""
        return part in self.sublayers or ("hybrid" in self.sublayers and part != "mlp")

    def _check_sublayers(self) -> None:
        """InputError when this block is not made of what it can be made of."""
        mixing = [each for each in self.sublayers if each not in ("cross", "mlp")]
        if len(mixing) != 1 or len(set(self.sublayers)) < len(self.sublayers):
            raise InputError(
                f"model.sublayers={','.join(self.sublayers)}: a block has attention, a recurrence or hybrid, once, and "
                "at most one cross and one mlp"
            )
        if ("cross" in self.sublayers) != (self.cross is not None):
            raise InputError(
                f"model.sublayers={','.join(self.sublayers)} beside model.cross={_config.to_text(self.cross)}: name "
                "cross among the one and set the other, or neither"
            )
        if self.cross is not None:
            self._check_heads("cross", self.cross)
            kept = ("num_heads", "num_kv_heads", "head_dim", "scale", "softcap", "bias", "key_bias", "output_bias")
            plain = Attention(**{name: getattr(self.cross, name) for name in kept}, causal=False)
            for each in dataclasses.fields(plain):
                if getattr(self.cross, each.name) != (value := getattr(plain, each.name)):
                    raise InputError(
                        f"model.cross.{each.name} is not for attention to a source: set it to {_config.to_text(value)}"
                    )
        if not self.has("recurrence"):
            return
        r = self.recurrence
        if r is None:
            raise InputError(
                "model.sublayers names a recurrence and model.recurrence is none: set its sizes, or name attention"
            )
        if r.num_heads % r.groups:
            raise InputError(
                f"model.recurrence.num_heads={r.num_heads} is no multiple of model.recurrence.num_groups={r.groups}: "
                "change one of them"
            )
        if len(r.scales) not in (0, 5):
            raise InputError(f"model.recurrence.scales has {len(r.scales)} numbers: give none or five")
        if r.step_max is not None and r.step_max < r.step_min:
            raise InputError(
                f"model.recurrence.step_max={r.step_max} is below model.recurrence.step_min={r.step_min}: change one "
                "of them"
            )

    def _check_heads(self, name: str, attention: Attention) -> None:
        """InputError when heads do not fit the model's width, or each other."""
        _check_cap(f"{name}.softcap", attention.softcap)
        if attention.head_dim is None and self.embed_dim % attention.num_heads:
            raise InputError(
                f"model.embed_dim={self.embed_dim} is no multiple of model.{name}.num_heads="
                f"{attention.num_heads}: change one of them, or set model.{name}.head_dim"
            )
        if attention.num_heads % (attention.num_kv_heads or attention.num_heads):
            raise InputError(
                f"model.{name}.num_heads={attention.num_heads} is no multiple of "
                f"model.{name}.num_kv_heads={attention.num_kv_heads}: change one of them"
            )
        near = attention.relative
        if near is not None and near.max_distance <= near.buckets // 2:
            raise InputError(
                f"model.{name}.relative.max_distance={near.max_distance} is within the {near.buckets // 2} "
                "buckets that hold one distance each: raise it, or give fewer buckets"
            )

    def _check_ends(self) -> None:
        """InputError when stem, pool and head do not fit together."""
        kinds = ("vocab_size", "images", "waveform", "spectrogram")
        read = {name: getattr(self, name) for name in kinds}
        if len([each for each in read.values() if each is not None]) != 1:
            said = " beside ".join(f"model.{name}={_config.to_text(each)}" for name, each in read.items())
            raise InputError(f"{said}: a model reads tokens, images or sound, give one of them")
        if (sound := self.waveform) is not None:
            if not sound.dims or not len(sound.dims) == len(sound.kernels) == len(sound.strides):
                raise InputError(
                    "model.waveform.dims, kernels and strides differ in length: give each convolution one of each"
                )
            if self.embed_dim % sound.position_groups:
                raise InputError(
                    f"model.embed_dim={self.embed_dim} is no multiple of model.waveform.position_groups="
                    f"{sound.position_groups}: change one of them"
                )
        if self.images is not None and self.images.size < self.images.patch:
            raise InputError(
                f"model.images.size={self.images.size} is less than model.images.patch="
                f"{self.images.patch}: change one of them"
            )
        if self.length is not None and self.length > self.max_length:
            raise InputError(
                f"{self.reads[0]} become {self.length} tokens, model.max_length={self.max_length} is smaller: raise it"
            )
        if self.pool is not None:
            self._check_pool(self.pool)
        if self.head is not None:
            _check_cap("head.softcap", self.head.softcap)
            if not self.num_outputs:
                raise InputError("model.head.outputs is not known: set it, or model.head=none")
        if self.pool is not None and self.pool.spare and self.pool.activation != "none":
            raise InputError(
                f"model.pool.spare=true has a layer that nothing reads, model.pool.activation={self.pool.activation} "
                "reads it: leave one of them out"
            )
        if self.tied and (self.head is None or self.num_outputs != self.vocab_size):
            raise InputError(
                "model.tied needs a head with one logit a token: leave model.head.outputs out, or set model.tied=false"
            )
        table = self.stem.embed_dim or self.embed_dim
        if self.tied and self.head is not None and (self.head.dim or self.embed_dim) != table:
            raise InputError(
                f"model.tied needs a head as wide as the table, {table}: set model.head.dim={table}, or "
                "model.tied=false"
            )

    def _check_pool(self, pool: Pool) -> None:
        """InputError when it looks for tokens that are not there, or its projection stands before a head."""
        by_token = pool.kind in ("token", "highest")
        if by_token and self.images is not None:
            raise InputError(f"model.pool.kind={pool.kind} looks at tokens, model.images has none: change one of them")
        if (pool.kind == "token") != (pool.token is not None):
            raise InputError(
                f"model.pool.token={_config.to_text(pool.token)} beside model.pool.kind={pool.kind}: kind token needs "
                "an id, and no other kind has one"
            )
        if pool.dim is not None and self.head is not None:
            raise InputError(
                f"model.pool.dim={pool.dim} beside a head, which is a projection itself: leave it out, or set "
                "model.head=none"
            )

    def build(self, partitioning: Partitioning | None = None) -> Model:
        """The model as pure functions, with activation constraints when it is bound to a mesh."""
        from jaxmodel.models import transformer

        return transformer.build(self, partitioning)


def _latent_products(dim: int, heads: int, width: int, latent: Latent, seen: int) -> int:
    """Multiply-adds of a token's multi-head latent attention, over `seen` tokens."""
    narrow, values = latent.q_rank or 0, heads * latent.value_dim
    products = dim * (narrow + latent.kv_rank + latent.rope_dim + values) + (narrow or dim) * heads * width
    return products + latent.kv_rank * (heads * (width - latent.rope_dim) + values) + seen * (heads * width + values)


def _check_latent(attention: Attention) -> None:
    latent, width = attention.latent, attention.head_dim
    if latent is None:
        return
    if width is None or width <= latent.rope_dim or latent.rope_dim % 2:
        raise InputError(
            f"model.attention.head_dim={_config.to_text(width)} beside model.attention.latent.rope_dim="
            f"{latent.rope_dim}: the turned part of a head has an even width, and is less than all of it"
        )
    same = {"num_kv_heads": attention.num_heads, "qk_norm": "none", "rotary": True}
    for name, value in same.items():
        if getattr(attention, name) not in (value, None):
            raise InputError(
                f"model.attention.{name}={_config.to_text(getattr(attention, name))} does not go with "
                f"model.attention.latent: set it to {_config.to_text(value)}"
            )


@register
@dataclasses.dataclass(frozen=True)
class EncoderDecoder:
    """An encoder, whose hidden states the cross attention of a decoder's blocks looks at: T5, BART, Whisper.

    A batch holds what the encoder reads, with `mask`, and `decoder_tokens` with `decoder_mask`.
    """

    encoder: Transformer = field(help="reads the source; without a head")
    decoder: Transformer = field(help="writes the target; its blocks have cross attention")
    shared: bool = field(True, help="the decoder's embedding table is the encoder's")
    start_token: int | None = field(None, help="token that a target begins behind", low=0)

    submodels: ClassVar = ("encoder", "decoder")

    @property
    def reads(self) -> tuple[str, ...]:
        """What it cannot do without in a batch."""
        return (*self.encoder.reads, "decoder_tokens")

    @property
    def inputs(self) -> Inputs:
        """What a batch may hold: dtype and dims by name, a dim that is a word being free."""
        kept = (*self.encoder.reads, "mask", "types")
        dims = ("batch", "decoder_length")
        source = {name: each for name, each in self.encoder.inputs.items() if name in kept}
        return {**source, "decoder_tokens": ("int32", dims), "decoder_mask": ("bool", dims)}

    @property
    def limits(self) -> dict[str, int]:
        """The largest that free dims may be."""
        decoder = {f"decoder_{name}" if name == "length" else name: n for name, n in self.decoder.limits.items()}
        return decoder | {name: n for name, n in self.encoder.limits.items() if name != "capacity"}

    @property
    def causal(self) -> bool:
        """Whether no token of a target sees a later one."""
        return self.decoder.causal

    @property
    def vocab_size(self) -> int | None:
        """Tokens in the decoder's vocabulary."""
        return self.decoder.vocab_size

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding table."""
        return self.decoder.tied

    @property
    def num_outputs(self) -> int:
        """Logits; 0 without a head."""
        return self.decoder.num_outputs

    def flops_per_token(self, length: int) -> float:
        """As `Transformer.flops_per_token`, for a token of the source and one of the target."""
        return self.encoder.flops_per_token(length) + self.decoder.flops_per_token(length)

    def fitted(self, facts: Mapping[str, Any]) -> EncoderDecoder:
        """This config; InputError where it does not hold the data."""
        fit_sizes(self, facts)
        said = {name: value for name, value in facts.items() if name != "inputs"}
        parts = {name: getattr(self, name).fitted({**said, "inputs": ()}) for name in self.submodels}
        return dataclasses.replace(self, **parts)

    def check(self) -> None:
        """InputError when the parts do not fit together."""
        _config.validate(self, "model.")
        self.encoder.check()
        self.decoder.check()
        if self.encoder.head is not None or self.encoder.pool is not None:
            raise InputError("model.encoder has a head or a pool: set model.encoder.head=none and pool=none")
        kinds = {name for pattern, _ in self.decoder.segments for name in pattern}
        if any(self.decoder.variant(name).cross is None for name in kinds):
            raise InputError("model.decoder.cross=none: give its blocks cross attention, to see the encoder")
        parts = self.encoder, self.decoder
        sizes = [(part.vocab_size, part.stem.embed_dim or part.embed_dim) for part in parts]
        if self.shared and sizes[0] != sizes[1]:
            raise InputError(
                f"model.shared with embedding tables of {sizes[0]} and {sizes[1]}: make model.encoder and "
                "model.decoder alike in vocab_size and embed_dim, or set model.shared=false"
            )

    def build(self, partitioning: Partitioning | None = None) -> Model:
        """The model as pure functions."""
        from jaxmodel.models import encoder_decoder

        return encoder_decoder.build(self, partitioning)


def _check_cap(name: str, cap: float | None) -> None:
    if cap == 0.0:
        raise InputError(f"model.{name}=0.0: a cap must be above 0; give none for no cap")


@register
@dataclasses.dataclass(frozen=True)
class Perceptron:
    """A multi-layer perceptron over features and categories, each column of categories through an embedding."""

    num_features: int | None = field(None, help="numeric features; none: by the data", low=0)
    categories: tuple[int, ...] | None = field(
        None, help="how many ids each column of categories has; none: by the data", low=1
    )
    num_outputs: int | None = field(None, help="outputs: classes, or 1; none: by the data", low=1)
    category_dim: int | None = field(None, help="width of an embedding (default: half its ids, 50 at most)", low=1)
    hidden: tuple[int, ...] = field((64,), help="widths of the hidden layers; none at all: a linear model", low=1)
    activation: str = field("relu", help="non-linearity", choices=UNGATED)
    norm: str = field("none", help="normalisation before each non-linearity", choices=("none", "batch", "layer"))
    dropout: float = field(0.0, help="dropped fraction of each hidden layer", low=0.0, high=1.0)
    momentum: float = field(0.9, help="of the running statistics of batch norm", low=0.0, high=1.0)
    epsilon: float = field(1e-5, help="added to the variance in a norm", low=0.0)
    execution: Execution = field(Execution(), help="how it runs")

    reads: ClassVar = ("features", "categories")
    by_data: ClassVar = ("num_features", "categories", "num_outputs")

    def fitted(self, facts: Mapping[str, Any]) -> Perceptron:
        """This config with the sizes of the data; InputError where it has others."""
        return fit_sizes(self, facts, **{name: name for name in self.by_data})

    @property
    def inputs(self) -> Inputs:
        """What a batch may hold: dtype and dims by name, a dim that is a word being free."""
        inputs: Inputs = {}
        if self.num_features:
            inputs["features"] = ("float32", ("batch", self.num_features))
        if self.categories:
            inputs["categories"] = ("int32", ("batch", len(self.categories)))
        return inputs

    def check(self) -> None:
        """InputError when a field is out of bounds, or nothing is left to read."""
        _config.validate(self, "model.")
        if self.dropout == 1.0:
            raise InputError("model.dropout=1.0 drops everything: give a fraction below 1")
        if self.num_features == 0 and self.categories == ():
            raise InputError("model.num_features=0 and no model.categories: the model would read nothing")

    def build(self, partitioning: Partitioning | None = None) -> Model:
        """The model as pure functions; its state is the running statistics of batch norm, if it has that."""
        from jaxmodel.models import perceptron

        return perceptron.build(self, partitioning)


@register
@dataclasses.dataclass(frozen=True)
class ConvNet:
    """A residual convolutional network: ResNet (arXiv:1512.03385), ConvNeXt (arXiv:2201.03545) and small ones.

    `inverted` blocks alone write to what runs through them: no non-linearity is on it, and between stages a norm and
    a convolution halve its size. In the others, the first block of a stage does.
    """

    num_classes: int | None = field(None, help="outputs: classes, or 1; 0: no head; none: by the data", low=0)
    channels: int | None = field(None, help="channels of the images; none: by the data", low=1)
    widths: tuple[int, ...] = field((16, 32, 64), help="channels of each stage; each later stage halves the size")
    blocks: int = field(1, help="residual blocks in a stage", low=1)
    depths: tuple[int, ...] | None = field(None, help="residual blocks of each stage (default: blocks in all)", low=1)
    stem: ConvStem = field(ConvStem(), help="what comes before the stages")
    block: str = field(
        "basic",
        help="two convolutions; narrow, spatial and wide ones; or one for each channel, then four times as wide and "
        "back",
        choices=("basic", "bottleneck", "inverted"),
    )
    kernel: int = field(3, help="height and width of the windows of a block, odd", low=1)
    first_stride: int = field(1, help="stride of the first stage", low=1, high=2)
    stride_early: bool = field(False, help="a bottleneck strides in its first, narrow convolution")
    norm: str = field("batch", help="normalisation", choices=("batch", "layer"))
    activation: str = field("relu", help="non-linearity", choices=UNGATED)
    bias: bool = field(False, help="biases on convolutions")
    layer_scale: float | None = field(
        None, help="initial value of a learned scale of what each block adds (arXiv:2103.17239)", low=0.0
    )
    pool_epsilon: float | None = field(
        None, help="layer norm of the pooled features, with this added to their variance", low=0.0
    )
    dropout: float = field(0.0, help="dropped fraction of the pooled features", low=0.0, high=1.0)
    momentum: float = field(0.9, help="of the running batch statistics", low=0.0, high=1.0)
    count_batches: bool = field(False, help="batch norm counts the batches that it was trained on, as torch's does")
    epsilon: float = field(1e-5, help="added to the variance", low=0.0)
    execution: Execution = field(Execution(), help="how it runs")

    reads: ClassVar = ("images",)
    by_data: ClassVar = ("num_classes", "channels")

    def fitted(self, facts: Mapping[str, Any]) -> ConvNet:
        """This config with the sizes of the data; InputError where it has others."""
        return fit_sizes(self, facts, num_classes="num_outputs", channels="channels")

    @property
    def inputs(self) -> Inputs:
        """What a batch may hold: dtype and dims by name, a dim that is a word being free."""
        return {"images": ("float32", ("batch", "height", "width", self.channels or "channels"))}

    @property
    def stages(self) -> tuple[tuple[int, int, int], ...]:
        """(width, blocks, stride) of each."""
        depths = self.depths or (self.blocks,) * len(self.widths)
        strides = (self.first_stride, *(2 for _ in depths[1:]))
        return tuple(zip(self.widths, depths, strides, strict=True))

    @property
    def convolutions(self) -> tuple[tuple[str, int, float], ...]:
        """Of a block, in order: name, size of its windows, width over that of the stage."""
        kinds = {
            "basic": (("first", self.kernel, 1.0), ("second", self.kernel, 1.0)),
            "bottleneck": (("first", 1, 0.25), ("second", self.kernel, 0.25), ("third", 1, 1.0)),
            "inverted": (("first", self.kernel, 1.0), ("second", 1, 4.0), ("third", 1, 1.0)),
        }
        return kinds[self.block]

    def check(self) -> None:
        """InputError when the stages are not positive widths, or their depths are of others."""
        _config.validate(self, "model.")
        if self.dropout == 1.0:
            raise InputError("model.dropout=1.0 drops everything: give a fraction below 1")
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"model.widths={self.widths}: give one positive width a stage, as in 16,32,64")
        if self.depths is not None and len(self.depths) != len(self.widths):
            raise InputError(
                f"model.depths={_config.to_text(self.depths)} beside model.widths={_config.to_text(self.widths)}: "
                "give a depth for each stage, or model.depths=none"
            )
        if self.kernel % 2 == 0:
            raise InputError(f"model.kernel={self.kernel}: windows of a block have a centre, give an odd size")

    def build(self, partitioning: Partitioning | None = None) -> Model:
        """The model as pure functions; its state is the running batch statistics."""
        from jaxmodel.models import convnet

        return convnet.build(self, partitioning)
