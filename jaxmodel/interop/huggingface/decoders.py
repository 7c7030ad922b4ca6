"""Families of decoders, as data: what they have in common, their keys and their rows."""

from typing import Any

from jaxmodel.interop.huggingface import keys as k
from jaxmodel.interop.huggingface import layers
from jaxmodel.interop.huggingface.table import Family, Group, Heads, Json, Overrides
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import MoE, PerLayer, Pool

# GPT-2: one projection to queries, keys and values, stored [in, out].

GPT2 = k.family(
    "gpt2 base=biased stem.positions=learned",
    """vocab_size=50257 n_embd:embed_dim=768 n_layer:num_layers=12 n_head:attention.num_heads=12 n_inner:mlp.dim=null
    n_positions:max_length=1024 activation_function:mlp.activation=gelu_new~plain tie_word_embeddings:tied=true
    layer_norm_epsilon:norm.epsilon=1e-5 scale_attn_weights==true scale_attn_by_inverse_layer_idx==false
    add_cross_attention==false""",
    k.implied("mlp.dim", lambda json: json.get("n_inner") or 4 * json.get("n_embd", 768)),
    prefix="transformer.",
    text="""
        copy    w(t|p)e.weight            stem/(tokens|positions)
        norm    h.{i}.ln_(1|2)            stack/(attention|mlp)_norm
        columns h.{i}.attn.c_attn         stack/attention/query+key+value
        plain   h.{i}.attn.c_proj         stack/attention/output
        plain   h.{i}.mlp.c_(fc|proj)     stack/mlp/(up|down)
        norm    ln_f                      norm
    """,
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


def head_dim(usual: int | None = None) -> Group:
    """The width of heads, and what it is where config.json does not say; None: what the model's width gives each."""

    def read(json: Json) -> Overrides:
        return {"attention.head_dim": json.get("head_dim", usual) or json["hidden_size"] // json["num_attention_heads"]}

    def write(config: Transformer) -> dict[str, Any]:
        return {"head_dim": config.attention.sizes(config.embed_dim)[-1]}

    return Group(read, write, field="attention.head_dim")


_KV_HEADS = Group(
    lambda json: {"attention.num_kv_heads": json.get("num_key_value_heads") or json["num_attention_heads"]},
    lambda config: {"num_key_value_heads": config.attention.sizes(config.embed_dim)[1]},
)
# What nearly all have.
SIZES = k.keys(
    """vocab_size hidden_size:embed_dim num_hidden_layers:num_layers num_attention_heads:attention.num_heads
    intermediate_size:mlp.dim hidden_act:mlp.activation=silu~gated rms_norm_eps:norm.epsilon=1e-6
    tie_word_embeddings:tied=false""",
    *(_KV_HEADS, head_dim(), layers.rotary()),
)
BIASES = "attention_bias:attention.output_bias,attention.bias=false~bool"  # of all four projections, or of none
QK_EPSILON = "rms_norm_eps:attention.qk_norm_epsilon=1e-6"  # queries and keys are normalised as everything is
WINDOW = "sliding_window:attention.window=null"
TIED = "tie_word_embeddings:tied=true"


def decoder(said: str, heads: dict[str, Heads], *keyed: Any, more: str = "", **others: Any) -> Family:
    """A family in the manner of Llama, whose keys stand beside `SIZES`.

    Args:
      said: its `model_type`, and words of its base.
      heads: by architecture class.
      *keyed: its keys.
      more: its rows, beside Llama's.
      **others: fields of `Family`.
    """
    given = {"prefix": "model.", "heads": heads, "ignored": ("*.rotary_emb.inv_freq",)}
    return k.family(f"{said} attention.rotary", SIZES, *keyed, text=LLAMA_ROWS + more, **{**given, **others})


def _sliding(json: Json) -> list[str]:
    """Qwen's layers where `layer_types` is not there: those from `max_window_layers` on slide."""
    first = json.get("max_window_layers", 28) if json.get("use_sliding_window") else json["num_hidden_layers"]
    return ["sliding_attention" if i >= first else "full_attention" for i in range(json["num_hidden_layers"])]


# A switch turns all windows off.
QWEN_LAYERS = layers.switched(layers.layer_types(_sliding), "layer_types")
LLAMA = decoder("llama", k.decoder_heads("Llama"), f"{BIASES} mlp_bias:mlp.bias=false pretraining_tp==1")
MISTRAL = decoder("mistral", k.decoder_heads("Mistral"), WINDOW)
QWEN2 = decoder("qwen2 attention.bias", k.decoder_heads("Qwen2"), QWEN_LAYERS)
QWEN3 = decoder(
    *("qwen3 attention.qk_norm=head", k.decoder_heads("Qwen3"), head_dim(128), QWEN_LAYERS, f"{BIASES} {QK_EPSILON}")
)

# Gemma: norms that store their scale less one, before and after each half, and embeddings scaled by sqrt(D).

_AROUND = """
    norm layers.{i}.(input|post_attention)_layernorm             stack/attention_(norm|output_norm)
    norm layers.{i}.(pre_feedforward|post_feedforward)_layernorm stack/mlp_(norm|output_norm)
"""
# What the embeddings are scaled by follows from their width.
_SCALED = k.implied("stem.scale", lambda json: json["hidden_size"] ** 0.5)


_GEMMA = k.keys(head_dim(256), _SCALED, f"{BIASES} {TIED} hidden_activation:mlp.activation=silu~gated")


def _inverse_square(config: Transformer) -> dict[str, Any]:
    """What the scale of scores is the inverse root of; whole where it nearly is."""
    number = config.attention.scale**-2 if config.attention.scale else config.attention.head_dim or 256
    return {"query_pre_attn_scalar": round(number) if abs(number - round(number)) < 1e-6 * number else number}


_CAPPED = k.keys(
    Group(lambda json: {"attention.scale": json.get("query_pre_attn_scalar", 256) ** -0.5}, _inverse_square),
    "attn_logit_softcapping:attention.softcap=null final_logit_softcapping:head.softcap=null",
)
GEMMA = decoder(
    *("gemma norm.offset=1", k.decoder_heads("Gemma"), _GEMMA),
    "hidden_act:mlp.activation=silu~first use_bidirectional_attention==null",
)
GEMMA2 = decoder(
    *("gemma2 norm(offset=1 placement=both)", k.decoder_heads("Gemma2")),
    *(_GEMMA, _CAPPED, layers.layer_types(lambda json: layers.every(2, json))),
    more=_AROUND,
)
GEMMA3 = decoder(
    "gemma3_text attention.qk_norm=head norm(offset=1 placement=both)",
    *(k.decoder_heads("Gemma3", 3, "Gemma3Text"), _GEMMA, _CAPPED, layers.rotary_by_layer(6, 1e6, 1e4)),
    f"{QK_EPSILON} use_bidirectional_attention==false",
    more=_AROUND,
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
    blocks = layers.blocks(config)
    each = {str(i): layer.attention for i, layer in enumerate(blocks) if not layer.attention.window}
    sizes = {i: {"head_dim": a.head_dim, "num_key_value_heads": a.num_kv_heads} for i, a in each.items()}
    reuse = [layer for layer in blocks if layer.attention.sharing == "reuse"]
    return {
        **{"attention_k_eq_v": any(a.keys_as_values for a in each.values()), "per_layer_config": sizes},
        **{"num_kv_shared_layers": len(reuse), "use_double_wide_mlp": bool(reuse and reuse[0].mlp != config.mlp)},
    }


def _settled(json: Json) -> Json:
    """config.json as theirs is settled: the last layer is global, and global ones turn a quarter unless it says."""
    kinds, ropes = json.get("layer_types") or layers.every(6, json), json.get("rope_parameters")
    quarter = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}
    ropes = ropes or {"sliding_attention": {"rope_theta": 1e4}, "full_attention": quarter}
    return {**json, "layer_types": [*kinds[:-1], "full_attention"], "rope_parameters": ropes}


def _read_narrow(json: Json) -> Overrides:
    dim = json.get("hidden_size_per_layer_input", 256)
    return {"per_layer": PerLayer(dim, json.get("vocab_size_per_layer_input", 262144)) if dim else None}


def _write_narrow(config: Transformer) -> dict[str, Any]:
    dim, size = (config.per_layer.dim, config.per_layer.vocab_size) if config.per_layer else (0, config.vocab_size)
    return {"hidden_size_per_layer_input": dim, "vocab_size_per_layer_input": size}


def _read_experts(json: Json) -> Overrides:
    """Experts beside the MLP, which is one of every token then."""
    if not json.get("enable_moe_block"):
        return {}
    if json.get("use_double_wide_mlp"):
        raise ValueError("enable_moe_block beside use_double_wide_mlp is not supported")
    names = ("num_experts", "moe_intermediate_size", "top_k_experts", "intermediate_size")
    count, dim, top, shared = (json[name] for name in names)
    activation = k.GATED[json.get("hidden_activation", "gelu_pytorch_tanh")]
    return {"moe": MoE(count, dim, top, activation, shared_dim=shared, apart=True)}


def _write_experts(config: Transformer) -> dict[str, Any]:
    if (moe := config.moe) is None:
        return {"enable_moe_block": False}
    sizes = {"num_experts": moe.num_experts, "moe_intermediate_size": moe.dim, "intermediate_size": moe.shared_dim}
    return {"enable_moe_block": True, **sizes, "top_k_experts": moe.experts_per_token}


_LAYERS = layers.rotary_by_layer(6, 1e6, 1e4, _read_global)
GEMMA4 = decoder(
    "gemma4_text attention(qk_norm=head value_norm scale=1) norm.placement=both block_scale",
    *(k.decoder_heads("Gemma4", 2, "Gemma4Text"), _GEMMA, Group(_read_narrow, _write_narrow)),
    *(each._replace(read=lambda json, each=each: each.read(_settled(json))) for each in _LAYERS),
    f"{QK_EPSILON} final_logit_softcapping:head.softcap=null use_bidirectional_attention==null",
    *(Group(write=_write_global), Group(_read_experts, _write_experts)),
    more=f"""{_AROUND}
        copy       layers.{{i}}.layer_scalar                               stack/scale
        copy       embed_tokens_per_layer.weight                           per_layer/tokens
        transposed per_layer_model_projection.weight                       per_layer/projection
        norm       per_layer_projection_norm                               per_layer/norm
        transposed layers.{{i}}.per_layer_(input_gate|projection).weight   stack/per_layer_(gate|output)
        norm       layers.{{i}}.post_per_layer_input_norm                  stack/per_layer_norm
        transposed layers.{{i}}.router.proj.weight                         stack/moe/router
        copy       layers.{{i}}.router.(scale|per_expert_scale)            stack/moe/(router_norm/scale|expert_scale)
        experts    layers.{{i}}.experts.(gate_up|down)_proj                stack/moe/(gate+up|down)
        norm       layers.{{i}}.pre_feedforward_layernorm_2                stack/moe/expert_norm
        norm       layers.{{i}}.post_feedforward_layernorm_(1|2)           stack/moe/(shared|expert)_output_norm
        transposed layers.{{i}}.mlp.(gate|up|down)_proj.weight             stack/moe/shared/(gate|up|down)
    """,
    # Checkpoints hold what would make the keys and values that layers reuse, too.
    ignored=(*LLAMA.ignored, *(f"*.self_attn.{name}.weight" for name in ("k_proj", "v_proj", "k_norm"))),
)

# Further ones, each of which says how it differs

GATES = "transposed layers.{i}.mlp.gate_up_proj.weight stack/mlp/gate+up\n"
LAYER_EPSILON = "layer_norm_eps:norm.epsilon=1e-5"


def _trained(config: Transformer) -> dict[str, int]:
    """How long texts were before positions were stretched stands outside of them, too."""
    return {"original_max_position_embeddings": config.attention.rope.original_length or config.max_length}


PHI3 = decoder(
    *("phi3", k.decoder_heads("Phi3"), layers.rotary(fraction=1.0), WINDOW, Group(write=_trained)),
    more=f"{GATES}transposed layers.{{i}}.self_attn.qkv_proj.weight stack/attention/query+key+value",
)
# Norms on what each half gives, and of all queries, or keys, together.
OLMO2 = decoder(
    *("olmo2 attention.qk_norm=all norm.placement=output", k.decoder_heads("Olmo2", 3), f"{BIASES} {QK_EPSILON}"),
    more="norm layers.{i}.post_(attention|feedforward)_layernorm stack/(attention|mlp)_output_norm",
)
OLMO3 = OLMO2._replace(
    name="olmo3", keys=k.keys(OLMO2.keys, layers.rotary_by_layer(4, 5e5)), heads=k.decoder_heads("Olmo3", 3)
)


def _read_positions(json: Json) -> Overrides:
    """`no_rope_layers`, whose zeros are layers without positions, and `layer_types`, which give these a window."""
    said = ["rotary" if each else "plain" for each in json.get("no_rope_layers") or ()]
    turned = said or layers.every(json.get("no_rope_layer_interval", 4), json, "plain", "rotary")
    window = json.get("sliding_window")
    kinds = json.get("layer_types") or ["full" if each == "rotary" else "sliding" for each in turned]
    slid = ["_local" if window and kind.startswith("sliding") else "" for kind in kinds]
    plain, local = {"attention.rotary": False}, {"attention.window": window}
    variants = {"rotary": {}, "plain": plain, "rotary_local": local, "plain_local": {**plain, **local}}
    return layers.patterned([one + other for one, other in zip(turned, slid, strict=True)], variants)


def _write_positions(config: Transformer) -> dict[str, Any]:
    turned = [int(layer.attention.rotary) for layer in layers.blocks(config)]
    return {"no_rope_layers": turned, "layer_types": [layers.slides(layer) for layer in layers.blocks(config)]}


_POSITIONS = layers.switched(Group(_read_positions, _write_positions), "sliding_window")
SMOLLM3 = decoder(
    *("smollm3", k.decoder_heads("SmolLM3"), layers.rotary(theta=2e6), _POSITIONS),
    f"{BIASES} {TIED} mlp_bias:mlp.bias=false",
)
GRANITE = decoder(
    *("granite", k.decoder_heads("Granite", 2), LLAMA.keys),
    """embedding_multiplier:stem.scale=1.0 residual_multiplier:residual_scale=1.0
    attention_multiplier:attention.scale=1.0 logits_scaling:head.scale=1.0~inverse""",
)
STARCODER2 = decoder(
    *("starcoder2 mlp.bias norm(kind=layer bias)", k.decoder_heads("Starcoder2")),
    f"{TIED} {WINDOW} norm_epsilon:norm.epsilon=1e-5",
    "hidden_act:mlp.activation=gelu_pytorch_tanh~plain use_bias:attention.bias,attention.output_bias,mlp.bias=true",
    more="linear layers.{i}.mlp.c_(fc|proj) stack/mlp/(up|down)",
)


def _qk_epsilon(json: Json) -> float:
    return json.get("layer_norm_eps", 1e-5) if json.get("qk_layernorm") else 1e-6


STABLELM = decoder(
    *("stablelm norm(kind=layer bias)", k.decoder_heads("StableLm"), layers.rotary(fraction=0.25)),
    f"""{LAYER_EPSILON} use_qkv_bias:attention.bias=false qk_layernorm:attention.qk_norm=false~false>none,true>layer
    use_parallel_residual:norm.placement=false~false>pre,true>shared""",
    k.implied("attention.qk_norm_epsilon", _qk_epsilon),
    # Queries and keys may be normalised, with scales of each head's own.
    more="copy layers.{i}.self_attn.(q|k)_layernorm.norms.{e}.weight stack/attention/(query|key)_norm",
)
GPT_NEOX = k.family(
    "gpt_neox base=biased attention.rotary",
    f"""vocab_size hidden_size:embed_dim num_hidden_layers:num_layers num_attention_heads:attention.num_heads
    intermediate_size:mlp.dim hidden_act:mlp.activation=gelu~plain {LAYER_EPSILON} tie_word_embeddings:tied=false
    use_parallel_residual:norm.placement=true~false>pre,true>parallel
    attention_bias:attention.output_bias,attention.bias=true~bool""",
    layers.rotary(fraction=0.25),
    text=f"""{NORMS}
        copy    embed_in.weight                          stem/tokens
        norm    final_layer_norm                         norm
        by_head layers.{{i}}.attention.query_key_value   stack/attention/query+key+value
        linear  layers.{{i}}.attention.dense             stack/attention/output
        linear  layers.{{i}}.mlp.dense_(h_to_4h|4h_to_h) stack/mlp/(up|down)
    """,
    heads=k.decoder_heads("GPTNeoX", logits="embed_out", tokens="classifier"),
    ignored=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
)
# Sliding layers have positions, unless no window is said; full ones none.
_LOCAL_POSITIONS = layers.layer_types(
    *(lambda json: layers.every(json.get("sliding_window_pattern", 4), json), 4096),
    full=lambda json: {"attention.rotary": False},
    local=lambda json: {} if json.get("sliding_window", 4096) else {"attention.rotary": False},
)
COHERE2 = decoder(
    *("cohere2 norm(kind=layer placement=shared)", k.decoder_heads("Cohere2", 2)),
    *(layers.rotary(interleaved=True), _LOCAL_POSITIONS),
    f"{LAYER_EPSILON} {TIED} {BIASES} logit_scale:head.scale=0.0625",
)
GLM4 = decoder(
    *("glm4 attention.bias norm.placement=both", k.decoder_heads("Glm4")),
    *(head_dim(128), layers.rotary(fraction=0.5, interleaved=True), "attention_bias:attention.bias=true"),
    more=f"{GATES}norm layers.{{i}}.post_(self_attn|mlp)_layernorm stack/(attention|mlp)_output_norm",
)
