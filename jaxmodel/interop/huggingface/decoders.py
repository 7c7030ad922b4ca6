"""Families of decoders, as data: what they have in common, their keys and their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxmodel.interop.huggingface.keys import (
    ACTIVATIONS,
    GATED,
    body,
    causal,
    classifier,
    decoder_heads,
    layer_types,
    layers,
    named,
    rotary,
    rotary_by_layer,
)
from jaxmodel.interop.huggingface.rows import LAYER_NORM, heads_of, linear, norm, transformer
from jaxmodel.interop.huggingface.table import (
    COLUMNS,
    COPY,
    FLAT,
    REQUIRED,
    Family,
    Fixed,
    Group,
    Json,
    Key,
    Overrides,
    Row,
)
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import MLP, Attention, Norm, Pool, Stem

# Decoders in the manner of Llama


def decoder_rows(**norms: str) -> tuple[Row, ...]:
    """Llama's names; `norms` are those of a layer's norms, by ours."""
    norms = norms or {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    attention, mlp = "layers.{i}.self_attn", "layers.{i}.mlp"
    return (
        Row("embed_tokens.weight", "stem/tokens"),
        *norm("norm", "norm"),
        *heads_of(attention, "q_proj", "k_proj", "v_proj"),
        *linear(f"{attention}.o_proj", "stack/attention/output"),
        Row(f"{attention}.q_norm.weight", "stack/attention/query_norm"),
        Row(f"{attention}.k_norm.weight", "stack/attention/key_norm"),
        *(row for name in ("gate", "up", "down") for row in linear(f"{mlp}.{name}_proj", f"stack/mlp/{name}")),
        *(row for ours, name in norms.items() for row in norm(f"layers.{{i}}.{name}", f"stack/{ours}")),
    )


def sizes(
    tied: bool = False, activation: str = "hidden_act", head_dim: Any = None, gates: Mapping[str, str] = GATED
) -> tuple[Key | Group, ...]:
    """The keys that nearly every decoder has.

    Args:
      tied: whether the head is the embedding table where config.json does not say.
      activation: the key of the gate's non-linearity.
      head_dim: its width where config.json does not say.
      gates: what non-linearities are called.
    """
    return (
        Key("vocab_size", "vocab_size", REQUIRED),
        Key("hidden_size", "embed_dim", REQUIRED),
        Key("num_hidden_layers", "num_layers", REQUIRED),
        Key("num_attention_heads", "attention.num_heads", REQUIRED),
        Group(_read_widths(head_dim), _write_widths),
        Key("intermediate_size", "mlp.dim", REQUIRED),
        Key(activation, "mlp.activation", "silu", *named(gates)),
        Key("rms_norm_eps", "norm.epsilon", 1e-6),
        Key("tie_word_embeddings", "tied", tied),
    )


def _read_widths(head_dim: int | None) -> Any:
    def read(json: Json) -> Overrides:
        heads = json["num_attention_heads"]
        return {
            "attention.num_kv_heads": json.get("num_key_value_heads") or heads,
            "attention.head_dim": json.get("head_dim", head_dim) or json["hidden_size"] // heads,
        }

    return read


def _write_widths(config: Transformer) -> dict[str, Any]:
    a = config.attention
    return {
        "num_key_value_heads": a.num_kv_heads or a.num_heads,
        "head_dim": a.head_dim or config.embed_dim // a.num_heads,
    }


def both_biases(default: bool = False) -> Group:
    """`attention_bias`: of all four projections, or of none."""

    def read(json: Json) -> Overrides:
        bias = bool(json.get("attention_bias", default))
        return {"attention.bias": bias, "attention.output_bias": bias}

    return Group(read, lambda config: {"attention_bias": config.attention.bias})


def _sliding(json: Json) -> list[str]:
    """Qwen's layers where `layer_types` is not there: those from `max_window_layers` on slide."""
    first = json.get("max_window_layers", 28) if json.get("use_sliding_window") else json["num_hidden_layers"]
    return ["sliding_attention" if i >= first else "full_attention" for i in range(json["num_hidden_layers"])]


def qwen_layers(types: Callable[[Json], list[str]] = _sliding) -> Group:
    """As `layer_types`, with a switch that turns windows off."""
    plain = layer_types(types)

    def read(json: Json) -> Overrides:
        used = json.get("use_sliding_window")
        return plain.read(json if used else {**json, "layer_types": ["full_attention"] * json["num_hidden_layers"]})

    def write(config: Transformer) -> dict[str, Any]:
        said = plain.write(config)
        return said | {"use_sliding_window": said["sliding_window"] is not None}

    return Group(read, write)


