"""Families of decoders whose MLPs are mixtures of experts, as data."""

from jaxmodel.interop.huggingface import keys as k
from jaxmodel.interop.huggingface.decoders import BIASES, LLAMA_ROWS, QK_EPSILON, SIZES, WINDOW, decoder, head_dim
from jaxmodel.interop.huggingface.rows import COPY, in_turn, rows
from jaxmodel.interop.huggingface.table import Json

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
_WINDOW = k.switched(k.keys("sliding_window:attention.window=4096")[0], "sliding_window")
# Experts in every layer, and how their probabilities come to be.
EVERYWHERE = "norm_topk_prob:moe.normalize=false decoder_sparse_step==1 mlp_only_layers==[]"
QWEN3_MOE = decoder(
    *("qwen3_moe", k.decoder_heads("Qwen3Moe"), experts(128, 8, "moe_intermediate_size")),
    *(_WINDOW, f"{EVERYWHERE} {BIASES} {QK_EPSILON}"),
    words=f"attention.qk_norm=head {MOE}",
    more=EXPERT_ROWS,
)
MIXTRAL = decoder(
    *("mixtral", k.decoder_heads("Mixtral"), experts(8, 2), k.rotary(theta=1e6), f"{EPSILON} {WINDOW}"),
    words=MOE,
    more="""
        transposed layers.{i}.block_sparse_moe.gate.weight                  stack/moe/router
        transposed layers.{i}.block_sparse_moe.experts.{e}.w(1|3|2).weight stack/moe/(gate|up|down)
    """,
)
OLMOE = decoder(
    *("olmoe", k.decoder_heads("Olmoe", 2), experts(64, 8)),
    f"{EPSILON} {BIASES} {QK_EPSILON} norm_topk_prob:moe.normalize=false clip_qkv==null",
    words=f"attention.qk_norm=all {MOE}",
    more=EXPERT_ROWS,
)


def _every_other(json: Json) -> list[str]:
    """Qwen2-MoE's layers where `layer_types` is not there: every other one slides, up to `max_window_layers`."""
    last = json.get("max_window_layers", 28) if json.get("use_sliding_window") else 0
    count = json["num_hidden_layers"]
    return ["full_attention" if i % 2 or i >= last else "sliding_attention" for i in range(count)]


QWEN2_MOE = decoder(
    *("qwen2_moe", k.decoder_heads("Qwen2Moe"), experts(60, 4, "moe_intermediate_size")),
    *(k.switched(k.layer_types(_every_other), "layer_types"), EVERYWHERE),
    "qkv_bias:attention.bias=true shared_expert_intermediate_size:moe.shared_dim",
    words=f"attention.bias {SHARED}",
    more=SHARED_ROWS,
)
_YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
GPT_OSS = decoder(
    *("gpt_oss", k.decoder_heads("GptOss")),
    words="attention.sinks moe(num_experts=2 dim=1 activation=quick_geglu bias up_offset=1)",
    keys=k.keys(
        *(k.without(SIZES, "hidden_act"), head_dim(64), experts(128, 4, act="swiglu_limit:limit=7.0")),
        f"{EPSILON} hidden_act==silu swiglu_alpha==1.702 attention_bias:attention.output_bias,attention.bias=true~bool",
        k.rotary({**_YARN, "original_max_position_embeddings": 4096}, theta=1.5e5),
        k.layer_types(lambda json: k.every(2, json), usual=128),
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
