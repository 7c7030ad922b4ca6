"""What a transformer is made of, as frozen dataclasses: no jax here, so that `--help` is quick."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Self

from jaxmodel.config import Config, field, refuse, replace, to_text
from jaxmodel.models import parts
from jaxmodel.models.base import Buildable, Inputs, fit_sizes

KEPT = ("num_heads", "num_kv_heads", "head_dim", "scale", "softcap", "bias", "key_bias", "output_bias")  # when crossing


class Variant(Config):
    """A kind of block by name, as overrides of the model's own: `("attention.window", 512)`."""

    name: str
    overrides: tuple[tuple[str, Any], ...] = ()


class Transformer(Buildable):
    """A stem, a stack of blocks and a head: GPT-2, Llama, BERT, ViT and their kin are presets of this one config.

    The layers are `first`, then `pattern` again and again until there are `num_layers`; each name is a
    `Variant`, and `block` is the model's own. `segments` is what that comes to. A block's sublayers are, in order, each
    with its norm and residual: attention, a recurrence or both side by side (hybrid, arXiv:2507.22448), perhaps cross
    attention, and perhaps an MLP (or experts). Weights that write to the residual stream are scaled by `residual_init`
    at first, by default 1/sqrt(2 num_layers); at 0 every block starts as the identity.
    """

    vocab_size: int | None = field(help="tokens in the vocabulary; none: it reads images", low=1)
    max_length: int = field(help="longest sequence in tokens", low=1)
    embed_dim: int = field(help="width of the residual stream", low=1)
    num_layers: int = field(help="blocks in the stack", low=1)
    attention: parts.Attention = field(help="attention of a block")
    mlp: parts.MLP = field(help="feed-forward half of a block")
    moe: parts.MoE | None = field(None, help="mixture of experts in place of the MLP")
    recurrence: parts.Recurrence | None = field(None, help="recurrence of a block that has one")
    sublayers: tuple[str, ...] = field(("attention", "mlp"), help="halves of a block, in order", choices=parts.HALVES)
    cross: parts.Attention | None = field(None, help="attention of a block to what an encoder read")
    norm: parts.Norm = field(parts.Norm(), help="normalisation")
    stem: parts.Stem = field(parts.Stem(), help="how tokens become vectors")
    per_layer: parts.PerLayer | None = field(None, help="a narrow vector of each token for each layer")
    images: parts.Images | None = field(None, help="images in place of tokens")
    waveform: parts.Waveform | None = field(None, help="samples of sound in place of tokens")
    spectrogram: parts.Spectrogram | None = field(None, help="sound in place of tokens, as log-mel frames")
    pool: parts.Pool | None = field(None, help="one vector a sequence, which the head reads")
    head: parts.Head | None = field(parts.Head(), help="from hidden to logits")
    tied: bool = field(False, help="the head is the embedding table")
    dropout: float = field(0.0, help="dropped fraction of what half blocks give and of embeddings", low=0.0, high=0.99)
    init_scale: float | None = field(None, help="deviation of the initial weights (default: by fan-in)", low=0.0)
    residual_init: float | None = field(None, help="first scale of weights that write to the residual stream", low=0.0)
    residual_scale: float | None = field(None, help="of what each half of a block adds (Granite)", low=0.0)
    block_scale: bool = field(False, help="a number a block, which scales all that it gives (Gemma 4)")
    layer_scale: float | None = field(None, help="initial scale of what half blocks add (arXiv:2103.17239)", low=0.0)
    first: tuple[str, ...] = field((), help="variants of the first layers")
    pattern: tuple[str, ...] = field(("block",), help="variants of the following layers, repeated")
    variants: tuple[Variant, ...] = field((), help="block variants by name", flag=False)
    execution: parts.Execution = field(parts.Execution(), help="how it runs")

    module = "transformer"

    @property
    def segments(self) -> tuple[tuple[tuple[str, ...], int], ...]:
        """`((pattern, repeats), …)` that together hold `num_layers` blocks."""
        first = self.first[: self.num_layers]
        repeats, rest = divmod(self.num_layers - len(first), len(self.pattern))
        runs = [((name,), len(list(run))) for name, run in itertools.groupby(first)]
        return tuple(each for each in (*runs, (self.pattern, repeats), (self.pattern[:rest], min(rest, 1))) if each[1])

    @property
    def kinds(self) -> dict[str, Self]:
        """Blocks that differ, by their variant."""
        return {name: self.variant(name) for pattern, _ in self.segments for name in pattern}

    @property
    def reads(self) -> tuple[str, ...]:
        """What it cannot do without in a batch."""
        return ("images",) if self.images else ("audio",) if self.waveform or self.spectrogram else ("tokens",)

    @property
    def length(self) -> int | None:
        """Tokens that what it reads becomes; None: as many as there are."""
        return getattr(self.images or self.spectrogram, "length", None)

    def fitted(self, facts: Mapping[str, Any]) -> Self:
        """This config, with as many outputs as the data have classes; InputError where it does not hold the data."""
        fit_sizes(self, facts)
        if self.head is not None and "num_outputs" in facts:
            self = replace(self, {"head": fit_sizes(self.head, facts, "model.head.", outputs="num_outputs")})
        length, tokens = facts.get("length", 0), facts.get("vocab_size", 0)
        if length > self.max_length:
            refuse(self, f"--data.length={length} is longer than --<max_length>: lower the one or raise the other")
        if tokens > (self.vocab_size or 0):
            fix = "raise it, or lower --data.vocab_size"
            refuse(self, f"the tokenizer has {tokens} tokens, --<vocab_size> is smaller: {fix}")
        return self

    @property
    def inputs(self) -> Inputs:
        """What a batch may hold: dtype and dims by name, a dim that is a word being free."""
        if (image := self.images) is not None:
            masked = {"masked": ("bool", ("batch", image.length - image.class_token))} if image.mask_token else {}
            return {"images": ("float32", ("batch", image.size, image.size, image.channels)), **masked}
        if self.waveform or self.spectrogram:
            dims = ("batch", "samples")
            return {"audio": ("float32", dims), **({"mask": ("bool", dims)} if self.waveform else {})}
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
        if self.spectrogram is not None:
            return {"samples": self.spectrogram.samples}
        return {"length": self.max_length} | ({"capacity": self.max_length} if self.stem.positions == "learned" else {})

    @property
    def least(self) -> dict[str, int]:
        """The smallest that free dims may be, where one will not do."""
        return {} if self.waveform is None else {"samples": self.waveform.samples(1)}

    @property
    def causal(self) -> bool:
        """Whether no token sees a later one, in any block."""
        return all(block.attention.causal for block in self.kinds.values() if block.has("attention"))

    @property
    def num_outputs(self) -> int:
        """Logits; 0 without a head."""
        return 0 if self.head is None else self.head.outputs or self.vocab_size or 0

    def variant(self, name: str) -> Self:
        """This config as the block called `name` sees it; InputError when there is no such variant."""
        known = {"block": {}} | {variant.name: dict(variant.overrides) for variant in self.variants}
        if name not in known:
            refuse(self, f"model.pattern names the block variant {name!r}; this model has {', '.join(known)}")
        return replace(self, known[name])

    def has(self, part: str) -> bool:
        """Whether this block has attention, a recurrence or an MLP, whatever is beside it."""
        return part in self.sublayers or ("hybrid" in self.sublayers and part != "mlp")

    def flops_per_token(self, length: int) -> float:
        """Multiply-adds of a forward pass for one token of a sequence of `length`, times two, times three to train.

        The convention of arXiv:2204.02311, appendix B: products only, attention over the whole sequence (or the
        window), a recurrence token by token, nothing for recomputation.
        """
        dim, width = self.embed_dim, (self.head and self.head.dim) or self.embed_dim
        products = self.num_outputs * width * (self.pool is None) + dim * (self.stem.embed_dim or 0)
        products += sum(each.products(dim) for each in (self.images, self.waveform, self.spectrogram) if each)
        products += self.per_layer.products(dim, self.num_layers) if self.per_layer else 0
        for pattern, repeats in self.segments:
            products += repeats * sum(self.variant(name)._products(length) for name in pattern)
        return 6.0 * products

    def _products(self, length: int) -> int:
        """Multiply-adds of a token in this block."""
        several: dict[str, Any] = {"hybrid": (self.attention, self.recurrence), "mlp": (self.moe or self.mlp,)}
        found = [each for name in self.sublayers for each in several.get(name) or (getattr(self, name),)]
        return sum(each.products(self.embed_dim, length) for each in found)

    def _wrong(self) -> Iterator[str]:
        if [self.vocab_size, self.images, self.waveform, self.spectrogram].count(None) != 3:
            read = "<vocab_size> beside <images> beside <waveform> beside <spectrogram>"
            yield f"{read}: a model reads tokens, images or sound, give one of them"
        if (sound := self.waveform) is not None:
            if not sound.dims or not len(sound.dims) == len(sound.kernels) == len(sound.strides):
                yield "model.waveform.dims, kernels and strides differ in length: give each convolution one of each"
            if self.embed_dim % sound.position_groups:
                yield "<embed_dim> is no multiple of <waveform.position_groups>: change one of them"
        if self.per_layer is not None and self.vocab_size is None:
            yield "<per_layer> is of tokens, and <vocab_size> says that there are none: leave one of them out"
        if self.images is not None and self.images.size < self.images.patch:
            yield "<images.size> is less than <images.patch>: change one of them"
        if self.length is not None and self.length > self.max_length:
            yield f"{self.reads[0]} become {self.length} tokens, <max_length> is smaller: raise it"
        yield from self._wrong_ends()
        yield from self._wrong_sharing()
        for name in dict.fromkeys((*self.first, *self.pattern)):
            block = self.variant(name)
            for message in block._wrong_block():
                refuse(block, message)

    def _wrong_sharing(self) -> Iterator[str]:
        """Of blocks that keep keys and values, and of those that reuse them."""
        kept: dict[int | None, tuple[int, ...]] = {}
        for pattern, repeats in self.segments:
            for name in pattern:
                a = self.variant(name).attention
                if a.sharing == "reuse" and kept.get(a.window) != a.sizes(self.embed_dim)[1:]:
                    like = "with its window, key heads and head width: let one in model.first keep them"
                    yield f"block variant {name} reuses keys and values, and no earlier one keeps any {like}"
                if a.sharing == "keep":
                    kept[a.window] = a.sizes(self.embed_dim)[1:]
                    if repeats > 1:
                        yield f"block variant {name} keeps keys and values {repeats} times: name it in model.first"

    def _wrong_ends(self) -> Iterator[str]:
        """Of pool and head."""
        if (pool := self.pool) is not None:
            if pool.kind in ("token", "highest") and self.images is not None:
                yield "<pool.kind> looks at tokens, model.images has none: change one of them"
            if (pool.kind == "token") != (pool.token is not None):
                yield "<pool.token> beside <pool.kind>: kind token needs an id, and no other kind has one"
            if pool.dim is not None and self.head is not None:
                yield "<pool.dim> beside a head, which is a projection itself: leave it out, or set model.head=none"
        if self.head is not None and not self.num_outputs:
            yield "model.head.outputs is not known: set it, or model.head=none"
        if pool is not None and pool.spare and pool.activation != "none":
            yield "<pool.spare> has a layer that nothing reads, <pool.activation> reads it: leave one of them out"
        width, needs = self.stem.embed_dim or self.embed_dim, "model.tied needs a head"
        if self.tied and (self.head is None or self.num_outputs != self.vocab_size):
            yield f"{needs} with one logit a token: leave model.head.outputs out, or set model.tied=false"
        elif self.tied and self.head and (self.head.dim or self.embed_dim) != width:
            yield f"{needs} as wide as the table, {width}: set model.head.dim={width}, or model.tied=false"

    def _wrong_block(self) -> Iterator[str]:
        """Of this block's sublayers."""
        mixing = [each for each in self.sublayers if each not in ("cross", "mlp")]
        if len(mixing) != 1 or len(set(self.sublayers)) < len(self.sublayers):
            yield "<sublayers>: a block has attention, a recurrence or hybrid, once, and at most one cross and one mlp"
        if ("cross" in self.sublayers) != (self.cross is not None):
            yield "<sublayers> beside <cross>: name cross among the one and set the other, or neither"
        if self.cross is not None:
            yield from self._wrong_heads("cross", self.cross)
            plain = parts.Attention(**{name: getattr(self.cross, name) for name in KEPT}, causal=False)
            for name, value in vars(plain).items():
                if getattr(self.cross, name) != value:
                    yield f"model.cross.{name} is not for attention to a source: set it to {to_text(value)}"
        if (r := self.recurrence) is None and self.has("recurrence"):
            yield "model.sublayers names a recurrence and model.recurrence is none: set its sizes, or name attention"
        if r is not None and self.has("recurrence"):
            if r.num_heads % r.groups:
                yield "<recurrence.num_heads> is no multiple of <recurrence.num_groups>: change one of them"
            if len(r.scales) not in (0, 5):
                yield f"model.recurrence.scales has {len(r.scales)} numbers: give none or five"
            if r.step_max is not None and r.step_max < r.step_min:
                yield "<recurrence.step_max> is below <recurrence.step_min>: change one of them"
        yield from self._wrong_heads("attention", self.attention)
        width = self.attention.sizes(self.embed_dim)[-1]
        if self.attention.rotary and width % 2:
            yield f"model.attention.rotary needs an even head width, not {width}: set its head_dim, or rotary=false"
        if (moe := self.moe) is not None:
            if moe.experts_per_token > moe.num_experts:
                yield "<moe.experts_per_token> exceeds <moe.num_experts>: change one of them"
            size, rest = divmod(moe.num_experts, moe.num_groups)
            held = size * min(moe.groups_per_token, moe.num_groups)
            if rest or (moe.num_groups > 1 and size < moe.group_best) or held < moe.experts_per_token:
                end = f"{moe.group_best} or more, {moe.groups_per_token} with {moe.experts_per_token} together"
                yield f"<moe.num_experts> do not make <moe.num_groups> of {end}"

    def _wrong_heads(self, at: str, attention: parts.Attention) -> Iterator[str]:
        """Of heads that do not fit the model's width, or each other."""
        if attention.head_dim is None and self.embed_dim % attention.num_heads:
            yield f"<embed_dim> is no multiple of <{at}.num_heads>: change one of them, or set model.{at}.head_dim"
        if attention.num_heads % (attention.num_kv_heads or attention.num_heads):
            yield f"<{at}.num_heads> is no multiple of <{at}.num_kv_heads>: change one of them"
        near, latent, width = attention.relative, attention.latent, attention.head_dim
        if near is not None and near.max_distance <= near.buckets // 2:
            few = f"{near.buckets // 2} buckets that hold one distance each: raise it, or give fewer buckets"
            yield f"<{at}.relative.max_distance> is within the {few}"
        if latent is None or at == "cross":  # which is told to have none
            return
        if width is None or width <= latent.rope_dim or latent.rope_dim % 2:
            yield "<attention.head_dim> beside <attention.latent.rope_dim>: turn an even part of a head, not all of it"
        wanted = {"num_kv_heads": attention.num_heads, "qk_norm": "none", "rotary": True, "sharing": "none"}
        for name, value in wanted.items():
            if getattr(attention, name) not in (value, None):
                yield f"<attention.{name}> does not go with model.attention.latent: set it to {to_text(value)}"