def qk_epsilon() -> Group:
    """Queries and keys are normalised as everything is."""
    return Group(lambda json: {"attention.qk_norm_epsilon": json.get("rms_norm_eps", 1e-6)}, lambda config: {})


ROTARY = Attention(num_heads=1, rotary=True)
RMS = Norm(kind="rms")

LLAMA = Family(
    name="llama",
    prefix="model.",
    base=transformer(attention=ROTARY, norm=RMS),
    keys=(*sizes(), rotary(), both_biases(), Key("mlp_bias", "mlp.bias", False), Fixed("pretraining_tp", 1)),
    rows=decoder_rows(),
    heads=decoder_heads("Llama"),
    ignored=("*.rotary_emb.inv_freq",),
)

MISTRAL = LLAMA._replace(
    name="mistral",
    keys=(*sizes(), rotary(), Key("sliding_window", "attention.window", None)),
    heads=decoder_heads("Mistral"),
)

QWEN2 = LLAMA._replace(
    name="qwen2",
    base=transformer(attention=Attention(num_heads=1, rotary=True, bias=True), norm=RMS),
    keys=(*sizes(), rotary(), qwen_layers()),
    heads=decoder_heads("Qwen2"),
)

QWEN3 = LLAMA._replace(
    name="qwen3",
    base=transformer(attention=Attention(num_heads=1, rotary=True, qk_norm="head"), norm=RMS),
    keys=(*sizes(head_dim=128), rotary(), qwen_layers(), both_biases(), qk_epsilon()),
    heads=decoder_heads("Qwen3"),
)

# Gemma: norms that store their scale less one, before and after each half, and embeddings scaled by sqrt(D).
GEMMA_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_output_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}


# What the embeddings are scaled by follows from their width.
_SCALED = Group(lambda json: {"stem.scale": json["hidden_size"] ** 0.5}, lambda config: {})


def _gemma() -> tuple[Key | Fixed | Group, ...]:
    return (
        *sizes(tied=True, activation="hidden_activation", head_dim=256),
        _SCALED,
        Group(
            lambda json: {"attention.scale": json.get("query_pre_attn_scalar", 256) ** -0.5},
            lambda config: {"query_pre_attn_scalar": _inverse_square(config.attention)},
        ),
        Key("attn_logit_softcapping", "attention.softcap", None),
        Key("final_logit_softcapping", "head.softcap", None),
        both_biases(),
    )


def _inverse_square(attention: Attention) -> float:
    """What a scale of scores is the inverse root of; whole where it nearly is."""
    number = attention.scale**-2 if attention.scale else attention.head_dim or 256
    return round(number) if abs(number - round(number)) < 1e-6 * number else number


GEMMA = LLAMA._replace(
    name="gemma",
    base=transformer(attention=ROTARY, norm=Norm(kind="rms", offset=1.0)),
    keys=(
        *sizes(tied=True, head_dim=256, gates={**GATED, "gelu": "geglu"}),  # the first were said to be exact
        _SCALED,
        rotary(),
        both_biases(),
        Fixed("use_bidirectional_attention", None),
    ),
    heads=decoder_heads("Gemma"),
)

GEMMA2 = LLAMA._replace(
    name="gemma2",
    base=transformer(attention=ROTARY, norm=Norm(kind="rms", offset=1.0, placement="both")),
    keys=(
        *_gemma(),
        rotary(),
        layer_types(lambda json: [("sliding", "full")[i % 2] + "_attention" for i in range(json["num_hidden_layers"])]),
    ),
    rows=decoder_rows(**GEMMA_NORMS),
    heads=decoder_heads("Gemma2"),
)

GEMMA3 = GEMMA2._replace(
    name="gemma3_text",
    base=transformer(
        attention=Attention(num_heads=1, rotary=True, qk_norm="head"),
        norm=Norm(kind="rms", offset=1.0, placement="both"),
    ),
    keys=(*_gemma(), rotary_by_layer(6, 1e6, 1e4), qk_epsilon(), Fixed("use_bidirectional_attention", False)),
    heads={
        "Gemma3ForCausalLM": causal(),
        "Gemma3TextModel": body(),
        "Gemma3TextForSequenceClassification": classifier("score", Pool("last"), bias=False),
    },
)


