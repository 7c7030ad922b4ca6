"""Families of decoders, as data: what they have in common, their keys and their rows."""

from __future__ import annotations

from typing import Any

from jaxmodel.interop.huggingface import keys as k
from jaxmodel.interop.huggingface.rows import LAYER_NORM, rows, transformer
from jaxmodel.interop.huggingface.table import Family, Group, Json, Keys, Overrides, Row
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import MLP, Attention, Norm, Pool, Stem

# GPT-2: one projection to queries, keys and values, stored [in, out].

_INNER = Group(
    lambda json: {"mlp.dim": json.get("n_inner") or 4 * json.get("n_embd", 768)},
    lambda config: {"n_inner": config.mlp.dim},
)
GPT2 = Family(
    name="gpt2",
    prefix="transformer.",
    base=transformer(
        attention=Attention(num_heads=1, bias=True, output_bias=True),
        **{"mlp": MLP(dim=1, bias=True), "norm": LAYER_NORM, "stem": Stem(positions="learned")},
    ),
    keys=(
        *k.keys("vocab_size=50257 n_embd:embed_dim=768 n_layer:num_layers=12 n_head:attention.num_heads=12"),
        *(_INNER, *k.keys("n_positions:max_length=1024 activation_function:mlp.activation=gelu_new~plain")),
        *k.keys("layer_norm_epsilon:norm.epsilon=1e-5 tie_word_embeddings:tied=true scale_attn_weights==true"),
        *k.keys("scale_attn_by_inverse_layer_idx==false add_cross_attention==false"),
    ),
    rows=rows("""
        copy    w(t|p)e.weight            stem/(tokens|positions)
        norm    h.{i}.ln_(1|2)            stack/(attention|mlp)_norm
        columns h.{i}.attn.c_attn         stack/attention/query+key+value
        plain   h.{i}.attn.c_proj         stack/attention/output
        plain   h.{i}.mlp.c_(fc|proj)     stack/mlp/(up|down)
        norm    ln_f                      norm
    """),
    heads={
        **{"GPT2LMHeadModel": k.causal(), "GPT2Model": k.body()},
        "GPT2ForSequenceClassification": k.classifier("score", Pool("last"), bias=False),
        "GPT2ForTokenClassification": k.classifier("classifier", None),
    },
    ignored=("*.attn.bias", "*.attn.masked_bias"),
)

# Decoders in the manner of Llama

NORMS = "norm layers.{i}.(input|post_attention)_layernorm stack/(attention|mlp)_norm\n"
LLAMA_ROWS = f"""{NORMS}
    copy   embed_tokens.weight                      stem/tokens
    norm   norm                                     norm
    linear layers.{{i}}.self_attn.(q|k|v|o)_proj    stack/attention/(query|key|value|output)
    copy   layers.{{i}}.self_attn.(q|k)_norm.weight stack/attention/(query|key)_norm
    linear layers.{{i}}.mlp.(gate|up|down)_proj     stack/mlp/(gate|up|down)
"""


def sizes(
    activation: str = "hidden_act:mlp.activation=silu~gated",
    epsilon: str = "rms_norm_eps:norm.epsilon=1e-6",
    tied: str = "false",
    head_dim: int | None = None,
    inner: str = "intermediate_size:mlp.dim",
) -> Keys:
    """The keys that nearly every decoder has; what is said of single ones is what they are where they are otherwise."""

    def read(json: Json) -> Overrides:
        heads = json["num_attention_heads"]
        width = json.get("head_dim", head_dim) or json["hidden_size"] // heads
        return {"attention.num_kv_heads": json.get("num_key_value_heads") or heads, "attention.head_dim": width}

    def write(config: Transformer) -> dict[str, Any]:
        a = config.attention
        width = a.head_dim or config.embed_dim // a.num_heads
        return {"num_key_value_heads": a.num_kv_heads or a.num_heads, "head_dim": width}

    first = "vocab_size hidden_size:embed_dim num_hidden_layers:num_layers num_attention_heads:attention.num_heads"
    more = k.keys(f"{inner} {activation} {epsilon} tie_word_embeddings:tied={tied}")
    return *k.keys(first), Group(read, write), *more


def both_biases(default: str = "false") -> Keys:
    """`attention_bias`: of all four projections, or of none."""
    return k.keys(f"attention_bias:attention.output_bias,attention.bias={default}~bool")


def _sliding(json: Json) -> list[str]:
    """Qwen's layers where `layer_types` is not there: those from `max_window_layers` on slide."""
    first = json.get("max_window_layers", 28) if json.get("use_sliding_window") else json["num_hidden_layers"]
    return ["sliding_attention" if i >= first else "full_attention" for i in range(json["num_hidden_layers"])]


# A switch turns all windows off.
QWEN_LAYERS = k.switched(k.layer_types(_sliding), "layer_types")
# Queries and keys are normalised as everything is.
QK_EPSILON = k.implied("attention.qk_norm_epsilon", lambda json: json.get("rms_norm_eps", 1e-6))
ROTARY = Attention(num_heads=1, rotary=True)
QK_NORM = Attention(num_heads=1, rotary=True, qk_norm="head")
RMS = Norm(kind="rms")
WINDOW = k.keys("sliding_window:attention.window=null")

