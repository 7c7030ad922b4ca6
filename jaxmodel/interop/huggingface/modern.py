"""Families of text encoders after BERT, as data: windows, rotary positions, tables narrower than the blocks."""

from __future__ import annotations

from typing import Any

from jaxmodel.interop.huggingface.decoders import both_biases
from jaxmodel.interop.huggingface.encoders import BERT, BERT_BODY
from jaxmodel.interop.huggingface.keys import (
    ACTIVATIONS,
    GATED,
    body,
    classifier,
    labels,
    layers,
    named,
    named_labels,
    patterned,
    read_rope,
    write_rope,
)
from jaxmodel.interop.huggingface.kin import QKV, QKV_BIAS, paths, without
from jaxmodel.interop.huggingface.rows import linear, norm, transformer
from jaxmodel.interop.huggingface.table import (
    FLAT,
    REQUIRED,
    TRANSPOSED,
    Family,
    Group,
    Heads,
    Json,
    Key,
    Overrides,
    Row,
)
from jaxmodel.models.configs import Transformer, Variant
from jaxmodel.models.parts import Attention, Head, Norm, Pool, Stem

_ROPES = {"full_attention": ("global", 160000.0), "sliding_attention": ("local", 10000.0)}


def _windows() -> Group:
    """Layers with a window and layers without, each kind with positions of its own; the first layer has one norm."""

    def read(json: Json) -> Overrides:
        count, every = json["num_hidden_layers"], json.get("global_attn_every_n_layers", 3)
        usual = ["sliding_attention" if i % every else "full_attention" for i in range(count)]
        kinds = json.get("layer_types") or usual
        variants: dict[str, Overrides] = {}
        for kind, (name, theta) in _ROPES.items():
            said = (json.get("rope_parameters") or {}).get(kind) or json.get("rope_scaling") or {}
            base, rope = read_rope(said, json, theta=json.get(f"{name}_rope_theta", theta))
            window = json.get("local_attention", 128) // 2 + 1 if name == "local" else None
            variants[name] = {
                "attention.window": window,
                "attention.rope_theta": base,
                "attention.rope": rope,
            }
        names = [_ROPES[kind][0] for kind in kinds]
        first = Variant("first", tuple({**variants[names[0]], "norm.attention": False}.items()))
        found = patterned(names[1:] or names, variants)
        return {**found, "first": ("first",), "variants": (first, *found.get("variants", ()))}

    def write(config: Transformer) -> dict[str, Any]:
        each = [layer.attention for layer in layers(config)]
        kinds = ["sliding_attention" if a.window else "full_attention" for a in each]
        usual = {kind: {"rope_theta": theta, "rope_type": "default"} for kind, (_, theta) in _ROPES.items()}
        ropes = {kind: write_rope(a.rope_theta, a.rope) for kind, a in zip(kinds, each, strict=True)}
        window = next((a.window for a in each if a.window), 65)
        return {
            "layer_types": kinds,
            "local_attention": 2 * (window - 1),
            "rope_parameters": {**usual, **ropes},
        }

    return Group(read, write)


def _modern_head(classes: bool, pooled: bool = False) -> Heads:
    """Logits of tokens or of classes behind a dense layer, which has a norm after its non-linearity."""
    pools = {"cls": Pool("first"), "mean": Pool("mean")}

    def read(json: Json) -> Overrides:
        head = Head(
            outputs=labels(json) if classes else None,
            activation=named(ACTIVATIONS)[0](json.get("classifier_activation", "gelu")),
            dense_bias=json.get("classifier_bias", False),
            bias=classes or json.get("decoder_bias", True),
        )
        pool = pools[json.get("classifier_pooling", "cls")] if pooled else None
        return {"head": head, "pool": pool, **({"tied": False} if classes else {})}

    def write(config: Transformer) -> dict[str, Any] | None:
        head = config.head
        if head is None:
            return None
        said = {
            "classifier_activation": named(ACTIVATIONS)[1](head.activation),
            "classifier_bias": head.dense_bias,
        }
        if not classes:
            return {**said, "decoder_bias": head.bias}
        pooling = next((name for name, pool in pools.items() if pool == config.pool), "cls")
        return {**said, "classifier_pooling": pooling, **named_labels(head.outputs or 1)}

    name = "classifier" if classes else "decoder"
    rows = Row(f"{name}.weight", "head/logits", TRANSPOSED), Row(f"{name}.bias", "head/bias")
    return Heads(read, (*linear("head.dense", "head/dense"), *norm("head.norm", "head/norm"), *rows), write)


