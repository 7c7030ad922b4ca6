"""Families of text encoders after BERT, as data: windows, rotary positions, tables narrower than the blocks."""

from typing import Any

from jaxmodel.interop.huggingface import encoders
from jaxmodel.interop.huggingface import keys as k
from jaxmodel.interop.huggingface.decoders import BIASES
from jaxmodel.interop.huggingface.rows import base, rows
from jaxmodel.interop.huggingface.table import Family, Group, Json, Overrides
from jaxmodel.models.configs import Transformer, Variant
from jaxmodel.models.parts import Head, Pool

# ModernBERT: layers with a window and layers without, each kind with positions of its own; the first has one norm.

_KINDS = {"full_attention": ("global", 160000.0), "sliding_attention": ("local", 10000.0)}


def _read_layers(json: Json) -> Overrides:
    period = json.get("global_attn_every_n_layers", 3)
    usual = ["sliding_attention" if i % period else "full_attention" for i in range(json["num_hidden_layers"])]
    first, *others = (_KINDS[kind][0] for kind in json.get("layer_types") or usual)
    variants: dict[str, Overrides] = {}
    for kind, (name, theta) in _KINDS.items():
        said = (json.get("rope_parameters") or {}).get(kind) or json.get("rope_scaling") or {}
        found = k.read_rope(said, json, theta=json.get(f"{name}_rope_theta", theta))
        window = json.get("local_attention", 128) // 2 + 1 if name == "local" else None
        variants[name] = {**found, "attention.window": window}
    alone = Variant("first", (*variants[first].items(), ("norm.attention", False)))
    found = k.patterned(others or [first], variants)
    return {**found, "first": ("first",), "variants": (alone, *found.get("variants", ()))}


def _write_layers(config: Transformer) -> dict[str, Any]:
    kinds = [k.slides(layer) for layer in k.layers(config)]
    ropes = {kind: {"rope_theta": theta, "rope_type": "default"} for kind, (_, theta) in _KINDS.items()}
    ropes |= {k.slides(each): k.write_rope(each.attention) for each in k.layers(config)}
    window = 2 * (k.window_of(config) or 65) - 2
    return {"layer_types": kinds, "local_attention": window, "rope_parameters": ropes}


_DENSE = "classifier_activation:head.activation=gelu~plain classifier_bias:head.dense_bias=false"
_POOLED = k.keys(f"{_DENSE} classifier_pooling:pool.kind=cls~pools", pools=k.named({"cls": "first", "mean": "mean"}))
_BEFORE = "linear head.dense head/dense\nnorm head.norm head/norm"
MODERNBERT = Family(
    name="modernbert",
    prefix="model.",
    base=base("attention(causal=false rotary) norm.kind=layer stem.norm"),
    keys=k.keys(
        *(encoders.ENCODER_KEYS, Group(_read_layers, _write_layers)),
        f"""vocab_size=50368 num_hidden_layers:num_layers intermediate_size:mlp.dim=1152
        hidden_activation:mlp.activation=gelu~gated max_position_embeddings:max_length=8192 norm_eps:norm.epsilon=1e-5
        norm_bias:norm.bias=false mlp_bias:mlp.bias=false tie_word_embeddings:tied=true {BIASES}""",
    ),
    rows=rows("""
        copy   embeddings.tok_embeddings.weight stem/tokens
        norm   embeddings.norm                  stem/norm
        linear layers.{i}.attn.Wqkv             stack/attention/query+key+value
        linear layers.{i}.mlp.Wi                stack/mlp/gate+up
        linear layers.{i}.(attn|mlp).Wo         stack/(attention/output|mlp/down)
        norm   layers.{i}.(attn|mlp)_norm       stack/(attention|mlp)_norm
        norm   final_norm                       norm
    """),
    heads={
        "ModernBertForMaskedLM": encoders.masked(
            "decoder", "head.dense", "head.norm", f"{_DENSE} decoder_bias:head.bias=true"
        ),
        "ModernBertModel": k.body(),
        "ModernBertForSequenceClassification": k.classifier("classifier", Pool(), _POOLED, _BEFORE),
        "ModernBertForTokenClassification": k.classifier("classifier", None, _DENSE, _BEFORE),
    },
)


def _table_width(json: Json) -> int | None:
    """Of ELECTRA's tables, where it is not that of the blocks."""
    width = json.get("embedding_size", 128)
    return None if width == json.get("hidden_size", 256) else width


_TABLES = Group(
    lambda json: {"stem.embed_dim": _table_width(json)},
    lambda config: {"embedding_size": config.stem.embed_dim or config.embed_dim},
)
_NARROW = [k.implied("head.dim", _table_width)]
_GENERATOR, _DISCRIMINATOR = "generator_predictions", "discriminator_predictions"
ELECTRA = encoders.BERT._replace(
    name="electra",
    prefix="electra.",
    keys=k.keys(
        *(k.without(encoders.BERT.keys, "tie_word_embeddings"), _TABLES),
        """tie_word_embeddings:tied=true hidden_size:embed_dim=256 num_attention_heads:attention.num_heads=4
        intermediate_size:mlp.dim=1024""",
    ),
    rows=rows(f"{encoders.BERT_BODY}linear embeddings_project stem/projection"),
    heads={
        "ElectraForPreTraining": k.headed(
            *(Head(outputs=1, bias=True, norm=False), f"{_DISCRIMINATOR}.dense_prediction", encoders.ACTIVATION),
            more=f"linear {_DISCRIMINATOR}.dense head/dense",
            tied=False,
        ),
        **encoders.encoder_heads(
            "Electra",
            encoders.masked("generator_lm_head", f"{_GENERATOR}.dense", f"{_GENERATOR}.LayerNorm", _NARROW),
            *(k.body(), k.classifier("classifier.out_proj", Pool(activation="gelu"), more=encoders.CLASSIFIER_POOL)),
        ),
    },
    ignored=("*embeddings.position_ids",),
)