LLAMA = Family(
    name="llama",
    prefix="model.",
    base=transformer(attention=ROTARY, norm=RMS),
    keys=(*sizes(), k.rotary(), *both_biases(), *k.keys("mlp_bias:mlp.bias=false pretraining_tp==1")),
    rows=rows(LLAMA_ROWS),
    heads=k.decoder_heads("Llama"),
    ignored=("*.rotary_emb.inv_freq",),
)
MISTRAL = LLAMA._replace(name="mistral", keys=(*sizes(), k.rotary(), *WINDOW), heads=k.decoder_heads("Mistral"))
QWEN2 = LLAMA._replace(
    name="qwen2",
    base=transformer(attention=Attention(num_heads=1, rotary=True, bias=True), norm=RMS),
    keys=(*sizes(), k.rotary(), QWEN_LAYERS),
    heads=k.decoder_heads("Qwen2"),
)
QWEN3 = LLAMA._replace(
    name="qwen3",
    base=transformer(attention=QK_NORM, norm=RMS),
    keys=(*sizes(head_dim=128), k.rotary(), QWEN_LAYERS, *both_biases(), QK_EPSILON),
    heads=k.decoder_heads("Qwen3"),
)

# Gemma: norms that store their scale less one, before and after each half, and embeddings scaled by sqrt(D).

GEMMA_ROWS = f"""{LLAMA_ROWS}
    norm layers.{{i}}.(input|post_attention)_layernorm             stack/attention_(norm|output_norm)
    norm layers.{{i}}.(pre_feedforward|post_feedforward)_layernorm stack/mlp_(norm|output_norm)
"""
# What the embeddings are scaled by follows from their width.
_SCALED = k.implied("stem.scale", lambda json: json["hidden_size"] ** 0.5)


def _gemma(*more: Group) -> Keys:
    hidden = "hidden_activation:mlp.activation=silu~gated"
    return *sizes(hidden, tied="true", head_dim=256), _SCALED, *both_biases(), *more


def _inverse_square(config: Transformer) -> dict[str, Any]:
    """What the scale of scores is the inverse root of; whole where it nearly is."""
    number = config.attention.scale**-2 if config.attention.scale else config.attention.head_dim or 256
    return {"query_pre_attn_scalar": round(number) if abs(number - round(number)) < 1e-6 * number else number}


_CAPPED = (
    Group(lambda json: {"attention.scale": json.get("query_pre_attn_scalar", 256) ** -0.5}, _inverse_square),
    *k.keys("attn_logit_softcapping:attention.softcap=null final_logit_softcapping:head.softcap=null"),
)
GEMMA = LLAMA._replace(
    name="gemma",
    base=transformer(attention=ROTARY, norm=Norm(kind="rms", offset=1.0)),
    keys=(
        *sizes("hidden_act:mlp.activation=silu~first", tied="true", head_dim=256),
        *(_SCALED, k.rotary(), *both_biases(), *k.keys("use_bidirectional_attention==null")),
    ),
    heads=k.decoder_heads("Gemma"),
)
GEMMA2 = LLAMA._replace(
    name="gemma2",
    base=transformer(attention=ROTARY, norm=Norm(kind="rms", offset=1.0, placement="both")),
    keys=_gemma(*_CAPPED, k.rotary(), k.layer_types(lambda json: k.every(2, json))),
    rows=rows(GEMMA_ROWS),
    heads=k.decoder_heads("Gemma2"),
)
GEMMA3 = GEMMA2._replace(
    name="gemma3_text",
    base=transformer(attention=QK_NORM, norm=Norm(kind="rms", offset=1.0, placement="both")),
    keys=_gemma(*(*_CAPPED, k.rotary_by_layer(6, 1e6, 1e4), QK_EPSILON), *k.keys("use_bidirectional_attention==false")),
    heads=k.decoder_heads("Gemma3", 3, "Gemma3Text"),
)


def _read_global(json: Json) -> Overrides:
    """Global layers have another width of heads, and may have fewer keys, which are their values."""
    same = bool(json.get("attention_k_eq_v", False))
    few = json.get("num_global_key_value_heads") if same else None
    usual = {"head_dim": json.get("global_head_dim", 512), "num_key_value_heads": few}
    one, *others = (json.get("per_layer_config") or {"": usual}).values()
    if any(each != one for each in others):
        raise ValueError("per_layer_config is not supported where global layers differ from each other")
    return {
        "attention.keys_as_values": same,
        "attention.head_dim": one.get("head_dim") or json["head_dim"],
        "attention.num_kv_heads": one.get("num_key_value_heads") or json["num_key_value_heads"],
    }


def _write_global(config: Transformer) -> dict[str, Any]:
    each = {str(i): layer.attention for i, layer in enumerate(k.layers(config)) if not layer.attention.window}
    sizes = {i: {"head_dim": a.head_dim, "num_key_value_heads": a.num_kv_heads} for i, a in each.items()}
    return {"attention_k_eq_v": any(a.keys_as_values for a in each.values()), "per_layer_config": sizes}


GEMMA4 = GEMMA3._replace(
    name="gemma4_text",
    base=transformer(
        attention=Attention(**{"num_heads": 1, "rotary": True, "qk_norm": "head", "value_norm": True, "scale": 1.0}),
        norm=Norm(kind="rms", placement="both"),
        block_scale=True,
    ),
    keys=_gemma(
        *(QK_EPSILON, k.rotary_by_layer(6, 1e6, 1e4, _read_global), Group(write=_write_global)),
        *k.keys("final_logit_softcapping:head.softcap=null hidden_size_per_layer_input==0 num_kv_shared_layers==0"),
        *k.keys("enable_moe_block==false use_bidirectional_attention==null"),
    ),
    rows=(*rows(GEMMA_ROWS), Row("layers.{i}.layer_scalar", ("stack/scale",))),
    heads=k.decoder_heads("Gemma4", 2, "Gemma4Text"),
)
