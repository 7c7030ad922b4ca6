"""Families of text encoders after BERT, as data: windows, rotary positions, tables narrower than the blocks."""

from __future__ import annotations

from typing import Any

from jaxmodel.interop.huggingface.decoders import both_biases
from jaxmodel.interop.huggingface.encoders import BERT, BERT_BODY, ENCODER_KEYS
from jaxmodel.interop.huggingface.keys import (
    ACTIVATIONS,
    GATED,
    body,
    classes,
    classifier,
    headed,
    labels,
    layers,
    named,
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
        kinds = [_ROPES[kind][0] for kind in json.get("layer_types") or usual]
        variants: dict[str, Overrides] = {}
        for kind, (name, theta) in _ROPES.items():
            said = (json.get("rope_parameters") or {}).get(kind) or json.get("rope_scaling") or {}
            base, rope = read_rope(said, json, theta=json.get(f"{name}_rope_theta", theta))
            variants[name] = {"attention.rope_theta": base, "attention.rope": rope, "attention.window": None}
        variants["local"]["attention.window"] = json.get("local_attention", 128) // 2 + 1
        first = Variant("first", tuple({**variants[kinds[0]], "norm.attention": False}.items()))
        found = patterned(kinds[1:] or kinds, variants)
        return {**found, "first": ("first",), "variants": (first, *found.get("variants", ()))}

    def write(config: Transformer) -> dict[str, Any]:
        each = [layer.attention for layer in layers(config)]
        kinds = ["sliding_attention" if a.window else "full_attention" for a in each]
        ropes = {kind: {"rope_theta": theta, "rope_type": "default"} for kind, (_, theta) in _ROPES.items()}
        ropes |= {kind: write_rope(a.rope_theta, a.rope) for kind, a in zip(kinds, each, strict=True)}
        window = 2 * (next((a.window for a in each if a.window), 65) - 1)
        return {"layer_types": kinds, "local_attention": window, "rope_parameters": ropes}

    return Group(read, write)


_POOLS = {"cls": "first", "mean": "mean"}


def _modern_head(logits: str, classified: bool = True, pooled: bool = False) -> Heads:
    """Behind a dense layer, whose bias config.json says, and its non-linearity stands a norm."""

    def head(json: Json) -> Head:
        return Head(
            outputs=labels(json) if classified else None,
            activation=named(ACTIVATIONS)[0](json.get("classifier_activation", "gelu")),
            bias=classified or json.get("decoder_bias", True),
            dense_bias=json.get("classifier_bias", False),
        )

    def pool(json: Json) -> Pool | None:
        return Pool(named(_POOLS)[0](json.get("classifier_pooling", "cls"))) if pooled else None

    def said(config: Transformer) -> dict[str, Any]:
        head = config.head or Head()
        found = classes(config) if classified else {"decoder_bias": head.bias}
        found |= {"classifier_pooling": named(_POOLS)[1](config.pool.kind)} if config.pool else {}
        activation = named(ACTIVATIONS)[1](head.activation)
        return {**found, "classifier_activation": activation, "classifier_bias": head.dense_bias}

    rows = *linear("head.dense", "head/dense"), *norm("head.norm", "head/norm")
    return headed(head, logits, said, pool, rows, **({"tied": False} if classified else {}))


_LAYER = "layers.{i}"
MODERNBERT = Family(
    name="modernbert",
    prefix="model.",
    base=transformer(
        attention=Attention(num_heads=1, causal=False, rotary=True), norm=Norm(kind="layer"), stem=Stem(norm=True)
    ),
    keys=(
        Key("vocab_size", "vocab_size", 50368),
        Key("num_hidden_layers", "num_layers", REQUIRED),
        *without(ENCODER_KEYS, "num_hidden_layers", "intermediate_size", "hidden_act", "layer_norm_eps"),
        Key("intermediate_size", "mlp.dim", 1152),
        Key("hidden_activation", "mlp.activation", "gelu", *named(GATED)),
        Key("max_position_embeddings", "max_length", 8192),
        Key("norm_eps", "norm.epsilon", 1e-5),
        Key("norm_bias", "norm.bias", False),
        Key("mlp_bias", "mlp.bias", False),
        Key("tie_word_embeddings", "tied", True),
        *(both_biases(), _windows()),
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
        "ModernBertForMaskedLM": _modern_head("decoder", classified=False),
        "ModernBertModel": body(),
        "ModernBertForSequenceClassification": _modern_head("classifier", pooled=True),
        "ModernBertForTokenClassification": _modern_head("classifier"),
    },
)


def _widths(json: Json) -> tuple[int, int | None]:
    """Of ELECTRA's blocks, and of its tables where they have another."""
    hidden, width = json.get("hidden_size", 256), json.get("embedding_size", 128)
    return hidden, None if width == hidden else width


def _generates(json: Json) -> Head:
    return Head(activation="gelu", bias=True, dim=_widths(json)[1])


def _discriminates(json: Json) -> Head:
    return Head(outputs=1, activation=named(ACTIVATIONS)[0](json.get("hidden_act", "gelu")), bias=True, norm=False)


_TABLES = Group(
    lambda json: dict(zip(("embed_dim", "stem.embed_dim"), _widths(json), strict=True)),
    lambda config: {"hidden_size": config.embed_dim, "embedding_size": config.stem.embed_dim or config.embed_dim},
)
_GENERATOR, _DISCRIMINATOR = "generator_predictions", "discriminator_predictions"
_GELU = Pool("first", activation="gelu")
ELECTRA = BERT._replace(
    name="electra",
    prefix="electra.",
    keys=(
        _TABLES,
        Key("num_attention_heads", "attention.num_heads", 4),
        Key("intermediate_size", "mlp.dim", 1024),
        Key("tie_word_embeddings", "tied", True),
        *without(BERT.keys, "hidden_size", "num_attention_heads", "intermediate_size", "tie_word_embeddings"),
    ),
    rows=(*BERT_BODY, *linear("embeddings_project", "stem/projection")),
    heads={
        "ElectraForPreTraining": headed(
            *(_discriminates, f"{_DISCRIMINATOR}.dense_prediction"),
            more=linear(f"{_DISCRIMINATOR}.dense", "head/dense"),
            tied=False,
        ),
        "ElectraForMaskedLM": headed(
            *(_generates, "generator_lm_head"),
            more=(*linear(f"{_GENERATOR}.dense", "head/dense"), *norm(f"{_GENERATOR}.LayerNorm", "head/norm")),
        ),
        "ElectraModel": body(),
        "ElectraForSequenceClassification": classifier(
            "classifier.out_proj", _GELU, more=linear("classifier.dense", "pool/dense")
        ),
        "ElectraForTokenClassification": classifier("classifier", None),
    },
    ignored=("*embeddings.position_ids",),
)
