"""Families with recurrences, as data: Mamba-2, those of Qwen that have attention in every fourth layer, Falcon-H1."""

import math
from typing import Any

from jaxmodel.interop.huggingface import experts, layers
from jaxmodel.interop.huggingface import keys as k
from jaxmodel.interop.huggingface.decoders import BIASES, LLAMA_ROWS, QK_EPSILON, SIZES, decoder, head_dim
from jaxmodel.interop.huggingface.rows import FLAT, TRANSPOSED, in_turn, rows
from jaxmodel.interop.huggingface.table import WHOLE, Group, Json, Overrides, Row
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import Recurrence

MAMBA = Recurrence(num_heads=1, head_dim=1)
_SSD = "recurrence(num_heads=1 head_dim=1 skip conv_bias)"
STATE_ROWS = """
    copy   layers.{i}.mixer.(dt_bias|A_log|D) stack/recurrence/(step_shift|decay|skip)
    flat   layers.{i}.mixer.norm.weight       stack/recurrence/scale
    linear layers.{i}.mixer.out_proj          stack/recurrence/output
"""
MAMBA_ROWS = f"""{STATE_ROWS}
    linear    layers.{{i}}.mixer.in_proj stack/recurrence/gate+value+key+query+step
    depthwise layers.{{i}}.mixer.conv1d stack/recurrence/value_conv+key_conv+query_conv
"""


def _inner(config: Transformer) -> int:
    """Width of all heads of values together."""
    r = config.recurrence or MAMBA
    return r.num_heads * r.head_dim


def _read_expand(json: Json) -> Overrides:
    """Nothing new; where it contradicts the heads, transformers refuses it, too."""
    wide, inner = json.get("expand", 2) * json["hidden_size"], json.get("num_heads", 128) * json.get("head_dim", 64)
    if wide != inner:
        raise ValueError(f"expand x hidden_size is {wide}, num_heads x head_dim is {inner}: {WHOLE}")
    return {}


def _read_limits(json: Json) -> Overrides:
    low, high = json.get("time_step_limit") or (0.0, math.inf)
    # What is infinite is an object in newer files.
    endless = isinstance(high, dict) or high == math.inf
    return {"recurrence.step_min": low, "recurrence.step_max": None if endless else high}


def _write_limits(config: Transformer) -> dict[str, Any]:
    r = config.recurrence or MAMBA
    return {"time_step_limit": [r.step_min, {"__float__": "Infinity"} if r.step_max is None else r.step_max]}


