"""Families of encoders, of text and of images, as data."""

from __future__ import annotations

from typing import Any

from jaxmodel.interop.huggingface.keys import (
    ACTIVATIONS,
    body,
    classifier,
    named,
)
from jaxmodel.interop.huggingface.rows import LAYER_NORM, heads_of, linear, norm, transformer
from jaxmodel.interop.huggingface.table import (
    BATCHED,
    REQUIRED,
    TOKEN,
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
from jaxmodel.models.parts import MLP, Attention, Head, Images, Norm, Pool, Stem

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


_ENCODER_KEYS = (
    Key("hidden_size", "embed_dim", 768),
    Key("num_hidden_layers", "num_layers", 12),
    Key("num_attention_heads", "attention.num_heads", 12),
    Key("intermediate_size", "mlp.dim", 3072),
    Key("hidden_act", "mlp.activation", "gelu", *named(ACTIVATIONS)),
    Key("layer_norm_eps", "norm.epsilon", 1e-12),
)
TWO_WAYS = Attention(num_heads=1, causal=False, bias=True, output_bias=True)
POOLER = linear("pooler.dense", "pool/dense")


def _masked(json: Json) -> Overrides:
    head = Head(activation=named(ACTIVATIONS)[0](json.get("hidden_act", "gelu")), bias=True)
    return {"head": head, "pool": None}


def _is_masked(config: Transformer) -> dict[str, Any] | None:
    head = config.head
    same = (
        head is not None and head == Head(activation=config.mlp.activation, bias=True) and config.pool is None
    )
    return {} if same else None


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
        *_ENCODER_KEYS,
        Key("max_position_embeddings", "max_length", 512),
        Key("type_vocab_size", "stem.num_types", 2),
        Fixed("tie_word_embeddings", True),
        Fixed("is_decoder", False),
        Fixed("add_cross_attention", False),
        Fixed("position_embedding_type", "absolute"),
    ),
    rows=(
        Row("embeddings.word_embeddings.weight", "stem/tokens"),
        Row("embeddings.position_embeddings.weight", "stem/positions"),
        Row("embeddings.token_type_embeddings.weight", "stem/types"),
        *norm("embeddings.LayerNorm", "stem/norm"),
        *encoder_rows(
            "encoder.layer.{i}",
            "self",
            attention_norm="attention.output.LayerNorm",
            mlp_norm="output.LayerNorm",
        ),
        *POOLER,
    ),
    heads={
        "BertForMaskedLM": Heads(
            _masked,
            (
                *linear("cls.predictions.transform.dense", "head/dense"),
                *norm("cls.predictions.transform.LayerNorm", "head/norm"),
                Row("cls.predictions.bias", "head/bias"),
            ),
            _is_masked,
        ),
        "BertModel": body(Pool("first", activation="tanh")),
        "BertForSequenceClassification": classifier("classifier", Pool("first", activation="tanh")),
        "BertForTokenClassification": classifier("classifier", None),
    },
    ignored=("*embeddings.position_ids", "cls.seq_relationship.*", "cls.predictions.decoder.*"),
)


def _images() -> Group:
    def read(json: Json) -> Overrides:
        images = Images(
            size=json.get("image_size", 224),
            patch=json.get("patch_size", 16),
            channels=json.get("num_channels", 3),
        )
        return {"images": images, "vocab_size": None, "max_length": images.length}

    def write(config: Transformer) -> dict[str, Any]:
        images = config.images
        if images is None:
            return {}
        return {"image_size": images.size, "patch_size": images.patch, "num_channels": images.channels}

    return Group(read, write)


VIT = Family(
    name="vit",
    prefix="vit.",
    base=transformer(
        attention=TWO_WAYS, mlp=MLP(dim=1, bias=True), norm=LAYER_NORM, stem=Stem(positions="learned")
    ),
    keys=(*_ENCODER_KEYS, _images(), Key("qkv_bias", "attention.bias", True), Fixed("pooler_act", "tanh")),
    rows=(
        Row("embeddings.cls_token", "stem/class_token", TOKEN),
        Row("embeddings.position_embeddings", "stem/positions", BATCHED),
        Row("embeddings.patch_embeddings.projection.weight", "stem/patches", patches),
        Row("embeddings.patch_embeddings.projection.bias", "stem/patches_bias"),
        *encoder_rows(
            "encoder.layer.{i}", "attention", attention_norm="layernorm_before", mlp_norm="layernorm_after"
        ),
        *norm("layernorm", "norm"),
        *POOLER,
    ),
    heads={
        "ViTForImageClassification": classifier("classifier", Pool("first")),
        "ViTModel": body(Pool("first", activation="tanh")),
    },
)