_LAYER = "layers.{i}"
MODERNBERT = Family(
    name="modernbert",
    prefix="model.",
    base=transformer(
        attention=Attention(num_heads=1, causal=False, rotary=True),
        norm=Norm(kind="layer"),
        stem=Stem(norm=True),
    ),
    keys=(
        Key("vocab_size", "vocab_size", 50368),
        Key("hidden_size", "embed_dim", 768),
        Key("num_hidden_layers", "num_layers", REQUIRED),
        Key("num_attention_heads", "attention.num_heads", 12),
        Key("intermediate_size", "mlp.dim", 1152),
        Key("hidden_activation", "mlp.activation", "gelu", *named(GATED)),
        Key("max_position_embeddings", "max_length", 8192),
        Key("norm_eps", "norm.epsilon", 1e-5),
        Key("norm_bias", "norm.bias", False),
        Key("mlp_bias", "mlp.bias", False),
        Key("tie_word_embeddings", "tied", True),
        both_biases(),
        _windows(),
    ),
    rows=(
        Row("embeddings.tok_embeddings.weight", "stem/tokens"),
        *norm("embeddings.norm", "stem/norm"),
        Row(f"{_LAYER}.attn.Wqkv.weight", QKV, TRANSPOSED),
        Row(f"{_LAYER}.attn.Wqkv.bias", QKV_BIAS, FLAT),
        *linear(f"{_LAYER}.attn.Wo", "stack/attention/output"),
        Row(f"{_LAYER}.mlp.Wi.weight", paths("mlp", "gate", "up"), TRANSPOSED),
        Row(f"{_LAYER}.mlp.Wi.bias", paths("mlp", "gate_bias", "up_bias")),
        *linear(f"{_LAYER}.mlp.Wo", "stack/mlp/down"),
        *norm(f"{_LAYER}.attn_norm", "stack/attention_norm"),
        *norm(f"{_LAYER}.mlp_norm", "stack/mlp_norm"),
        *norm("final_norm", "norm"),
    ),
    heads={
        "ModernBertForMaskedLM": _modern_head(False),
        "ModernBertModel": body(),
        "ModernBertForSequenceClassification": _modern_head(True, pooled=True),
        "ModernBertForTokenClassification": _modern_head(True),
    },
)


def _electra_head(discriminates: bool) -> Heads:
    """Of the generator, as wide as its table of tokens; of the discriminator, one logit a token and no norm."""
    name = "discriminator_predictions" if discriminates else "generator_predictions"

    def read(json: Json) -> Overrides:
        hidden, width = json.get("hidden_size", 256), json.get("embedding_size", 128)
        if not discriminates:
            return {
                "head": Head(activation="gelu", bias=True, dim=width if width != hidden else None),
                "pool": None,
            }
        activation = named(ACTIVATIONS)[0](json.get("hidden_act", "gelu"))
        head = Head(outputs=1, activation=activation, bias=True, norm=False)
        return {"head": head, "pool": None, "tied": False}

    logits = f"{name}.dense_prediction" if discriminates else "generator_lm_head"
    rows = Row(f"{logits}.weight", "head/logits", TRANSPOSED), Row(f"{logits}.bias", "head/bias")
    dense = *linear(f"{name}.dense", "head/dense"), *norm(f"{name}.LayerNorm", "head/norm")
    return Heads(read, (*dense, *rows), lambda config: None if config.head is None else {})


def _table_width() -> Group:
    """Width of the tables, where it is not that of the blocks."""

    def read(json: Json) -> Overrides:
        hidden, width = json.get("hidden_size", 256), json.get("embedding_size", 128)
        return {"stem.embed_dim": None if width == hidden else width, "embed_dim": hidden}

    def write(config: Transformer) -> dict[str, Any]:
        return {"hidden_size": config.embed_dim, "embedding_size": config.stem.embed_dim or config.embed_dim}

    return Group(read, write)


_GELU = Pool("first", activation="gelu")
ELECTRA = BERT._replace(
    name="electra",
    prefix="electra.",
    keys=(
        _table_width(),
        Key("num_attention_heads", "attention.num_heads", 4),
        Key("intermediate_size", "mlp.dim", 1024),
        Key("tie_word_embeddings", "tied", True),
        *without(BERT.keys, "hidden_size", "num_attention_heads", "intermediate_size", "tie_word_embeddings"),
    ),
    rows=(*BERT_BODY, *linear("embeddings_project", "stem/projection")),
    heads={
        "ElectraForPreTraining": _electra_head(True),
        "ElectraForMaskedLM": _electra_head(False),
        "ElectraModel": body(),
        "ElectraForSequenceClassification": classifier(
            "classifier.out_proj", _GELU, more=linear("classifier.dense", "pool/dense")
        ),
        "ElectraForTokenClassification": classifier("classifier", None),
    },
    ignored=("*embeddings.position_ids",),
)
