"""Families with recurrences, as data: Mamba-2, those of Qwen that have attention in every fourth layer, Falcon-H1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxmodel.interop.huggingface.decoders import LLAMA, ROTARY, both_biases, decoder_rows, qk_epsilon, sizes
from jaxmodel.interop.huggingface.experts import QWEN2_MOE, experts
from jaxmodel.interop.huggingface.keys import body, causal, classifier, decoder_heads, layers, patterned, rotary
from jaxmodel.interop.huggingface.kin import biases_by_head, but, by_head, without
from jaxmodel.interop.huggingface.rows import linear, norm, transformer
from jaxmodel.interop.huggingface.table import (
    FLAT,
    REQUIRED,
    TRANSPOSED,
    WHOLE,
    Family,
    Fixed,
    Form,
    Group,
    Json,
    Key,
    Overrides,
    Row,
    fused,
)
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import Attention, MoE, Norm, Pool, Recurrence

# A depthwise convolution: [channels, 1, kernel] on disk, [kernel, channels] with us.
CONV = fused(lambda x: x.T[:, None], lambda x, shape: x[:, 0].T)


def recurrence_rows(
    prefix: str,
    inputs: Mapping[str, tuple[str, ...]],
    conv: tuple[str, ...],
    form: Form | Callable[[Transformer], Form] = TRANSPOSED,
) -> tuple[Row, ...]:
    """A recurrence's tensors.

    Args:
      prefix: of their names.
      inputs: by the name of a projection of what enters, ours that lie in it.
      conv: ours, in the order that one convolution has their channels.
      form: of the projections' weights.
    """
    at = "stack/recurrence/"
    return (
        *(Row(f"{prefix}.{name}.weight", tuple(at + each for each in ours), form) for name, ours in inputs.items()),
        *(
            Row(f"{prefix}.{name}.bias", tuple(f"{at}{each}_bias" for each in ours), FLAT)
            for name, ours in inputs.items()
        ),
        Row(f"{prefix}.conv1d.weight", tuple(f"{at}{each}_conv" for each in conv), CONV),
        Row(f"{prefix}.conv1d.bias", tuple(f"{at}{each}_conv_bias" for each in conv)),
        Row(f"{prefix}.dt_bias", f"{at}step_shift"),
        Row(f"{prefix}.A_log", f"{at}decay"),
        Row(f"{prefix}.D", f"{at}skip"),
        Row(f"{prefix}.norm.weight", f"{at}scale", FLAT),
        *linear(f"{prefix}.out_proj", f"{at}output"),
    )


def _inner(config: Transformer) -> int:
    """Width of all heads of values together."""
    r = config.recurrence or MAMBA
    return r.num_heads * r.head_dim


def _read_expand(json: Json) -> Overrides:
    """Nothing new; where it contradicts the heads, transformers refuses it, too."""
    wide = json.get("expand", 2) * json["hidden_size"]
    heads, width = json.get("num_heads", 128), json.get("head_dim", 64)
    if wide != heads * width:
        raise ValueError(f"expand x hidden_size is {wide}, num_heads x head_dim is {heads * width}: {WHOLE}")
    return {}


def _read_limits(json: Json) -> Overrides:
    low, high = json.get("time_step_limit") or (0.0, math.inf)
    # What is infinite is an object in newer files.
    high = None if isinstance(high, dict) or high == math.inf else high
    return {"recurrence.step_min": low, "recurrence.step_max": high}


def _write_limits(config: Transformer) -> dict[str, Any]:
    r = config.recurrence or MAMBA
    high = {"__float__": "Infinity"} if r.step_max is None else r.step_max
    return {"time_step_limit": [r.step_min, high]}


MAMBA = Recurrence(num_heads=1, head_dim=1, skip=True, conv_bias=True)


def mamba_keys(names: str, state_dim: int, num_groups: int) -> tuple[Key | Group | Fixed, ...]:
    """Keys of heads, state, groups, kernel, chunk and biases, by their names in this order, and of time steps."""
    usual = {"num_heads": 128, "state_dim": state_dim, "num_groups": num_groups, "kernel": 4, "chunk": 256}
    usual |= {"conv_bias": True, "bias": False}
    each = zip(names.split(), usual.items(), strict=True)
    keys = (Key(name, f"recurrence.{field}", default) for name, (field, default) in each)
    return *keys, Group(_read_limits, _write_limits), Fixed("hidden_act", "silu")


def mamba_rows(prefix: str) -> tuple[Row, ...]:
    """A recurrence's tensors, as Mamba-2 has them."""
    inputs = ("gate", "value", "key", "query", "step")
    return recurrence_rows(prefix, {"in_proj": inputs}, ("value", "key", "query"))


