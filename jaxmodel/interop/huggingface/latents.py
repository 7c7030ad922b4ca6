"""DeepSeek's kin: keys and values from one narrow vector a token, experts chosen by groups (arXiv:2405.04434)."""

from __future__ import annotations

import math
from typing import Any

from jaxmodel.interop.huggingface.decoders import LLAMA, RMS, ROTARY, both_biases, qk_epsilon, sizes
from jaxmodel.interop.huggingface.experts import expert_rows
from jaxmodel.interop.huggingface.keys import GATED, body, causal, decoder_heads, named, rotary, sharper
from jaxmodel.interop.huggingface.kin import QKV, but, by_head, paths
from jaxmodel.interop.huggingface.rows import linear, transformer
from jaxmodel.interop.huggingface.table import FLAT, REQUIRED, TRANSPOSED, Fixed, Group, Json, Key, Overrides, Row
from jaxmodel.models.configs import Transformer, Variant
from jaxmodel.models.parts import MoE

_ATTENTION = "layers.{i}.self_attn"


def _widths() -> Group:
    """Of the two parts of a head; `head_dim` is that of the turned one."""

    def read(json: Json) -> Overrides:
        return {"attention.head_dim": json["qk_nope_head_dim"] + json["qk_rope_head_dim"]}

    def write(config: Transformer) -> dict[str, Any]:
        a, turned = config.attention, config.attention.latent.rope_dim if config.attention.latent else 0
        return {"qk_nope_head_dim": (a.head_dim or 0) - turned, "head_dim": turned}

    return Group(read, write)


def _turned() -> Group:
    """Rotary positions, whose pairs are neighbours unless `rope_interleave` says otherwise.

    `mscale_all_dim` sharpens the scores of stretched ones.
    """

    def read(json: Json) -> Overrides:
        found = rotary(interleaved=bool(json.get("rope_interleave", True))).read(json)
        rope, said = found["attention.rope"], json.get("rope_parameters") or json.get("rope_scaling") or {}
        if rope.scaling != "none" and said.get("mscale_all_dim"):
            width = json["qk_nope_head_dim"] + json["qk_rope_head_dim"]
            found["attention.scale"] = width**-0.5 * sharper(rope.factor, said["mscale_all_dim"]) ** 2
        return found

    def write(config: Transformer) -> dict[str, Any]:
        a, said = config.attention, rotary().write(config)
        sharpened = math.sqrt((a.scale or 0.0) * math.sqrt(a.head_dim or 1))
        if a.scale and a.rope.factor > 1:
            said["rope_parameters"]["mscale_all_dim"] = round((sharpened - 1) / (0.1 * math.log(a.rope.factor)), 6)
        return {**said, "rope_interleave": a.rope.interleaved}

    return Group(read, write)


def _dense_first(usual: int) -> Group:
    """So many layers at the beginning have no experts."""

    def read(json: Json) -> Overrides:
        count = json.get("first_k_dense_replace", usual)
        dense = Variant("dense", (("moe", None),))
        return {"first": ("dense",) * count, "variants": (dense,)} if count else {}

    return Group(read, lambda config: {"first_k_dense_replace": len(config.first)})