_LIMITS = Group(_read_limits, _write_limits)
MAMBA2 = k.family(
    f"mamba2 sublayers=recurrence {_SSD}",
    # Nothing in it limits how long a text may be.
    """recurrence( num_heads=128 head_dim=64 state_size:state_dim=128 n_groups:num_groups=8 conv_kernel:kernel=4
    chunk_size:chunk=256 use_conv_bias:conv_bias=true use_bias:bias=false )
    vocab_size hidden_size:embed_dim num_hidden_layers:num_layers layer_norm_epsilon:norm.epsilon=1e-5
    tie_word_embeddings:tied=false hidden_act==silu max_position_embeddings:max_length=1048576""",
    *(Group(_read_expand, lambda config: {"expand": _inner(config) // config.embed_dim}), _LIMITS),
    prefix="backbone.",
    text=f"""{MAMBA_ROWS}
        copy embeddings.weight stem/tokens
        norm norm_f            norm
        norm layers.{{i}}.norm stack/recurrence_norm
    """,
    heads=k.decoder_heads("Mamba2", 2),
)


# Qwen: the gated delta rule in most layers, attention with a gate of its own in the others.

_LAYERS = layers.by_layer(
    {
        "linear_attention": ("linear", lambda json: {"sublayers": ("recurrence", "mlp")}),
        "full_attention": ("full", lambda json: {"sublayers": ("attention", "mlp")}),
    },
    lambda json: layers.every(json.get("full_attention_interval", 4), json, others="linear_attention"),
    lambda layer: "full_attention" if layer.has("attention") else "linear_attention",
)
_DELTA = k.keys(
    *(_LAYERS, layers.rotary(fraction=0.25), head_dim(256)),
    f"""recurrence( linear_num_value_heads:num_heads=32 linear_num_key_heads:num_groups=16
    linear_conv_kernel_dim:kernel=4 linear_(value|key)_head_dim:(head_dim|state_dim)=128 )
    hidden_act==silu {BIASES} {QK_EPSILON}""",
)


def _qwen_rows(inputs: str, more: str = "") -> tuple[Row, ...]:
    """A decoder's rows and more, but that its queries have gates beside them, and those of recurrences."""
    text = f"""{LLAMA_ROWS}{STATE_ROWS.replace("mixer", "linear_attn")}{more}
        norm      layers.{{i}}.input_layernorm    stack/recurrence_norm
        by_head   layers.{{i}}.self_attn.q_proj   stack/attention/query+gate
        depthwise layers.{{i}}.linear_attn.conv1d stack/recurrence/query_conv+key_conv+value_conv
        {inputs}
    """
    by_group = in_turn(TRANSPOSED, lambda config: (config.recurrence or MAMBA).groups)
    return rows(text, by_group=(by_group, FLAT))


_SEPARATE = "linear layers.{i}.linear_attn.in_proj_(qkv|z|b|a) stack/recurrence/(query+key+value|gate|strength|step)"
_TOGETHER = "by_group layers.{i}.linear_attn.in_proj_(qkvz|ba) stack/recurrence/(query+key+value+gate|strength+step)"
_BASE = """attention(qk_norm=head gate) recurrence(num_heads=1 head_dim=1 kind=delta norm=head norm_first)
    norm.offset=1"""
QWEN3_5 = decoder(
    *(f"qwen3_5_text {_BASE}", k.decoder_heads("Qwen3_5", 3, "Qwen3_5Text"), _DELTA),
    **{"rows": _qwen_rows(_SEPARATE), "ignored": ("mtp.*",)},
)
_SHARED = k.keys(
    *(k.without(SIZES, "intermediate_size", "hidden_act"), _DELTA), "shared_expert_intermediate_size:moe.shared_dim=512"
)
QWEN3_5_MOE = decoder(
    *(f"qwen3_5_moe_text {_BASE} {experts.SHARED}", k.decoder_heads("Qwen3_5Moe", 2, "Qwen3_5MoeText")),
    keys=k.keys(_SHARED, experts.experts(256, 8, "moe_intermediate_size")),
    rows=_qwen_rows(_SEPARATE, experts.SHARED_ROWS),
    ignored=("mtp.*",),
)
QWEN3_NEXT = QWEN3_5_MOE._replace(
    name="qwen3_next",
    keys=k.keys(
        *(_SHARED, experts.experts(512, 10, "moe_intermediate_size")),
        "norm_topk_prob:moe.normalize=true decoder_sparse_step==1 mlp_only_layers==[]",
    ),
    rows=_qwen_rows(_TOGETHER, experts.SHARED_ROWS),
    heads=k.decoder_heads("Qwen3Next"),
)

# Falcon-H1: both side by side in every layer, and numbers that scale what goes in and out of each part.


def _read_falcon(json: Json) -> Overrides:
    """Widths, and scales: what enters a part without biases may be scaled as well behind its projections."""
    if bool(json.get("projectors_bias")) != bool(json.get("mamba_proj_bias")):
        raise ValueError("projectors_bias and mamba_proj_bias differ, which is not supported")
    enters, into = json.get("attention_in_multiplier", 1.0), json.get("ssm_in_multiplier", 1.0)
    for key, scale in (("attention_bias", enters), ("mamba_proj_bias", into)):
        if json.get(key) and scale != 1:
            raise ValueError(f"{key} beside a scale of what enters, {scale}, is not supported")
    inner = json.get("mamba_d_ssm", 1024) or json.get("mamba_expand", 2) * json["hidden_size"]
    width, (gate, down) = json.get("mamba_d_head", "auto"), json.get("mlp_multipliers") or (1.0, 1.0)
    return {
        "recurrence.head_dim": inner // json.get("mamba_n_heads", 128) if width == "auto" else width,
        "recurrence.scales": tuple(into * each for each in json.get("ssm_multipliers") or (1.0,) * 5),
        "attention.key_scale": json.get("key_multiplier", 1.0) * enters**2,
        "attention.output_scale": json.get("attention_out_multiplier", 1.0) * enters,
        **{"mlp.gate_scale": gate, "mlp.output_scale": down},
    }


def _write_falcon(config: Transformer) -> dict[str, Any]:
    r, mlp = config.recurrence or MAMBA, config.mlp
    return {
        **{"mamba_d_head": r.head_dim, "mamba_d_ssm": _inner(config), "projectors_bias": r.bias},
        "ssm_multipliers": list(r.scales) or [1.0] * 5,
        "mlp_multipliers": [mlp.gate_scale or 1.0, mlp.output_scale or 1.0],
    }


FALCON_H1 = decoder(
    *(f"falcon_h1 sublayers=hybrid,mlp {_SSD}", k.decoder_heads("FalconH1", 2), _LIMITS),
    f"""{experts.EPSILON} {BIASES} mlp_bias:mlp.bias=false hidden_act==silu key_multiplier:attention.key_scale=1.0
    recurrence( mamba_n_heads:num_heads=128 mamba_d_state:state_dim=256 mamba_n_groups:num_groups=1
    mamba_d_conv:kernel=4 mamba_chunk_size:chunk=256 mamba_norm_before_gate:norm_first=true mamba_proj_bias:bias=false
    mamba_conv_bias:conv_bias=true mamba_rms_norm:norm=false~false>none,true>group ssm_out_multiplier:output_scale=1.0 )
    attention_out_multiplier:attention.output_scale=1.0 embedding_multiplier:stem.scale=1.0
    lm_head_multiplier:head.scale=1.0""",
    Group(_read_falcon, _write_falcon),  # what it reads lies over the keys before it
    rows=rows(f"""{LLAMA_ROWS.replace(".mlp.", ".feed_forward.")}{MAMBA_ROWS.replace("mixer", "mamba")}
        norm final_layernorm                      norm
        norm layers.{{i}}.(input|pre_ff)_layernorm stack/(hybrid|mlp)_norm
    """),
)