MAMBA2 = Family(
    name="mamba2",
    prefix="backbone.",
    base=transformer(sublayers=("recurrence",), recurrence=MAMBA, norm=Norm(kind="rms")),
    keys=(
        Key("vocab_size", "vocab_size", REQUIRED),
        Key("hidden_size", "embed_dim", REQUIRED),
        Key("num_hidden_layers", "num_layers", REQUIRED),
        Key("head_dim", "recurrence.head_dim", 64),
        *mamba_keys("num_heads state_size n_groups conv_kernel chunk_size use_conv_bias use_bias", 128, 8),
        Key("layer_norm_epsilon", "norm.epsilon", 1e-5),
        Key("tie_word_embeddings", "tied", False),
        Group(_read_expand, lambda config: {"expand": _inner(config) // config.embed_dim}),
        Key("max_position_embeddings", "max_length", 1 << 20),  # nothing in it limits how long a text may be
    ),
    rows=(
        Row("embeddings.weight", "stem/tokens"),
        *norm("norm_f", "norm"),
        *norm("layers.{i}.norm", "stack/recurrence_norm"),
        *mamba_rows("layers.{i}.mixer"),
    ),
    heads={"Mamba2ForCausalLM": causal(), "Mamba2Model": body()},
)


# Qwen: the gated delta rule in most layers, attention with a gate of its own in the others.


_LAYERS = {"linear_attention": ("recurrence", "mlp"), "full_attention": ("attention", "mlp")}


def _read_layers(json: Json) -> Overrides:
    every, count = json.get("full_attention_interval", 4), json["num_hidden_layers"]
    usual = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    kinds = json.get("layer_types") or usual
    if unknown := {*kinds} - {*_LAYERS}:
        raise ValueError(f"layer_types: {unknown.pop()} is not supported: there are {', '.join(_LAYERS)}")
    short = [kind.removesuffix("_attention") for kind in kinds]
    return patterned(short, {name: {"sublayers": _LAYERS[f"{name}_attention"]} for name in short})


def _write_layers(config: Transformer) -> dict[str, Any]:
    names: dict[tuple[str, ...], str] = {sublayers: kind for kind, sublayers in _LAYERS.items()}
    return {"layer_types": [names.get(layer.sublayers) for layer in layers(config)]}


_DELTA = (
    Key("linear_num_value_heads", "recurrence.num_heads", 32),
    Key("linear_value_head_dim", "recurrence.head_dim", 128),
    Key("linear_num_key_heads", "recurrence.num_groups", 16),
    Key("linear_key_head_dim", "recurrence.state_dim", 128),
    Key("linear_conv_kernel_dim", "recurrence.kernel", 4),
    Group(_read_layers, _write_layers),
    *(rotary(fraction=0.25), both_biases(), qk_epsilon(), Fixed("hidden_act", "silu")),
)


def _qwen_rows(family: Family) -> tuple[Row, ...]:
    """Those of a family in the manner of Llama, but that queries have gates beside them."""
    assert isinstance(family.rows, tuple)
    both, name = ("stack/attention/query", "stack/attention/gate"), "layers.{i}.self_attn.q_proj"
    return (
        *but(family.rows, "stack/attention/query"),
        *norm("layers.{i}.input_layernorm", "stack/recurrence_norm"),
        Row(f"{name}.weight", both, by_head),
        Row(f"{name}.bias", tuple(f"{path}_bias" for path in both), biases_by_head),
    )


_CONV_ORDER = ("query", "key", "value")
_SEPARATE = recurrence_rows(
    "layers.{i}.linear_attn",
    {"in_proj_qkv": _CONV_ORDER, "in_proj_z": ("gate",), "in_proj_b": ("strength",), "in_proj_a": ("step",)},
    _CONV_ORDER,
)
_BASE = {
    "attention": Attention(num_heads=1, rotary=True, qk_norm="head", gate=True),
    "recurrence": Recurrence(num_heads=1, head_dim=1, kind="delta", norm="head", norm_first=True),
    "norm": Norm(kind="rms", offset=1.0),
}
_MOE = MoE(num_experts=2, dim=1, experts_per_token=1, shared_dim=1, shared_gate=True)
_MOE_KEYS = (
    *(*without(sizes(head_dim=256), "intermediate_size", "hidden_act"), *_DELTA),
    Key("shared_expert_intermediate_size", "moe.shared_dim", 512),
)
QWEN3_5 = LLAMA._replace(
    name="qwen3_5_text",
    base=transformer(**_BASE),
    keys=(*sizes(head_dim=256), *_DELTA),
    rows=(*_qwen_rows(LLAMA), *_SEPARATE),
    heads={
        "Qwen3_5ForCausalLM": causal(),
        "Qwen3_5TextModel": body(),
        "Qwen3_5TextForSequenceClassification": classifier("score", Pool("last"), bias=False),
    },
    ignored=("mtp.*",),
)
QWEN3_5_MOE = QWEN3_5._replace(
    name="qwen3_5_moe_text",
    base=transformer(**_BASE, moe=_MOE),
    keys=(*_MOE_KEYS, *experts(256, 8, "moe_intermediate_size")),
    rows=(*_qwen_rows(QWEN2_MOE), *_SEPARATE),
    heads={"Qwen3_5MoeForCausalLM": causal(), "Qwen3_5MoeTextModel": body()},
)
QWEN3_NEXT = QWEN3_5_MOE._replace(
    name="qwen3_next",
    keys=(
        *(*_MOE_KEYS, *experts(512, 10, "moe_intermediate_size"), Key("norm_topk_prob", "moe.normalize", True)),
        *(Fixed("decoder_sparse_step", 1), Fixed("mlp_only_layers", [])),
    ),
    rows=(
        *_qwen_rows(QWEN2_MOE),
        *recurrence_rows(
            "layers.{i}.linear_attn",
            {"in_proj_qkvz": (*_CONV_ORDER, "gate"), "in_proj_ba": ("strength", "step")},
            _CONV_ORDER,
            lambda config: fused(lambda x: x.T, lambda x, shape: x.T, groups=(config.recurrence or MAMBA).groups),
        ),
    ),
    heads=decoder_heads("Qwen3Next"),
)

# Falcon-H1: both side by side in every layer, and numbers that scale what goes in and out of each part.


def _read_scales(json: Json) -> Overrides:
    """What enters a part without biases may be scaled as well behind its projections."""
    enters, into = json.get("attention_in_multiplier", 1.0), json.get("ssm_in_multiplier", 1.0)
    for key, scale in (("attention_bias", enters), ("mamba_proj_bias", into)):
        if json.get(key) and scale != 1:
            raise ValueError(f"{key} beside a scale of what enters, {scale}, is not supported")
    gate, down = json.get("mlp_multipliers") or (1.0, 1.0)
    return {
        "attention.key_scale": json.get("key_multiplier", 1.0) * enters**2,
        "attention.output_scale": json.get("attention_out_multiplier", 1.0) * enters,
        "recurrence.scales": tuple(into * each for each in json.get("ssm_multipliers") or (1.0,) * 5),
        "recurrence.output_scale": json.get("ssm_out_multiplier", 1.0),
        "mlp.gate_scale": gate,
        "mlp.output_scale": down,
    }


def _write_scales(config: Transformer) -> dict[str, Any]:
    a, r, mlp = config.attention, config.recurrence or MAMBA, config.mlp
    return {
        "key_multiplier": a.key_scale or 1.0,
        "attention_out_multiplier": a.output_scale or 1.0,
        "ssm_multipliers": list(r.scales) or [1.0] * 5,
        "ssm_out_multiplier": r.output_scale or 1.0,
        "mlp_multipliers": [mlp.gate_scale or 1.0, mlp.output_scale or 1.0],
    }


def _read_inner(json: Json) -> Overrides:
    if bool(json.get("projectors_bias")) != bool(json.get("mamba_proj_bias")):
        raise ValueError("projectors_bias and mamba_proj_bias differ, which is not supported")
    inner = json.get("mamba_d_ssm", 1024) or json.get("mamba_expand", 2) * json["hidden_size"]
    heads, width = json.get("mamba_n_heads", 128), json.get("mamba_d_head", "auto")
    return {
        "recurrence.head_dim": inner // heads if width == "auto" else width,
        "recurrence.norm": "group" if json.get("mamba_rms_norm") else "none",
    }


def _write_inner(config: Transformer) -> dict[str, Any]:
    r = config.recurrence or MAMBA
    said = {"mamba_d_head": r.head_dim, "mamba_d_ssm": _inner(config), "projectors_bias": r.bias}
    return said | {"mamba_rms_norm": r.norm == "group"}


_FALCON_NORMS = {"hybrid_norm": "input_layernorm", "mlp_norm": "pre_ff_layernorm"}
FALCON_H1 = LLAMA._replace(
    name="falcon_h1",
    base=transformer(sublayers=("hybrid", "mlp"), attention=ROTARY, recurrence=MAMBA, norm=Norm(kind="rms")),
    keys=(
        *(*without(sizes(), "rms_norm_eps"), rotary(), both_biases()),
        Key("rms_norm_eps", "norm.epsilon", 1e-5),
        Key("mlp_bias", "mlp.bias", False),
        *mamba_keys(
            "mamba_n_heads mamba_d_state mamba_n_groups mamba_d_conv mamba_chunk_size mamba_conv_bias mamba_proj_bias",
            *(256, 1),
        ),
        Key("mamba_norm_before_gate", "recurrence.norm_first", True),
        Key("embedding_multiplier", "stem.scale", 1.0),
        Key("lm_head_multiplier", "head.scale", 1.0),
        *(Group(_read_inner, _write_inner), Group(_read_scales, _write_scales)),
    ),
    rows=(
        *(
            row._replace(name=row.name.replace(".mlp.", ".feed_forward."))
            for row in but(decoder_rows(**_FALCON_NORMS), "norm/scale")
        ),
        *norm("final_layernorm", "norm"),
        *mamba_rows("layers.{i}.mamba"),
    ),
    heads={"FalconH1ForCausalLM": causal(), "FalconH1Model": body()},
)

RECURRENT = (MAMBA2, QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT, FALCON_H1)
