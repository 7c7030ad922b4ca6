"""Families of decoders whose MLPs are mixtures of experts, as data."""

import math
from typing import Any

from jaxmodel.interop.huggingface import keys as k
from jaxmodel.interop.huggingface import layers
from jaxmodel.interop.huggingface.decoders import BIASES, LLAMA, LLAMA_ROWS, QK_EPSILON, SIZES, decoder, head_dim
from jaxmodel.interop.huggingface.rows import COPY, in_turn, rows
from jaxmodel.interop.huggingface.table import Group, Json, Keys, Overrides, Row
from jaxmodel.models.configs import Transformer, Variant

EPSILON = "rms_norm_eps:norm.epsilon=1e-5"
MOE = "moe(num_experts=2 dim=1 experts_per_token=1)"
SHARED = f"{MOE} moe(shared_dim=1 shared_gate)"
EXPERT_ROWS = """
    transposed layers.{i}.mlp.gate.weight                              stack/moe/router
    transposed layers.{i}.mlp.experts.{e}.(gate|up|down)_proj.weight stack/moe/(gate|up|down)
"""
SHARED_ROWS = f"""{EXPERT_ROWS}
    transposed layers.{{i}}.mlp.shared_expert.(gate|up|down)_proj.weight stack/moe/shared/(gate|up|down)
    transposed layers.{{i}}.mlp.shared_expert_gate.weight                stack/moe/shared_gate
"""


def experts(count: int, top: int, dim: str = "intermediate_size", act: str = "hidden_act:activation=silu~gated") -> str:
    """The keys of a mixture.

    Args:
      count: experts where config.json does not say.
      top: those a token goes to, where it does not say.
      dim: the key of an expert's width.
      act: the key of its non-linearity.
    """

    return f"""moe( num_local_experts|num_experts:num_experts={count} num_experts_per_tok:experts_per_token={top}
        {dim}:dim {act} )"""


# A window of all layers, with a switch that turns it off.
_WINDOW = layers.switched(k.keys("sliding_window:attention.window=4096")[0], "sliding_window")
# Experts in every layer, and how their probabilities come to be.
EVERYWHERE = "norm_topk_prob:moe.normalize=false decoder_sparse_step==1 mlp_only_layers==[]"
QWEN3_MOE = decoder(
    *(f"qwen3_moe attention.qk_norm=head {MOE}", k.decoder_heads("Qwen3Moe"), _WINDOW),
    f"{experts(128, 8, 'moe_intermediate_size')} {EVERYWHERE} {BIASES} {QK_EPSILON}",
    more=EXPERT_ROWS,
)
MIXTRAL = decoder(
    *(f"mixtral {MOE}", k.decoder_heads("Mixtral"), layers.rotary(theta=1e6)),
    f"{experts(8, 2)} {EPSILON} sliding_window:attention.window=null",
    more="""
        transposed layers.{i}.block_sparse_moe.gate.weight                  stack/moe/router
        transposed layers.{i}.block_sparse_moe.experts.{e}.w(1|3|2).weight stack/moe/(gate|up|down)
    """,
)
OLMOE = decoder(
    *(f"olmoe attention.qk_norm=all {MOE}", k.decoder_heads("Olmoe", 2)),
    f"{experts(64, 8)} {EPSILON} {BIASES} {QK_EPSILON} norm_topk_prob:moe.normalize=false clip_qkv==null",
    more=EXPERT_ROWS,
)


def _every_other(json: Json) -> list[str]:
    """Qwen2-MoE's layers where `layer_types` is not there: every other one slides, up to `max_window_layers`."""
    last = json.get("max_window_layers", 28) if json.get("use_sliding_window") else 0
    return ["full_attention" if i % 2 or i >= last else "sliding_attention" for i in range(json["num_hidden_layers"])]


