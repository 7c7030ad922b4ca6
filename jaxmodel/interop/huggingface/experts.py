"""Families of decoders whose MLPs are mixtures of experts, as data."""

from __future__ import annotations

from jaxmodel.interop.huggingface import decoders
from jaxmodel.interop.huggingface import keys as k
from jaxmodel.interop.huggingface.decoders import LLAMA, QK_EPSILON, QK_NORM, ROTARY, WINDOW, both_biases, sizes
from jaxmodel.interop.huggingface.rows import COPY, in_turn, rows, transformer
from jaxmodel.interop.huggingface.table import Group, Json, Overrides
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import Attention, MoE, Norm

RMS = Norm(kind="rms", epsilon=1e-5)
MOE = MoE(num_experts=2, dim=1, experts_per_token=1)
SHARED = MoE(num_experts=2, dim=1, experts_per_token=1, shared_dim=1, shared_gate=True)
EPSILON = "rms_norm_eps:norm.epsilon=1e-5"
EXPERT_ROWS = f"""{decoders.LLAMA_ROWS}
    transposed layers.{{i}}.mlp.gate.weight                              stack/moe/router
    transposed layers.{{i}}.mlp.experts.{{e}}.(gate|up|down)_proj.weight stack/moe/(gate|up|down)
"""
SHARED_ROWS = f"""{EXPERT_ROWS}
    transposed layers.{{i}}.mlp.shared_expert.(gate|up|down)_proj.weight stack/moe/shared/(gate|up|down)
    transposed layers.{{i}}.mlp.shared_expert_gate.weight                stack/moe/shared_gate
"""


def experts(count: int, top: int, dim: str = "intermediate_size", act: str = "hidden_act:moe.activation=silu~gated"):
    """The keys of a mixture.

    Args:
      count: experts where config.json does not say, under either of two names.
      top: those a token goes to, where it does not say.
      dim: the key of an expert's width.
      act: the key of its non-linearity.
    """

    def read(json: Json) -> Overrides:
        return {"moe.num_experts": json.get("num_local_experts", json.get("num_experts", count))}

    def write(config: Transformer) -> dict[str, int]:
        return dict.fromkeys(("num_experts", "num_local_experts"), config.moe.num_experts if config.moe else 0)

    return Group(read, write), *k.keys(f"num_experts_per_tok:moe.experts_per_token={top} {dim}:moe.dim {act}")


# A window of all layers, with a switch that turns it off.
_WINDOW = Group(
    lambda json: {"attention.window": json.get("sliding_window", 4096)},
    lambda config: {"sliding_window": config.attention.window},
)
# Experts in every layer, and how their probabilities come to be.
EVERYWHERE = k.keys("norm_topk_prob:moe.normalize=false decoder_sparse_step==1 mlp_only_layers==[]")
QWEN3_MOE = LLAMA._replace(
    name="qwen3_moe",
    base=transformer(attention=QK_NORM, norm=RMS, moe=MOE),
    keys=(
        *(*sizes(), *experts(128, 8, "moe_intermediate_size"), *EVERYWHERE),
        *(k.rotary(), *both_biases(), QK_EPSILON, k.switched(_WINDOW, "sliding_window")),
    ),
    rows=rows(EXPERT_ROWS),
    heads=k.decoder_heads("Qwen3Moe"),
)
MIXTRAL = LLAMA._replace(
    name="mixtral",
    base=transformer(attention=ROTARY, norm=RMS, moe=MOE),
    keys=(*sizes(epsilon=EPSILON), *experts(8, 2), k.rotary(theta=1e6), *WINDOW),
    rows=rows(f"""{decoders.LLAMA_ROWS}
        transposed layers.{{i}}.block_sparse_moe.gate.weight                  stack/moe/router
        transposed layers.{{i}}.block_sparse_moe.experts.{{e}}.w(1|3|2).weight stack/moe/(gate|up|down)
    """),
    heads=k.decoder_heads("Mixtral"),
)
OLMOE = LLAMA._replace(
    name="olmoe",
    base=transformer(attention=Attention(num_heads=1, rotary=True, qk_norm="all"), norm=RMS, moe=MOE),
    keys=(
        *(*sizes(epsilon=EPSILON), *experts(64, 8), k.rotary(), *both_biases(), QK_EPSILON),
        *k.keys("norm_topk_prob:moe.normalize=false clip_qkv==null"),
    ),
    rows=rows(EXPERT_ROWS),
    heads=k.decoder_heads("Olmoe", 2),
)


def _every_other(json: Json) -> list[str]:
    """Qwen2-MoE's layers where `layer_types` is not there: every other one slides, up to `max_window_layers`."""
    last = json.get("max_window_layers", 28) if json.get("use_sliding_window") else 0
    count = json["num_hidden_layers"]
    return ["full_attention" if i % 2 or i >= last else "sliding_attention" for i in range(count)]


QWEN2_MOE = LLAMA._replace(
    name="qwen2_moe",
    base=transformer(attention=Attention(num_heads=1, rotary=True, bias=True), norm=RMS, moe=SHARED),
    keys=(
        *(*sizes(), *experts(60, 4, "moe_intermediate_size"), *EVERYWHERE),
        *(k.rotary(), k.switched(k.layer_types(_every_other), "layer_types")),
        *k.keys("qkv_bias:attention.bias=true shared_expert_intermediate_size:moe.shared_dim"),
    ),
    rows=rows(SHARED_ROWS),
    heads=k.decoder_heads("Qwen2Moe"),
)


_YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
GPT_OSS = LLAMA._replace(
    name="gpt_oss",
    base=transformer(
        attention=Attention(num_heads=1, rotary=True, sinks=True),
        norm=RMS,
        moe=MoE(**{"num_experts": 2, "dim": 1, "activation": "quick_geglu", "bias": True, "up_offset": 1.0}),
    ),
    keys=(
        *sizes("hidden_act==silu", EPSILON, head_dim=64),
        *(*experts(128, 4, act="swiglu_limit:moe.limit=7.0"), *k.keys("swiglu_alpha==1.702")),
        k.rotary({**_YARN, "original_max_position_embeddings": 4096}, theta=1.5e5),
        *(*both_biases("true"), k.layer_types(lambda json: k.every(2, json), usual=128)),
    ),
    rows=rows(
        f"""{decoders.LLAMA_ROWS}
            copy   layers.{{i}}.self_attn.sinks             stack/attention/sinks
            linear layers.{{i}}.mlp.router                  stack/moe/router
            wide   layers.{{i}}.mlp.experts.gate_up_proj      stack/moe/gate+up
            flat   layers.{{i}}.mlp.experts.gate_up_proj_bias stack/moe/gate_bias+up_bias
            copy   layers.{{i}}.mlp.experts.down_proj(|_bias) stack/moe/down(|_bias)
        """,
        # A number of a gate and one of what it multiplies take turns.
        wide=in_turn(COPY._replace(axis=2), lambda config: config.moe.dim),
        flat=in_turn(COPY._replace(axis=1), lambda config: config.moe.dim),
    ),
    heads=k.decoder_heads("GptOss"),
)
