"""More families of decoders, as data: each says how it differs from those of `decoders`."""

from typing import Any

from jaxmodel.interop.huggingface import keys as k
from jaxmodel.interop.huggingface.decoders import BIASES, LLAMA, NORMS, QK_EPSILON, TIED, WINDOW, decoder, head_dim
from jaxmodel.interop.huggingface.rows import base, rows
from jaxmodel.interop.huggingface.table import Family, Group, Json, Overrides
from jaxmodel.models.configs import Transformer

GATES = "transposed layers.{i}.mlp.gate_up_proj.weight stack/mlp/gate+up\n"
LAYER_EPSILON = "layer_norm_eps:norm.epsilon=1e-5"


def _trained(config: Transformer) -> dict[str, int]:
    """How long texts were before positions were stretched stands outside of them, too."""
    return {"original_max_position_embeddings": config.attention.rope.original_length or config.max_length}


PHI3 = decoder(
    *("phi3", k.decoder_heads("Phi3"), k.rotary(fraction=1.0), WINDOW, Group(write=_trained)),
    more=f"{GATES}transposed layers.{{i}}.self_attn.qkv_proj.weight stack/attention/query+key+value",
)
# Norms on what each half gives, and of all queries, or keys, together.
OLMO2 = decoder(
    *("olmo2", k.decoder_heads("Olmo2", 3), f"{BIASES} {QK_EPSILON}"),
    words="attention.qk_norm=all norm.placement=output",
    more="norm layers.{i}.post_(attention|feedforward)_layernorm stack/(attention|mlp)_output_norm",
)
OLMO3 = OLMO2._replace(
    name="olmo3", keys=k.keys(OLMO2.keys, k.rotary_by_layer(4, 5e5)), heads=k.decoder_heads("Olmo3", 3)
)


def _read_positions(json: Json) -> Overrides:
    """`no_rope_layers`, whose zeros are layers without positions, and `layer_types`, which give these a window."""
    said = ["rotary" if each else "plain" for each in json.get("no_rope_layers") or ()]
    turned = said or k.every(json.get("no_rope_layer_interval", 4), json, "plain", "rotary")
    window = json.get("sliding_window")
    kinds = json.get("layer_types") or ["full" if each == "rotary" else "sliding" for each in turned]
    slid = ["_local" if window and kind.startswith("sliding") else "" for kind in kinds]
    plain, local = {"attention.rotary": False}, {"attention.window": window}
    variants = {"rotary": {}, "plain": plain, "rotary_local": local, "plain_local": {**plain, **local}}
    return k.patterned([one + other for one, other in zip(turned, slid, strict=True)], variants)


def _write_positions(config: Transformer) -> dict[str, Any]:
    turned = [int(layer.attention.rotary) for layer in k.layers(config)]
    return {"no_rope_layers": turned, "layer_types": [k.slides(layer) for layer in k.layers(config)]}


_POSITIONS = k.switched(Group(_read_positions, _write_positions), "sliding_window")
SMOLLM3 = decoder(
    *("smollm3", k.decoder_heads("SmolLM3"), k.rotary(theta=2e6), _POSITIONS),
    f"{BIASES} {TIED} mlp_bias:mlp.bias=false",
)
GRANITE = decoder(
    *("granite", k.decoder_heads("Granite", 2), LLAMA.keys),
    """embedding_multiplier:stem.scale=1.0 residual_multiplier:residual_scale=1.0
    attention_multiplier:attention.scale=1.0 logits_scaling:head.scale=1.0~inverse""",
)
STARCODER2 = decoder(
    *("starcoder2", k.decoder_heads("Starcoder2"), f"{TIED} {WINDOW} norm_epsilon:norm.epsilon=1e-5"),
    "hidden_act:mlp.activation=gelu_pytorch_tanh~plain use_bias:attention.bias,attention.output_bias,mlp.bias=true",
    words="mlp.bias norm(kind=layer bias)",
    more="linear layers.{i}.mlp.c_(fc|proj) stack/mlp/(up|down)",
)
# Queries and keys may be normalised, with scales of each head's own.
_BY_HEAD = "copy layers.{i}.self_attn.(q|k)_layernorm.norms.{e}.weight stack/attention/(query|key)_norm"


def _qk_epsilon(json: Json) -> float:
    return json.get("layer_norm_eps", 1e-5) if json.get("qk_layernorm") else 1e-6


STABLELM = decoder(
    *("stablelm", k.decoder_heads("StableLm"), k.rotary(fraction=0.25)),
    f"""{LAYER_EPSILON} use_qkv_bias:attention.bias=false use_parallel_residual:norm.placement=false~pre|shared
    qk_layernorm:attention.qk_norm=false~none|layer""",
    k.implied("attention.qk_norm_epsilon", _qk_epsilon),
    words="norm(kind=layer bias)",
    more=_BY_HEAD,
)
GPT_NEOX = Family(
    name="gpt_neox",
    prefix="gpt_neox.",
    base=base("base=biased attention.rotary"),
    keys=k.keys(
        f"""vocab_size hidden_size:embed_dim num_hidden_layers:num_layers num_attention_heads:attention.num_heads
        intermediate_size:mlp.dim hidden_act:mlp.activation=gelu~plain {LAYER_EPSILON} tie_word_embeddings:tied=false
        use_parallel_residual:norm.placement=true~pre|parallel
        attention_bias:attention.output_bias,attention.bias=true~bool""",
        k.rotary(fraction=0.25),
    ),
    rows=rows(f"""{NORMS}
        copy    embed_in.weight                          stem/tokens
        norm    final_layer_norm                         norm
        by_head layers.{{i}}.attention.query_key_value   stack/attention/query+key+value
        linear  layers.{{i}}.attention.dense             stack/attention/output
        linear  layers.{{i}}.mlp.dense_(h_to_4h|4h_to_h) stack/mlp/(up|down)
    """),
    heads={
        **k.decoder_heads("GPTNeoX"),
        "GPTNeoXForCausalLM": k.causal("embed_out"),
        "GPTNeoXForTokenClassification": k.classifier("classifier", None),
    },
    ignored=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
)
# Sliding layers have positions, unless no window is said; full ones none.
_LOCAL_POSITIONS = k.layer_types(
    *(lambda json: k.every(json.get("sliding_window_pattern", 4), json), 4096),
    full=lambda json: {"attention.rotary": False},
    local=lambda json: {} if json.get("sliding_window", 4096) else {"attention.rotary": False},
)
COHERE2 = decoder(
    *("cohere2", k.decoder_heads("Cohere2", 2), k.rotary(interleaved=True), _LOCAL_POSITIONS),
    f"{LAYER_EPSILON} {TIED} {BIASES} logit_scale:head.scale=0.0625",
    words="norm(kind=layer placement=shared)",
)
GLM4 = decoder(
    *("glm4", k.decoder_heads("Glm4"), head_dim(128), k.rotary(fraction=0.5, interleaved=True)),
    "attention_bias:attention.bias=true",
    words="attention.bias norm.placement=both",
    more=f"{GATES}norm layers.{{i}}.post_(self_attn|mlp)_layernorm stack/(attention|mlp)_output_norm",
)
