"""Families of encoders, of text and of images, as data."""

from __future__ import annotations

from typing import Any

from jaxmodel.interop.huggingface.keys import ACTIVATIONS, body, classifier, named
from jaxmodel.interop.huggingface.rows import LAYER_NORM, heads_of, linear, norm, transformer
from jaxmodel.interop.huggingface.table import (
    BATCHED,
    REQUIRED,
    TOKEN,
    TRANSPOSED,
    Family,
    Fixed,
    Group,
    Heads,
    Json,
    Key,
    Overrides,
    Row,
    patches,
)
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import GATED, MLP, Attention, Head, Images, Norm, Pool, Stem

# Encoders in the manner of BERT


def encoder_rows(layer: str, attention: str, **norms: str) -> tuple[Row, ...]:
    """BERT's names within a layer; `norms` by ours."""
    return (
        *heads_of(f"{layer}.attention.{attention}", "query", "key", "value"),
        *linear(f"{layer}.attention.output.dense", "stack/attention/output"),
        *linear(f"{layer}.intermediate.dense", "stack/mlp/up"),
        *linear(f"{layer}.output.dense", "stack/mlp/down"),
        *(row for ours, name in norms.items() for row in norm(f"{layer}.{name}", f"stack/{ours}")),
    )


ENCODER_KEYS = (
    Key("hidden_size", "embed_dim", 768),
    Key("num_hidden_layers", "num_layers", 12),
    Key("num_attention_heads", "attention.num_heads", 12),
    Key("intermediate_size", "mlp.dim", 3072),
    Key("hidden_act", "mlp.activation", "gelu", *named(ACTIVATIONS)),
    Key("layer_norm_eps", "norm.epsilon", 1e-12),
)
TWO_WAYS = Attention(num_heads=1, causal=False, bias=True, output_bias=True)
POOLER = linear("pooler.dense", "pool/dense")


def masked(rows: tuple[Row, ...], key: str = "", activation: str = "gelu") -> Heads:
    """Logits of masked tokens by the embedding table, after a dense layer whose activation is a key's, or as given."""

    def read(json: Json) -> Overrides:
        name = named(ACTIVATIONS)[0](json.get(key, activation)) if key else activation
        return {"head": Head(activation=name, bias=True), "pool": None}

    return Heads(read, rows, lambda config: {} if config.head else None)


def masked_rows(dense: str, norm_name: str, bias: str) -> tuple[Row, ...]:
    """Names of what stands before the embedding table in such a head."""
    return *linear(dense, "head/dense"), *norm(norm_name, "head/norm"), Row(bias, "head/bias")


def _types(count: int) -> int:
    """Kinds of segments: BERT's stem adds a vector for one of them always; DistilBERT's has none."""
    if count < 1:
        raise ValueError("there is one or more")
    return count


TANH = Pool("first", activation="tanh")

BERT_BODY = (
    Row("embeddings.word_embeddings.weight", "stem/tokens"),
    Row("embeddings.position_embeddings.weight", "stem/positions"),
    Row("embeddings.token_type_embeddings.weight", "stem/types"),
    *norm("embeddings.LayerNorm", "stem/norm"),
    *encoder_rows(
        "encoder.layer.{i}", "self", attention_norm="attention.output.LayerNorm", mlp_norm="output.LayerNorm"
    ),
)
BERT = Family(
    name="bert",
    prefix="bert.",
    base=transformer(
        attention=TWO_WAYS,
        mlp=MLP(dim=1, bias=True),
        norm=Norm(kind="layer", bias=True, placement="post"),
        stem=Stem(positions="learned", num_types=2, norm=True),
        tied=True,
    ),
    keys=(
        Key("vocab_size", "vocab_size", REQUIRED),
        *ENCODER_KEYS,
        Key("max_position_embeddings", "max_length", 512),
        Key("type_vocab_size", "stem.num_types", 2, _types, lambda count: count),
        Fixed("tie_word_embeddings", True),
        Fixed("is_decoder", False),
        Fixed("add_cross_attention", False),
        Fixed("position_embedding_type", "absolute"),
    ),
    rows=(*BERT_BODY, *POOLER),
    heads={
        "BertForMaskedLM": masked(
            masked_rows(
                "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"
            ),
            "hidden_act",
        ),
        "BertModel": body(TANH),
        "BertForSequenceClassification": classifier("classifier", TANH),
        "BertForTokenClassification": classifier("classifier", None),
    },
    ignored=("*embeddings.position_ids", "cls.seq_relationship.*", "cls.predictions.decoder.*"),
    renamed={r"\.gamma$": ".weight", r"\.beta$": ".bias"},
)


