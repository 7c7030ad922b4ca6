"""Families of decoders with a mixture of experts in place of the MLP."""

from __future__ import annotations

from collections.abc import Callable

from jaxmodel.interop.huggingface.decoders import (
    LLAMA,
    ROTARY,
    both_biases,
    decoder_rows,
    qk_epsilon,
    qwen_layers,
    sizes,
)
from jaxmodel.interop.huggingface.keys import GATED, body, causal, decoder_heads, layer_types, named, rotary
from jaxmodel.interop.huggingface.kin import OLMO_ATTENTION, WINDOW, paths, without
from jaxmodel.interop.huggingface.rows import linear, transformer
from jaxmodel.interop.huggingface.table import (
    REQUIRED,
    TRANSPOSED,
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
from jaxmodel.models.parts import Attention, MoE, Norm

RMS = Norm(kind="rms", epsilon=1e-5)
MOE = MoE(num_experts=2, dim=1, experts_per_token=1)


def expert_rows(module: str, **names: str) -> tuple[Row, ...]:
    """Llama's rows, and those of a router and of single experts, in a layer's `module`; `names` by ours."""
    inside = f"layers.{{i}}.{module}"
    names = names or {name: f"{name}_proj" for name in ("gate", "up", "down")}
    return (
        *decoder_rows(),
        Row(f"{inside}.gate.weight", "stack/moe/router", TRANSPOSED),
        *(
            Row(f"{inside}.experts.{{e}}.{name}.weight", f"stack/moe/{ours}", TRANSPOSED)
            for ours, name in names.items()
        ),
    )


def experts(count: int, top: int, dim: str = "intermediate_size") -> tuple[Key | Group, ...]:
    """The keys of a mixture.

    Args:
      count: experts where config.json does not say, under either of two names.
      top: those a token goes to, where it does not say.
      dim: the key of an expert's width.
    """

    def read(json: Json) -> Overrides:
        return {"moe.num_experts": json.get("num_local_experts", json.get("num_experts", count))}

    def write(config: Transformer) -> dict[str, int]:
        return dict.fromkeys(("num_experts", "num_local_experts"), config.moe.num_experts if config.moe else 0)

    return (
        Group(read, write),
        Key("num_experts_per_tok", "moe.experts_per_token", top),
        Key(dim, "moe.dim", REQUIRED),
        Key("hidden_act", "moe.activation", "silu", *named(GATED)),
    )


def _switched_window() -> Group:
    """A window of all layers, with a switch that turns it off."""

    def read(json: Json) -> Overrides:
        return {"attention.window": json.get("sliding_window", 4096) if json.get("use_sliding_window") else None}

    def write(config: Transformer) -> dict[str, int | bool | None]:
        window = config.attention.window
        return {"sliding_window": window, "use_sliding_window": window is not None}

    return Group(read, write)


_NORMALIZE = Key("norm_topk_prob", "moe.normalize", False)
_EPSILON = Key("rms_norm_eps", "norm.epsilon", 1e-5)

QWEN3_MOE = LLAMA._replace(
    name="qwen3_moe",
    base=transformer(attention=Attention(num_heads=1, rotary=True, qk_norm="head"), norm=RMS, moe=MOE),
    keys=(
        *(*sizes(), *experts(128, 8, "moe_intermediate_size"), _NORMALIZE),
        *(rotary(), both_biases(), qk_epsilon(), _switched_window()),
        *(Fixed("decoder_sparse_step", 1), Fixed("mlp_only_layers", [])),
    ),
    rows=expert_rows("mlp"),
    heads=decoder_heads("Qwen3Moe"),
)

MIXTRAL = LLAMA._replace(
    name="mixtral",
    base=transformer(attention=ROTARY, norm=RMS, moe=MOE),
    keys=(*sizes(), _EPSILON, *experts(8, 2), rotary(theta=1e6), WINDOW),
    rows=expert_rows("block_sparse_moe", gate="w1", up="w3", down="w2"),
    heads=decoder_heads("Mixtral"),
)

OLMOE = LLAMA._replace(
    name="olmoe",
    base=transformer(attention=OLMO_ATTENTION, norm=RMS, moe=MOE),
    keys=(
        *(*sizes(), _EPSILON, *experts(64, 8), _NORMALIZE),
        *(rotary(), both_biases(), qk_epsilon(), Fixed("clip_qkv", None)),
    ),
    rows=expert_rows("mlp"),
    heads={"OlmoeForCausalLM": causal(), "OlmoeModel": body()},
)

_SHARED = "layers.{i}.mlp.shared_expert"


def _every_other(json: Json) -> list[str]:
    """Qwen2-MoE's layers where `layer_types` is not there: every other one slides, up to `max_window_layers`."""
    last = json.get("max_window_layers", 28) if json.get("use_sliding_window") else 0
    count = json["num_hidden_layers"]
    return ["full_attention" if i % 2 or i >= last else "sliding_attention" for i in range(count)]


QWEN2_MOE = LLAMA._replace(
    name="qwen2_moe",
    base=transformer(
        attention=Attention(num_heads=1, rotary=True, bias=True),
        norm=RMS,
        moe=MoE(num_experts=2, dim=1, experts_per_token=1, shared_dim=1, shared_gate=True),
    ),
    keys=(
        *(*sizes(), *experts(60, 4, "moe_intermediate_size"), _NORMALIZE),
        *(rotary(), qwen_layers(_every_other), Key("qkv_bias", "attention.bias", True)),
        Key("shared_expert_intermediate_size", "moe.shared_dim", REQUIRED),
        *(Fixed("decoder_sparse_step", 1), Fixed("mlp_only_layers", [])),
    ),
    rows=(
        *expert_rows("mlp"),
        *(
            Row(f"{_SHARED}.{name}_proj.weight", f"stack/moe/shared/{name}", TRANSPOSED)
            for name in ("gate", "up", "down")
        ),
        Row(f"{_SHARED}_gate.weight", "stack/moe/shared_gate", TRANSPOSED),
    ),
    heads=decoder_heads("Qwen2Moe"),
)


def _in_turn(axis: int) -> Callable[[Transformer], Form]:
    """Of gates and what they multiply, one number each in turn."""
    return lambda config: fused(lambda x: x, lambda x, shape: x, axis=axis, groups=config.moe.dim if config.moe else 1)


_BOTH = paths("moe", "gate", "up")
_OSS = "layers.{i}.mlp"
_OSS_ROPE = {
    **{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    "original_max_position_embeddings": 4096,
}
GPT_OSS = LLAMA._replace(
    name="gpt_oss",
    base=transformer(
        attention=Attention(num_heads=1, rotary=True, sinks=True),
        norm=RMS,
        moe=MoE(**{"num_experts": 2, "dim": 1, "activation": "quick_geglu", "bias": True, "up_offset": 1.0}),
    ),
    keys=(
        *without(sizes(head_dim=64), "hidden_act"),
        *(_EPSILON, Fixed("hidden_act", "silu"), Fixed("swiglu_alpha", 1.702)),
        *without(experts(128, 4), "hidden_act"),
        Key("swiglu_limit", "moe.limit", 7.0),
        *(rotary(_OSS_ROPE, theta=1.5e5), both_biases(True)),
        layer_types(
            lambda json: [("sliding", "full")[i % 2] + "_attention" for i in range(json["num_hidden_layers"])],
            usual=128,
        ),
    ),
    rows=(
        *decoder_rows(),
        Row("layers.{i}.self_attn.sinks", "stack/attention/sinks"),
        *linear(f"{_OSS}.router", "stack/moe/router"),
        Row(f"{_OSS}.experts.gate_up_proj", _BOTH, _in_turn(2)),
        Row(f"{_OSS}.experts.gate_up_proj_bias", tuple(f"{path}_bias" for path in _BOTH), _in_turn(1)),
        Row(f"{_OSS}.experts.down_proj", "stack/moe/down"),
        Row(f"{_OSS}.experts.down_proj_bias", "stack/moe/down_bias"),
    ),
    heads=decoder_heads("GptOss"),
)

EXPERTS = (QWEN3_MOE, MIXTRAL, OLMOE, QWEN2_MOE, GPT_OSS)