def _shared() -> Group:
    """Experts of all tokens, which are one that is as wide as they are together."""

    def read(json: Json) -> Overrides:
        return {"moe.shared_dim": json.get("n_shared_experts", 1) * json["moe_intermediate_size"]}

    def write(config: Transformer) -> dict[str, Any]:
        moe = config.moe
        return {"n_shared_experts": (moe.shared_dim or 0) // moe.dim} if moe else {}

    return Group(read, write)


def _routed(scale: float, normalize: bool, groups: tuple[int, int] = (1, 1)) -> tuple[Key | Group, ...]:
    """The keys of experts; what their probabilities are scaled by, and their groups, where config.json does not say."""
    return (
        Key("n_routed_experts", "moe.num_experts", REQUIRED),
        Key("num_experts_per_tok", "moe.experts_per_token", 8),
        Key("moe_intermediate_size", "moe.dim", REQUIRED),
        Key("hidden_act", "moe.activation", "silu", *named(GATED)),
        Key("routed_scaling_factor", "moe.scale", scale),
        *([Key("norm_topk_prob", "moe.normalize", True)] * normalize),
        _shared(),
        Key("n_group", "moe.num_groups", groups[0], *_ONE_OR),
        Key("topk_group", "moe.groups_per_token", groups[1], *_ONE_OR),
    )


_ONE_OR: tuple[Any, Any] = lambda count: count or 1, lambda count: count


def _top_method() -> Group:
    """`topk_method`: groups count by their best expert, or not at all."""

    def read(json: Json) -> Overrides:
        method = json.get("topk_method", "greedy")
        if method not in ("greedy", "group_limited_greedy"):
            raise ValueError(f"topk_method={method!r} is not supported: there are greedy, group_limited_greedy")
        return {"moe.num_groups": 1, "moe.groups_per_token": 1} if method == "greedy" else {}

    def write(config: Transformer) -> dict[str, Any]:
        many = config.moe is not None and config.moe.num_groups > 1
        return {"topk_method": "group_limited_greedy" if many else "greedy", "norm_topk_prob": False}

    return Group(read, write)


_EXPERTS = (
    *expert_rows("mlp"),
    Row("layers.{i}.mlp.gate.e_score_correction_bias", "stack/moe/selection_bias"),
    *(
        Row(f"layers.{{i}}.mlp.shared_experts.{name}_proj.weight", f"stack/moe/shared/{name}", TRANSPOSED)
        for name in ("gate", "up", "down")
    ),
)


def _rows(config: Transformer) -> tuple[Row, ...]:
    latent = config.attention.latent
    narrow = paths("attention", "latent", "rope_key")
    query = "q_proj" if latent is None or latent.q_rank is None else "q_b_proj"
    return (
        *but(_EXPERTS, *QKV, *paths("attention", "query_norm")),
        Row(f"{_ATTENTION}.{query}.weight", "stack/attention/query", TRANSPOSED),
        *linear(f"{_ATTENTION}.q_a_proj", "stack/attention/query_latent", bias=FLAT),
        Row(f"{_ATTENTION}.q_a_layernorm.weight", "stack/attention/query_norm"),
        Row(f"{_ATTENTION}.kv_a_proj_with_mqa.weight", narrow, TRANSPOSED),
        Row(f"{_ATTENTION}.kv_a_proj_with_mqa.bias", tuple(f"{path}_bias" for path in narrow), FLAT),
        Row(f"{_ATTENTION}.kv_a_layernorm.weight", "stack/attention/latent_norm"),
        Row(f"{_ATTENTION}.kv_b_proj.weight", paths("attention", "key", "value"), by_head),
    )


_LATENT = (
    *(*sizes(), both_biases(), _widths(), _turned()),
    Key("kv_lora_rank", "attention.latent.kv_rank", REQUIRED),
    Key("q_lora_rank", "attention.latent.q_rank", None),
    Key("qk_rope_head_dim", "attention.latent.rope_dim", REQUIRED),
    Key("v_head_dim", "attention.latent.value_dim", REQUIRED),
)
_SIGMOID = MoE(num_experts=2, dim=1, experts_per_token=1, scores="sigmoid", selection_bias=True)
DEEPSEEK_V3 = LLAMA._replace(
    name="deepseek_v3",
    base=transformer(attention=ROTARY, norm=RMS, moe=_SIGMOID),
    keys=(*_LATENT, _dense_first(3), *_routed(2.5, True, (8, 4))),
    rows=_rows,
    heads=decoder_heads("DeepseekV3"),
    ignored=(*LLAMA.ignored, "model.layers.61.*"),  # further tokens at once, which transformers leaves out too
)
DEEPSEEK_V2 = DEEPSEEK_V3._replace(
    name="deepseek_v2",
    base=transformer(
        attention=ROTARY, norm=RMS, moe=MoE(num_experts=2, dim=1, experts_per_token=1, normalize=False, group_best=1)
    ),
    keys=(
        *_LATENT,
        _dense_first(0),
        *_routed(1.0, False),
        _top_method(),
        Fixed("mlp_bias", False),
        Fixed("rope_interleave", True),
    ),
    heads={name: each for name, each in decoder_heads("DeepseekV2").items() if "Token" not in name},
    ignored=LLAMA.ignored,
)
GLM4_MOE = DEEPSEEK_V3._replace(
    name="glm4_moe",
    base=transformer(attention=ROTARY, norm=RMS, moe=_SIGMOID),
    keys=(
        *(*sizes(), Key("rms_norm_eps", "norm.epsilon", 1e-5), qk_epsilon(), rotary(fraction=0.5)),
        Key("attention_bias", "attention.bias", False),
        Key("use_qk_norm", "attention.qk_norm", False, ("none", "head").__getitem__, lambda ours: ours == "head"),
        *(_dense_first(1), *_routed(1.0, True)),
    ),
    rows=_EXPERTS,
    heads={"Glm4MoeForCausalLM": causal(), "Glm4MoeModel": body()},
    ignored=(*LLAMA.ignored, "model.layers.46.*", "model.layers.92.*"),
)

LATENTS = (DEEPSEEK_V3, DEEPSEEK_V2, GLM4_MOE)