def _offset_positions() -> Group:
    """Positions begin behind the row of padding, whose token's id is how many rows come before theirs."""

    def read(json: Json) -> Overrides:
        offset = json.get("pad_token_id", 1) + 1
        return {"stem.position_offset": offset, "max_length": json.get("max_position_embeddings", 512) - offset}

    def write(config: Transformer) -> dict[str, Any]:
        offset = config.stem.position_offset
        return {"pad_token_id": offset - 1, "max_position_embeddings": config.max_length + offset}

    return Group(read, write)


ROBERTA = BERT._replace(
    name="roberta",
    prefix="roberta.",
    keys=(*(key for key in BERT.keys if getattr(key, "field", "") != "max_length"), _offset_positions()),
    rows=BERT_BODY,
    heads={
        "RobertaForMaskedLM": masked(masked_rows("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")),
        "RobertaModel": body(TANH, POOLER),
        "RobertaForSequenceClassification": classifier(
            "classifier.out_proj", TANH, more=linear("classifier.dense", "pool/dense")
        ),
        "RobertaForTokenClassification": classifier("classifier", None),
    },
    ignored=("*embeddings.position_ids", "lm_head.decoder.*"),
)
DISTILBERT = Family(
    name="distilbert",
    prefix="distilbert.",
    base=transformer(
        attention=TWO_WAYS,
        mlp=MLP(dim=1, bias=True),
        norm=Norm(kind="layer", bias=True, placement="post", epsilon=1e-12),
        stem=Stem(positions="learned", norm=True),
        tied=True,
    ),
    keys=(
        Key("vocab_size", "vocab_size", REQUIRED),
        Key("dim", "embed_dim", 768),
        Key("n_layers", "num_layers", 6),
        Key("n_heads", "attention.num_heads", 12),
        Key("hidden_dim", "mlp.dim", 3072),
        Key("activation", "mlp.activation", "gelu", *named(ACTIVATIONS)),
        Key("max_position_embeddings", "max_length", 512),
        Fixed("tie_word_embeddings", True),
    ),
    rows=(
        *BERT_BODY[:2],
        *norm("embeddings.LayerNorm", "stem/norm"),
        *heads_of("transformer.layer.{i}.attention", "q_lin", "k_lin", "v_lin"),
        *linear("transformer.layer.{i}.attention.out_lin", "stack/attention/output"),
        *norm("transformer.layer.{i}.sa_layer_norm", "stack/attention_norm"),
        *linear("transformer.layer.{i}.ffn.lin1", "stack/mlp/up"),
        *linear("transformer.layer.{i}.ffn.lin2", "stack/mlp/down"),
        *norm("transformer.layer.{i}.output_layer_norm", "stack/mlp_norm"),
    ),
    heads={
        "DistilBertForMaskedLM": masked(
            masked_rows("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"), "activation"
        ),
        "DistilBertModel": body(),
        "DistilBertForSequenceClassification": classifier(
            "classifier", Pool("first", activation="relu"), more=linear("pre_classifier", "pool/dense")
        ),
        "DistilBertForTokenClassification": classifier("classifier", None),
    },
    ignored=("*embeddings.position_ids", "vocab_projector.weight"),
)


def images(size: int = 224, patch: int = 16, **usual: Any) -> Group:
    """Sizes of images and of their patches; `usual` is what else a family's patches are."""

    def read(json: Json) -> Overrides:
        found = Images(
            size=json.get("image_size", size),
            patch=json.get("patch_size", patch),
            channels=json.get("num_channels", 3),
            **usual,
        )
        return {"images": found, "vocab_size": None, "max_length": found.length}

    def write(config: Transformer) -> dict[str, Any]:
        images = config.images
        if images is None:
            return {}
        return {"image_size": images.size, "patch_size": images.patch, "num_channels": images.channels}

    return Group(read, write)


