"""Families of an encoder and a decoder, as data."""

from __future__ import annotations

from typing import Any

from jaxmodel import config as configs
from jaxmodel.data.audio import HOP
from jaxmodel.interop.huggingface.keys import ACTIVATIONS, GATED, classifier, named
from jaxmodel.interop.huggingface.rows import LAYER_NORM, linear, norm, transformer
from jaxmodel.interop.huggingface.table import (
    BATCHED,
    FLAT,
    REQUIRED,
    TRANSPOSED,
    Family,
    Fixed,
    Group,
    Heads,
    Json,
    Key,
    Overrides,
    Row,
    fused,
)
from jaxmodel.models import parts
from jaxmodel.models.configs import EncoderDecoder
from jaxmodel.models.parts import MLP, Attention, Head, Norm, Pool, Relative, Spectrogram, Stem

ENDLESS = 1 << 20  # tokens, where no position is ever out of reach


def several(key: str, fields: str, default: Any = None, read: Any = None, write: Any = None) -> tuple[Key, ...]:
    """A key that is several fields at once, given with spaces between them."""
    return tuple(Key(key, each, default, read, write) for each in fields.split())


def both(key: str, field: str, *more: Any) -> tuple[Key, ...]:
    """A key that is a field of the encoder and of the decoder."""
    return several(key, f"encoder.{field} decoder.{field}", *more)


def _layers(encoder: str, decoder: str) -> Group:
    """How many; the decoder has as many as the encoder where config.json does not say."""

    def read(json: Json) -> Overrides:
        count = json.get(decoder)
        return {"encoder.num_layers": json[encoder], "decoder.num_layers": json[encoder] if count is None else count}

    def write(config: EncoderDecoder) -> dict[str, Any]:
        return {encoder: config.encoder.num_layers, decoder: config.decoder.num_layers}

    return Group(read, write)


def part(name: str) -> Heads:
    """One part of the model alone."""

    def said(config: EncoderDecoder) -> dict[str, Any] | None:
        return {"is_encoder_decoder": False} if getattr(config, name).head is None else None

    return Heads(lambda json: {}, (), said, base=True, part=name)


# T5


def _feed_forward() -> Group:
    """The activation of the MLP, and whether it has a gate."""

    def read(json: Json) -> Overrides:
        said = json.get("feed_forward_proj", "relu")
        usual = "gelu_new" if said == "gated-gelu" else said.rpartition("-")[2]
        names = GATED if json.get("is_gated_act", said.startswith("gated-")) else ACTIVATIONS
        activation = named(names)[0](json.get("dense_act_fn") or usual)
        return {"encoder.mlp.activation": activation, "decoder.mlp.activation": activation}

    def write(config: EncoderDecoder) -> dict[str, Any]:
        ours = config.encoder.mlp.activation
        gated = ours in parts.GATED
        name = "gelu_new" if ours == "geglu" else named(GATED if gated else ACTIVATIONS)[1](ours)
        said = f"gated-{name.removesuffix('_new')}" if gated else name
        return {"feed_forward_proj": said, "dense_act_fn": name, "is_gated_act": gated}

    return Group(read, write)


def _scaled() -> Heads:
    """A head that is the embedding table, and then scaled, or one of its own.

    Newer versions of transformers say `tie_word_embeddings` of both, and `scale_decoder_outputs` of the first.
    """

    def read(json: Json) -> Overrides:
        tied = json.get("scale_decoder_outputs", json.get("tie_word_embeddings") is not False)
        return {"decoder.tied": tied, "decoder.head": Head(scale=json["d_model"] ** -0.5 if tied else None)}

    def write(config: EncoderDecoder) -> dict[str, Any] | None:
        tied = config.decoder.tied
        usual = Head(scale=config.decoder.embed_dim**-0.5 if tied else None)
        if config.decoder.head != usual:
            return None
        return {"tie_word_embeddings": tied, "scale_decoder_outputs": tied}

    return Heads(read, (Row("lm_head.weight", "decoder/head/logits", TRANSPOSED),), write)


def _bare() -> Heads:
    """Without a head."""

    def write(config: EncoderDecoder) -> dict[str, Any] | None:
        return {} if config.decoder.head is None and config.decoder.pool is None else None

    return Heads(lambda json: {"decoder.head": None, "decoder.tied": False}, (), write, base=True)