def _gemma4_layers() -> Group:
    """As Gemma 3's; global layers have another width of heads, and may have fewer keys, which are their values."""

    def of_global(json: Json) -> Overrides:
        same = bool(json.get("attention_k_eq_v", False))
        few = json.get("num_global_key_value_heads") if same else None
        usual = {"head_dim": json.get("global_head_dim", 512), "num_key_value_heads": few}
        each = list((json.get("per_layer_config") or {"": usual}).values())
        if any(one != each[0] for one in each):
            raise ValueError("per_layer_config is not supported where global layers differ from each other")
        return {
            "attention.keys_as_values": same,
            "attention.head_dim": each[0].get("head_dim") or json["head_dim"],
            "attention.num_kv_heads": each[0].get("num_key_value_heads") or json["num_key_value_heads"],
        }

    plain = rotary_by_layer(6, 1e6, 1e4, of_global)

    def write(config: Transformer) -> dict[str, Any]:
        attentions = {str(i): layer.attention for i, layer in enumerate(layers(config))}
        return {
            **plain.write(config),
            "attention_k_eq_v": any(a.keys_as_values for a in attentions.values()),
            "per_layer_config": {
                i: {"head_dim": a.head_dim, "num_key_value_heads": a.num_kv_heads}
                for i, a in attentions.items()
                if a.window is None
            },
        }

    return Group(plain.read, write)


GEMMA4 = GEMMA3._replace(
    name="gemma4_text",
    base=transformer(
        attention=Attention(**{"num_heads": 1, "rotary": True, "qk_norm": "head", "value_norm": True, "scale": 1.0}),
        norm=Norm(kind="rms", placement="both"),
        block_scale=True,
    ),
    keys=(
        *(*sizes(tied=True, activation="hidden_activation", head_dim=256), _SCALED, both_biases(), qk_epsilon()),
        *(Key("final_logit_softcapping", "head.softcap", None), _gemma4_layers()),
        *(Fixed("hidden_size_per_layer_input", 0), Fixed("num_kv_shared_layers", 0)),
        *(Fixed("enable_moe_block", False), Fixed("use_bidirectional_attention", None)),
    ),
    rows=(*decoder_rows(**GEMMA_NORMS), Row("layers.{i}.layer_scalar", "stack/scale")),
    heads={"Gemma4ForCausalLM": causal(), "Gemma4TextModel": body()},
)

# GPT-2: one projection to queries, keys and values, stored [in, out].

_QKV = tuple(f"stack/attention/{name}" for name in ("query", "key", "value"))

GPT2 = Family(
    name="gpt2",
    prefix="transformer.",
    base=transformer(
        attention=Attention(num_heads=1, bias=True, output_bias=True),
        mlp=MLP(dim=1, bias=True),
        norm=LAYER_NORM,
        stem=Stem(positions="learned"),
    ),
    keys=(
        Key("vocab_size", "vocab_size", 50257),
        Key("n_embd", "embed_dim", 768),
        Key("n_layer", "num_layers", 12),
        Key("n_head", "attention.num_heads", 12),
        Key("n_positions", "max_length", 1024),
        Group(
            lambda json: {"mlp.dim": json.get("n_inner") or 4 * json.get("n_embd", 768)},
            lambda config: {"n_inner": config.mlp.dim},
        ),
        Key("activation_function", "mlp.activation", "gelu_new", *named(ACTIVATIONS)),
        Key("layer_norm_epsilon", "norm.epsilon", 1e-5),
        Key("tie_word_embeddings", "tied", True),
        Fixed("scale_attn_weights", True),
        Fixed("scale_attn_by_inverse_layer_idx", False),
        Fixed("add_cross_attention", False),
    ),
    rows=(
        Row("wte.weight", "stem/tokens"),
        Row("wpe.weight", "stem/positions"),
        *norm("h.{i}.ln_1", "stack/attention_norm"),
        Row("h.{i}.attn.c_attn.weight", _QKV, COLUMNS),
        Row("h.{i}.attn.c_attn.bias", tuple(f"{path}_bias" for path in _QKV), FLAT),
        *linear("h.{i}.attn.c_proj", "stack/attention/output", COPY),
        *norm("h.{i}.ln_2", "stack/mlp_norm"),
        *linear("h.{i}.mlp.c_fc", "stack/mlp/up", COPY),
        *linear("h.{i}.mlp.c_proj", "stack/mlp/down", COPY),
        *norm("ln_f", "norm"),
    ),
    heads={
        "GPT2LMHeadModel": causal(),
        "GPT2Model": body(),
        "GPT2ForSequenceClassification": classifier("score", Pool("last"), bias=False),
        "GPT2ForTokenClassification": classifier("classifier", None),
    },
    ignored=("*.attn.bias", "*.attn.masked_bias"),
)