_PATCHES = (
    Row("embeddings.cls_token", "stem/class_token", TOKEN),
    Row("embeddings.position_embeddings", "stem/positions", BATCHED),
    Row("embeddings.patch_embeddings.projection.weight", "stem/patches", patches),
    Row("embeddings.patch_embeddings.projection.bias", "stem/patches_bias"),
)
VIT = Family(
    name="vit",
    prefix="vit.",
    base=transformer(attention=TWO_WAYS, mlp=MLP(dim=1, bias=True), norm=LAYER_NORM, stem=Stem(positions="learned")),
    keys=(*ENCODER_KEYS, images(), Key("qkv_bias", "attention.bias", True), Fixed("pooler_act", "tanh")),
    rows=(
        *_PATCHES,
        *encoder_rows("encoder.layer.{i}", "attention", attention_norm="layernorm_before", mlp_norm="layernorm_after"),
        *norm("layernorm", "norm"),
        *POOLER,
    ),
    heads={
        "ViTForImageClassification": classifier("classifier", Pool("first")),
        "ViTModel": body(Pool("first", activation="tanh")),
    },
)


def _by_ratio() -> Group:
    """The hidden width over that of the model; a gated one has two thirds, in whole eights, and its own activation."""

    def width(hidden_size: int, ratio: float, gated: bool) -> int:
        dim = int(hidden_size * ratio)
        return (int(dim * 2 / 3) + 7) // 8 * 8 if gated else dim

    def read(json: Json) -> Overrides:
        gated = json.get("use_swiglu_ffn", False)
        name = "swiglu" if gated else named(ACTIVATIONS)[0](json.get("hidden_act", "gelu"))
        dim = width(json.get("hidden_size", 768), json.get("mlp_ratio", 4), gated)
        return {"mlp.dim": dim, "mlp.activation": name}

    def write(config: Transformer) -> dict[str, Any]:
        gated, dim = config.mlp.activation == "swiglu", config.mlp.dim
        whole = (n for n in range(1, 65) if width(config.embed_dim, n, gated) == dim)
        said = {} if gated else {"hidden_act": named(ACTIVATIONS)[1](config.mlp.activation)}
        return {"use_swiglu_ffn": gated, "mlp_ratio": next(whole, dim / config.embed_dim), **said}

    return Group(read, write)


def _dinov2_rows(config: Transformer) -> tuple[Row, ...]:
    mlp = "encoder.layer.{i}.mlp"
    if config.mlp.activation in GATED:
        pair = {suffix: tuple(f"stack/mlp/{name}{suffix}" for name in ("gate", "up")) for suffix in ("", "_bias")}
        halves = (
            Row(f"{mlp}.weights_in.weight", pair[""], TRANSPOSED),
            Row(f"{mlp}.weights_in.bias", pair["_bias"]),
            *linear(f"{mlp}.weights_out", "stack/mlp/down"),
        )
    else:
        halves = (*linear(f"{mlp}.fc1", "stack/mlp/up"), *linear(f"{mlp}.fc2", "stack/mlp/down"))
    return (
        *_PATCHES,
        Row("embeddings.mask_token", "stem/mask_token", BATCHED),
        *heads_of("encoder.layer.{i}.attention.attention", "query", "key", "value"),
        *linear("encoder.layer.{i}.attention.output.dense", "stack/attention/output"),
        *norm("encoder.layer.{i}.norm1", "stack/attention_norm"),
        *norm("encoder.layer.{i}.norm2", "stack/mlp_norm"),
        Row("encoder.layer.{i}.layer_scale1.lambda1", "stack/attention_scale"),
        Row("encoder.layer.{i}.layer_scale2.lambda1", "stack/mlp_scale"),
        *halves,
        *norm("layernorm", "norm"),
    )


DINOV2 = VIT._replace(
    name="dinov2",
    prefix="dinov2.",
    keys=(
        *(key for key in ENCODER_KEYS if key.key in ("hidden_size", "num_hidden_layers", "num_attention_heads")),
        Key("layer_norm_eps", "norm.epsilon", 1e-6),
        _by_ratio(),
        images(patch=14),
        Key("use_mask_token", "images.mask_token", True),
        Key("layerscale_value", "layer_scale", 1.0),
        Key("qkv_bias", "attention.bias", True),
    ),
    rows=_dinov2_rows,
    heads={
        "Dinov2ForImageClassification": classifier("classifier", Pool("first_mean")),
        "Dinov2Model": body(Pool("first")),
    },
)