def _t5_rows(config: Any) -> tuple[Row, ...]:
    gated = getattr(config, "encoder", config).mlp.activation in parts.GATED
    up = {"wi_0": "gate", "wi_1": "up"} if gated else {"wi": "up"}
    rows = [Row("shared.weight", "encoder/stem/tokens")]
    for side, halves in (
        ("encoder", {"SelfAttention": "attention"}),
        ("decoder", {"SelfAttention": "attention", "EncDecAttention": "cross"}),
    ):
        for i, (name, ours) in enumerate(halves.items()):
            layer = f"{side}.block.{{i}}.layer.{i}"
            for letter, weight in {"q": "query", "k": "key", "v": "value", "o": "output"}.items():
                rows += linear(f"{layer}.{name}.{letter}", f"{side}/stack/{ours}/{weight}")[:1]
            rows.append(Row(f"{layer}.layer_norm.weight", f"{side}/stack/{ours}_norm/scale"))
        layer = f"{side}.block.{{i}}.layer.{len(halves)}"
        for name, weight in {**up, "wo": "down"}.items():
            rows += linear(f"{layer}.DenseReluDense.{name}", f"{side}/stack/mlp/{weight}")[:1]
        rows.append(Row(f"{layer}.layer_norm.weight", f"{side}/stack/mlp_norm/scale"))
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rows += [Row(table, f"{side}/relative/table"), Row(f"{side}.final_layer_norm.weight", f"{side}/norm/scale")]
    return tuple(rows)