QWEN2_MOE = decoder(
    *(f"qwen2_moe attention.bias {SHARED}", k.decoder_heads("Qwen2Moe")),
    *(
        experts(60, 4, "moe_intermediate_size"),
        EVERYWHERE,
        layers.switched(layers.layer_types(_every_other), "layer_types"),
    ),
    "qkv_bias:attention.bias=true shared_expert_intermediate_size:moe.shared_dim",
    more=SHARED_ROWS,
)
_YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
GPT_OSS = decoder(
    "gpt_oss attention.sinks moe(num_experts=2 dim=1 activation=quick_geglu bias up_offset=1)",
    k.decoder_heads("GptOss"),
    keys=k.keys(
        *(k.without(SIZES, "hidden_act"), head_dim(64), experts(128, 4, act="swiglu_limit:limit=7.0")),
        f"{EPSILON} hidden_act==silu swiglu_alpha==1.702 attention_bias:attention.output_bias,attention.bias=true~bool",
        layers.rotary({**_YARN, "original_max_position_embeddings": 4096}, theta=1.5e5),
        layers.layer_types(lambda json: layers.every(2, json), usual=128),
    ),
    rows=rows(
        f"""{LLAMA_ROWS}
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
)

# DeepSeek's kin: keys and values from one narrow vector a token, experts chosen by groups (arXiv:2405.04434)

_EXPERTS = f"""{EXPERT_ROWS}
    copy       layers.{{i}}.mlp.gate.e_score_correction_bias              stack/moe/selection_bias
    transposed layers.{{i}}.mlp.shared_experts.(gate|up|down)_proj.weight stack/moe/shared/(gate|up|down)
"""


def _rows(config: Transformer) -> tuple[Row, ...]:
    query = "q_b_proj" if config.attention.latent and config.attention.latent.q_rank else "q_proj"
    return rows(f"""{LLAMA_ROWS}{_EXPERTS}
        transposed layers.{{i}}.self_attn.{query}.weight            stack/attention/query
        linear     layers.{{i}}.self_attn.q_a_proj                  stack/attention/query_latent
        linear     layers.{{i}}.self_attn.kv_a_proj_with_mqa        stack/attention/latent+rope_key
        copy       layers.{{i}}.self_attn.(q|kv)_a_layernorm.weight stack/attention/(query|latent)_norm
        by_head    layers.{{i}}.self_attn.kv_b_proj                 stack/attention/key+value
    """)


def _read_heads(json: Json) -> Overrides:
    """The two parts of a head, and positions, whose pairs are neighbours unless `rope_interleave` says otherwise.

    `mscale_all_dim` sharpens the scores of stretched ones.
    """
    width = json["qk_nope_head_dim"] + json["qk_rope_head_dim"]
    found = layers.rotary(interleaved=bool(json.get("rope_interleave", True))).read(json)
    rope, said = found["attention.rope"], json.get("rope_parameters") or json.get("rope_scaling") or {}
    if rope.scaling != "none" and said.get("mscale_all_dim"):
        found["attention.scale"] = width**-0.5 * layers.sharper(rope.factor, said["mscale_all_dim"]) ** 2
    return {**found, "attention.head_dim": width}


def _write_heads(config: Transformer) -> dict[str, Any]:
    a, turned = config.attention, config.attention.latent.rope_dim if config.attention.latent else 0
    said = layers.rotary().write(config)
    if a.scale and a.rope.factor > 1:
        sharpened = math.sqrt(a.scale * math.sqrt(a.head_dim or 1))
        said["rope_parameters"]["mscale_all_dim"] = round((sharpened - 1) / (0.1 * math.log(a.rope.factor)), 6)
    widths = {"qk_nope_head_dim": (a.head_dim or 0) - turned, "head_dim": turned}  # the latter is of the turned part
    return {**said, **widths, "rope_interleave": a.rope.interleaved}


_LATENT = k.keys(
    BIASES,
    Group(_read_heads, _write_heads, field="attention.rope"),
    "attention.latent( kv_lora_rank:kv_rank q_lora_rank:q_rank=null qk_rope_head_dim:rope_dim v_head_dim:value_dim )",
)


def _routed(dense: int, scale: float = 1.0, groups: int = 1, chosen: int = 1) -> Keys:
    """The keys of experts.

    Args:
      dense: so many layers at the beginning have none; this and all else where config.json does not say.
      scale: of their probabilities.
      groups: of experts.
      chosen: groups among which those of a token are.
    """

    def read(json: Json) -> Overrides:
        count = json.get("first_k_dense_replace", dense)
        first = {"first": ("dense",) * count, "variants": (Variant("dense", (("moe", None),)),)} if count else {}
        # Experts of all tokens are one that is as wide as they are together.
        return {**first, "moe.shared_dim": json.get("n_shared_experts", 1) * json["moe_intermediate_size"]}

    def write(config: Transformer) -> dict[str, Any]:
        moe, first = config.moe, {"first_k_dense_replace": len(config.first)}
        return {**first, "n_shared_experts": (moe.shared_dim or 0) // moe.dim} if moe else first

    return k.keys(
        Group(read, write),
        f"""moe( n_routed_experts:num_experts num_experts_per_tok:experts_per_token=8 moe_intermediate_size:dim
        hidden_act:activation=silu~gated routed_scaling_factor:scale={scale} n_group:num_groups={groups}~or_one
        topk_group:groups_per_token={chosen}~or_one )""",
    )


def _read_method(json: Json) -> Overrides:
    """`topk_method`: groups count by their best expert, or not at all."""
    method = json.get("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise ValueError(f"topk_method={method!r} is not supported: there are greedy, group_limited_greedy")
    return {"moe.num_groups": 1, "moe.groups_per_token": 1} if method == "greedy" else {}


def _write_method(config: Transformer) -> dict[str, Any]:
    many = config.moe is not None and config.moe.num_groups > 1
    return {"topk_method": "group_limited_greedy" if many else "greedy", "norm_topk_prob": False}


_SIGMOID = f"{MOE} moe(scores=sigmoid selection_bias)"
_NORMALIZE = "norm_topk_prob:moe.normalize=true"
DEEPSEEK_V3 = decoder(
    *(f"deepseek_v3 {_SIGMOID}", k.decoder_heads("DeepseekV3"), _LATENT, _routed(3, 2.5, 8, 4), _NORMALIZE),
    rows=_rows,
    ignored=(*LLAMA.ignored, "model.layers.61.*"),  # further tokens at once, which transformers leaves out too
)
DEEPSEEK_V2 = decoder(
    *(f"deepseek_v2 {MOE} moe(normalize=false group_best=1)", k.decoder_heads("DeepseekV2", 3)),
    *(_LATENT, _routed(0), Group(_read_method, _write_method), "mlp_bias==false rope_interleave==true"),
    rows=_rows,
)
GLM4_MOE = decoder(
    *(f"glm4_moe {_SIGMOID}", k.decoder_heads("Glm4Moe", 2), layers.rotary(fraction=0.5), _routed(1)),
    f"""{EPSILON} {QK_EPSILON} {_NORMALIZE} attention_bias:attention.bias=false
    use_qk_norm:attention.qk_norm=false~false>none,true>head""",
    more=_EXPERTS,
    ignored=(*LLAMA.ignored, "model.layers.46.*", "model.layers.92.*"),
)