_CROSSED: Overrides = {"sublayers": ("attention", "cross", "mlp")}
_T5_ATTENTION = Attention(num_heads=1, scale=1.0, relative=Relative())
_T5_PART = transformer(
    max_length=ENDLESS, attention=_T5_ATTENTION, mlp=MLP(dim=1, activation="relu"), norm=Norm(epsilon=1e-6)
)
_HEADS = "encoder.attention{0} decoder.attention{0} decoder.cross{0}"
T5 = Family(
    name="t5",
    prefix="",
    base=EncoderDecoder(
        encoder=configs.replace(_T5_PART, {"attention.causal": False, "head": None}),
        decoder=configs.replace(_T5_PART, {"cross": Attention(num_heads=1, causal=False, scale=1.0), **_CROSSED}),
    ),
    keys=(
        *both("vocab_size", "vocab_size", REQUIRED),
        *both("d_model", "embed_dim", 512),
        *several("d_kv", _HEADS.format(".head_dim"), 64),
        *several("num_heads", _HEADS.format(".num_heads"), 8),
        *both("d_ff", "mlp.dim", 2048),
        _layers("num_layers", "num_decoder_layers"),
        *both("relative_attention_num_buckets", "attention.relative.buckets", 32),
        *both("relative_attention_max_distance", "attention.relative.max_distance", 128),
        *both("layer_norm_epsilon", "norm.epsilon", 1e-6),
        Key("decoder_start_token_id", "start_token"),
        _feed_forward(),
        Fixed("is_decoder", False),
    ),
    rows=_t5_rows,
    heads={"T5ForConditionalGeneration": _scaled(), "T5Model": _bare(), "T5EncoderModel": part("encoder")},
    ignored=(
        *("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    ),
)


# In the manner of BART


def _sides(*more: Row) -> tuple[Row, ...]:
    """BART's names within either part, with what only some families have."""
    rows = list(more)
    for side in ("encoder", "decoder"):
        layer, stack = f"{side}.layers.{{i}}", f"{side}/stack"
        for name, ours in {"self_attn": "attention", "encoder_attn": "cross"}.items():
            for projection in ("query", "key", "value"):
                rows += linear(f"{layer}.{name}.{projection[0]}_proj", f"{stack}/{ours}/{projection}", bias=FLAT)
            rows += linear(f"{layer}.{name}.out_proj", f"{stack}/{ours}/output")
            rows += norm(f"{layer}.{name}_layer_norm", f"{stack}/{ours}_norm")
        rows += [*linear(f"{layer}.fc1", f"{stack}/mlp/up"), *linear(f"{layer}.fc2", f"{stack}/mlp/down")]
        rows += norm(f"{layer}.final_layer_norm", f"{stack}/mlp_norm")
        rows += [*norm(f"{side}.layernorm_embedding", f"{side}/stem/norm"), *norm(f"{side}.layer_norm", f"{side}/norm")]
        rows.append(Row(f"{side}.embed_positions.weight", f"{side}/stem/positions"))
    return tuple(rows)


def _base(encoder: Overrides, shared: bool, key_bias: bool, **fields: Any) -> EncoderDecoder:
    """Layer norms and biases; `encoder` lays what it has of its own over what both have."""
    attention = Attention(num_heads=1, bias=True, key_bias=key_bias, output_bias=True)
    both = transformer(attention=attention, mlp=MLP(dim=1, bias=True), tied=True, **fields)
    cross = {"cross": configs.replace(attention, {"causal": False}), **_CROSSED}
    own = {"attention.causal": False, "head": None, "tied": False, **encoder}
    return EncoderDecoder(configs.replace(both, own), configs.replace(both, cross), shared=shared)


_SIZES = (
    *both("d_model", "embed_dim", REQUIRED),
    *(Key(f"{side}_layers", f"{side}.num_layers", REQUIRED) for side in ("encoder", "decoder")),
    *(Key(f"{side}_ffn_dim", f"{side}.mlp.dim", REQUIRED) for side in ("encoder", "decoder")),
    Key("encoder_attention_heads", "encoder.attention.num_heads", REQUIRED),
    *several("decoder_attention_heads", "decoder.attention.num_heads decoder.cross.num_heads", REQUIRED),
    *both("activation_function", "mlp.activation", "gelu", *named(ACTIVATIONS)),
    Key("decoder_start_token_id", "start_token"),
    Fixed("is_decoder", False),
)


def _scaled_embeddings() -> Group:
    """Whether embeddings are scaled by the root of their width."""

    def read(json: Json) -> Overrides:
        scale = json["d_model"] ** 0.5 if json.get("scale_embedding") else None
        return {"encoder.stem.scale": scale, "decoder.stem.scale": scale}

    return Group(read, lambda config: {"scale_embedding": config.encoder.stem.scale is not None})


def _writer(name: str, head: Head, *more: Row) -> Heads:
    """One logit a token of the vocabulary."""

    def write(config: EncoderDecoder) -> dict[str, Any] | None:
        decoder = config.decoder
        return {"tie_word_embeddings": decoder.tied} if decoder.head == head and decoder.pool is None else None

    def read(json: Json) -> Overrides:
        return {"decoder.head": head, "decoder.tied": json.get("tie_word_embeddings", True)}

    return Heads(read, (Row(f"{name}.weight", "decoder/head/logits", TRANSPOSED), *more), write)


def _last_token(name: str, usual: int) -> Heads:
    """Classes, by the last token of the target: the source again, moved on by one."""
    inner = classifier(f"{name}.out_proj", Pool("last", activation="tanh"), more=linear(f"{name}.dense", "pool/dense"))
    rows = tuple(row._replace(paths=f"decoder/{row.paths}") for row in inner.rows)

    def read(json: Json) -> Overrides:
        return {f"decoder.{field}": each for field, each in inner.read({"num_labels": usual, **json}).items()}

    return Heads(read, rows, lambda config: inner.write(config.decoder))


BART = Family(
    name="bart",
    prefix="model.",
    base=_base(
        {},
        shared=True,
        key_bias=True,
        norm=Norm(kind="layer", bias=True, placement="post"),
        stem=Stem(positions="learned", position_offset=2, norm=True),
    ),
    keys=(
        *both("vocab_size", "vocab_size", REQUIRED),
        *_SIZES,
        *both("max_position_embeddings", "max_length", 1024),
        _scaled_embeddings(),
        Fixed("tie_word_embeddings", True),  # or each part would have a table of its own
        Fixed("normalize_before", False),
        Fixed("normalize_embedding", True),
        Fixed("add_final_layer_norm", False),
        Fixed("static_position_embeddings", False),
    ),
    rows=_sides(Row("shared.weight", "encoder/stem/tokens")),
    heads={
        "BartForConditionalGeneration": _writer(
            "lm_head", Head(bias=True), Row("final_logits_bias", "decoder/head/bias", BATCHED)
        ),
        "BartModel": _bare(),
        "BartForSequenceClassification": _last_token("classification_head", 3),
    },
    ignored=("*.embed_tokens.weight",),
)


# Whisper


def _audio() -> Group:
    """Log-mel frames: so many bands, and twice as many frames as the encoder has positions."""

    def read(json: Json) -> Overrides:
        length = json.get("max_source_positions", 1500)
        sound = Spectrogram(samples=2 * HOP * length, bands=json.get("num_mel_bins", 80))
        return {"encoder.spectrogram": sound, "encoder.max_length": length, "encoder.vocab_size": None}

    def write(config: EncoderDecoder) -> dict[str, Any]:
        sound = config.encoder.spectrogram
        return {"max_source_positions": config.encoder.max_length, "num_mel_bins": sound and sound.bands}

    return Group(read, write)


# Three frames at a time: [out, in, 3] on disk, [3 * in, out] with us.
_CONVOLUTION = fused(
    lambda x: x.reshape(3, -1, x.shape[-1]).transpose(2, 1, 0), lambda x, shape: x.transpose(2, 1, 0).reshape(shape)
)
WHISPER = Family(
    name="whisper",
    prefix="model.",
    base=_base(
        {"vocab_size": None, "spectrogram": Spectrogram(samples=2 * HOP)},
        shared=False,
        key_bias=False,
        norm=LAYER_NORM,
        stem=Stem(positions="learned"),
    ),
    keys=(
        Key("vocab_size", "decoder.vocab_size", REQUIRED),
        *_SIZES,
        _audio(),
        Key("max_target_positions", "decoder.max_length", 448),
        *(Fixed(key, False) for key in ("scale_embedding", "use_weighted_layer_sum")),
    ),
    rows=_sides(
        Row("decoder.embed_tokens.weight", "decoder/stem/tokens"),
        *(
            row
            for i in range(2)
            for row in linear(f"encoder.conv{i + 1}", f"encoder/stem/convolution_{i}", _CONVOLUTION)
        ),
    ),
    heads={"WhisperForConditionalGeneration": _writer("proj_out", Head()), "WhisperModel": _bare()},
)
PAIRS = (T5, BART, WHISPER)
