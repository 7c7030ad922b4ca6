"""More families of decoders, as data: each says how it differs from those of `decoders`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxmodel.interop.huggingface.decoders import GEMMA, LLAMA, ROTARY, both_biases, decoder_rows, qk_epsilon, sizes
from jaxmodel.interop.huggingface.keys import (
    ACTIVATIONS,
    body,
    causal,
    classifier,
    decoder_heads,
    layer_types,
    layers,
    named,
    patterned,
    rotary,
    rotary_by_layer,
)
from jaxmodel.interop.huggingface.rows import LAYER_NORM, linear, norm, transformer
from jaxmodel.interop.huggingface.table import (
    REQUIRED,
    TRANSPOSED,
    Form,
    Group,
    Heads,
    Json,
    Key,
    Overrides,
    Row,
    fused,
)
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import MLP, Attention, Norm, Pool

WINDOW = Key("sliding_window", "attention.window", None)


def without(keys: Sequence[Any], *names: str) -> tuple[Any, ...]:
    """Keys but for these."""
    return tuple(each for each in keys if getattr(each, "key", None) not in names)


def paths(half: str, *names: str) -> tuple[str, ...]:
    """Of several weights within a half of a block."""
    return tuple(f"stack/{half}/{name}" for name in names)


QKV = paths("attention", "query", "key", "value")
QKV_BIAS = tuple(f"{path}_bias" for path in QKV)
GATE_UP = Row("layers.{i}.mlp.gate_up_proj.weight", paths("mlp", "gate", "up"), TRANSPOSED)


def but(rows: Sequence[Row], *ours: str) -> tuple[Row, ...]:
    """Rows but for those of these paths, and their biases."""
    return tuple(row for row in rows if str(row.paths).removesuffix("_bias") not in ours)


# How long texts were before positions were stretched stands outside of them, too.
_TRAINED = Group(
    lambda json: {},
    lambda config: {"original_max_position_embeddings": config.attention.rope.original_length or config.max_length},
)
PHI3 = LLAMA._replace(
    name="phi3",
    keys=(*sizes(), rotary(fraction=1.0), WINDOW, _TRAINED),
    rows=(
        *but(decoder_rows(), *QKV, *paths("mlp", "gate", "up")),
        Row("layers.{i}.self_attn.qkv_proj.weight", QKV, TRANSPOSED),
        GATE_UP,
    ),
    heads=decoder_heads("Phi3"),
)


def _of_texts(name: str) -> dict[str, Heads]:
    """As `decoder_heads`, without classes of tokens."""
    found = decoder_heads(name)
    return {each: heads for each, heads in found.items() if each != f"{name}ForTokenClassification"}


# Norms on what each half gives, and of all queries, or keys, together.
OLMO_NORM = Norm(kind="rms", placement="output")
OLMO_ATTENTION = Attention(num_heads=1, rotary=True, qk_norm="all")
OLMO2 = LLAMA._replace(
    name="olmo2",
    base=transformer(attention=OLMO_ATTENTION, norm=OLMO_NORM),
    keys=(*sizes(), rotary(), both_biases(), qk_epsilon()),
    rows=decoder_rows(attention_output_norm="post_attention_layernorm", mlp_output_norm="post_feedforward_layernorm"),
    heads=_of_texts("Olmo2"),
)
OLMO3 = OLMO2._replace(
    name="olmo3", keys=(*sizes(), rotary_by_layer(4, 5e5), both_biases(), qk_epsilon()), heads=_of_texts("Olmo3")
)


def _positions_of_some() -> Group:
    """`no_rope_layers`, whose zeros are layers without positions, and `layer_types`, which give these a window."""

    def read(json: Json) -> Overrides:
        count, every = json["num_hidden_layers"], json.get("no_rope_layer_interval", 4)
        turned = json.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(count)]
        window = json.get("sliding_window") if json.get("use_sliding_window") else None
        kinds = json.get("layer_types") or ["full" if each or not window else "sliding" for each in turned]
        slides = [window if kind.startswith("sliding") else None for kind in kinds]
        names = [
            ("rotary" if turn else "plain") + ("_local" if slide else "")
            for turn, slide in zip(turned, slides, strict=True)
        ]
        variants: dict[str, Overrides] = {
            name: {
                **({} if name.startswith("rotary") else {"attention.rotary": False}),
                **({"attention.window": window} if name.endswith("_local") else {}),
            }
            for name in names
        }
        return patterned(names, variants)

    def write(config: Transformer) -> dict[str, Any]:
        each = [layer.attention for layer in layers(config)]
        windows = [a.window for a in each]
        return {
            "no_rope_layers": [int(a.rotary) for a in each],
            "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
            "sliding_window": next(filter(None, windows), None),
            "use_sliding_window": any(windows),
        }

    return Group(read, write)


SMOLLM3 = LLAMA._replace(
    name="smollm3",
    keys=(
        *sizes(tied=True),
        rotary(theta=2e6),
        both_biases(),
        Key("mlp_bias", "mlp.bias", False),
        _positions_of_some(),
    ),
    heads=decoder_heads("SmolLM3"),
)

GRANITE = LLAMA._replace(
    name="granite",
    keys=(
        *LLAMA.keys,
        Key("embedding_multiplier", "stem.scale", 1.0),
        Key("residual_multiplier", "residual_scale", 1.0),
        Key("attention_multiplier", "attention.scale", 1.0),
        Key("logits_scaling", "head.scale", 1.0, lambda scale: 1 / scale, lambda scale: 1 / scale),
    ),
    heads={"GraniteForCausalLM": causal(), "GraniteModel": body()},
)


def _all_biases(key: str) -> Group:
    """One key for the biases of attention and MLP."""

    def read(json: Json) -> Overrides:
        return dict.fromkeys(("attention.bias", "attention.output_bias", "mlp.bias"), json.get(key, True))

    return Group(read, lambda config: {key: config.mlp.bias})


STARCODER2 = LLAMA._replace(
    name="starcoder2",
    base=transformer(attention=ROTARY, mlp=MLP(dim=1, bias=True), norm=LAYER_NORM),
    keys=(
        *without(sizes(tied=True), "hidden_act", "rms_norm_eps"),
        Key("hidden_act", "mlp.activation", "gelu_pytorch_tanh", *named(ACTIVATIONS)),
        Key("norm_epsilon", "norm.epsilon", 1e-5),
        _all_biases("use_bias"),
        rotary(),
        WINDOW,
    ),
    rows=(
        *but(decoder_rows(), *paths("mlp", "gate", "up", "down")),
        *linear("layers.{i}.mlp.c_fc", "stack/mlp/up"),
        *linear("layers.{i}.mlp.c_proj", "stack/mlp/down"),
    ),
    heads=decoder_heads("Starcoder2"),
)


def _placement(key: str, default: bool, together: str) -> Key:
    """Whether a block's halves work side by side."""
    read = {True: together, False: "pre"}
    return Key(key, "norm.placement", default, read.__getitem__, lambda ours: ours == together)


def _norm_of_each_head() -> Group:
    """`qk_layernorm`."""

    def read(json: Json) -> Overrides:
        if not json.get("qk_layernorm"):
            return {}
        return {"attention.qk_norm": "layer", "attention.qk_norm_epsilon": json.get("layer_norm_eps", 1e-5)}

    return Group(read, lambda config: {"qk_layernorm": config.attention.qk_norm == "layer"})


STABLELM = LLAMA._replace(
    name="stablelm",
    base=transformer(attention=ROTARY, norm=LAYER_NORM),
    keys=(
        *without(sizes(), "rms_norm_eps"),
        Key("layer_norm_eps", "norm.epsilon", 1e-5),
        Key("use_qkv_bias", "attention.bias", False),
        _placement("use_parallel_residual", False, "shared"),
        _norm_of_each_head(),
        rotary(fraction=0.25),
    ),
    rows=(
        *but(decoder_rows(), *paths("attention", "query_norm", "key_norm")),
        Row("layers.{i}.self_attn.q_layernorm.norms.{e}.weight", "stack/attention/query_norm"),
        Row("layers.{i}.self_attn.k_layernorm.norms.{e}.weight", "stack/attention/key_norm"),
    ),
    heads=decoder_heads("StableLm"),
)


def by_head(config: Transformer) -> Form:
    """Of each head its query, key and value, one after the other."""
    return fused(lambda x: x.T, lambda x, shape: x.T, groups=config.attention.num_heads)


def biases_by_head(config: Transformer) -> Form:
    """Their biases, likewise."""
    return fused(lambda x: x.reshape(-1), lambda x, shape: x.reshape(shape), groups=config.attention.num_heads)


GPT_NEOX = LLAMA._replace(
    name="gpt_neox",
    prefix="gpt_neox.",
    base=transformer(
        attention=Attention(num_heads=1, rotary=True, bias=True, output_bias=True),
        mlp=MLP(dim=1, bias=True),
        norm=LAYER_NORM,
    ),
    keys=(
        Key("vocab_size", "vocab_size", REQUIRED),
        Key("hidden_size", "embed_dim", REQUIRED),
        Key("num_hidden_layers", "num_layers", REQUIRED),
        Key("num_attention_heads", "attention.num_heads", REQUIRED),
        Key("intermediate_size", "mlp.dim", REQUIRED),
        Key("hidden_act", "mlp.activation", "gelu", *named(ACTIVATIONS)),
        Key("layer_norm_eps", "norm.epsilon", 1e-5),
        Key("tie_word_embeddings", "tied", False),
        _placement("use_parallel_residual", True, "parallel"),
        both_biases(True),
        rotary(fraction=0.25),
    ),
    rows=(
        Row("embed_in.weight", "stem/tokens"),
        *norm("final_layer_norm", "norm"),
        Row("layers.{i}.attention.query_key_value.weight", QKV, by_head),
        Row("layers.{i}.attention.query_key_value.bias", QKV_BIAS, biases_by_head),
        *linear("layers.{i}.attention.dense", "stack/attention/output"),
        *linear("layers.{i}.mlp.dense_h_to_4h", "stack/mlp/up"),
        *linear("layers.{i}.mlp.dense_4h_to_h", "stack/mlp/down"),
        *norm("layers.{i}.input_layernorm", "stack/attention_norm"),
        *norm("layers.{i}.post_attention_layernorm", "stack/mlp_norm"),
    ),
    heads={
        "GPTNeoXForCausalLM": causal("embed_out"),
        "GPTNeoXModel": body(),
        "GPTNeoXForSequenceClassification": classifier("score", Pool("last"), bias=False),
        "GPTNeoXForTokenClassification": classifier("classifier", None),
    },
    ignored=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
)


def _local_positions() -> Group:
    """`layer_types`: sliding layers have positions, full ones none."""
    plain = layer_types(
        lambda json: [
            ("sliding" if (i + 1) % json.get("sliding_window_pattern", 4) else "full") + "_attention"
            for i in range(json["num_hidden_layers"])
        ],
        usual=4096,
    )

    def read(json: Json) -> Overrides:
        found = plain.read(json)
        if "variants" not in found:
            return found if found.get("attention.window") else {**found, "attention.rotary": False}
        variants = {
            each.name: dict(each.overrides)
            | ({} if dict(each.overrides).get("attention.window") else {"attention.rotary": False})
            for each in found["variants"]
        }
        names = [found["pattern"][i % len(found["pattern"])] for i in range(json["num_hidden_layers"])]
        return patterned(names, variants)

    return Group(read, plain.write)


COHERE2 = LLAMA._replace(
    name="cohere2",
    base=transformer(attention=ROTARY, norm=Norm(kind="layer", placement="shared")),
    keys=(
        *without(sizes(tied=True), "rms_norm_eps"),
        Key("layer_norm_eps", "norm.epsilon", 1e-5),
        Key("logit_scale", "head.scale", 0.0625),
        both_biases(),
        rotary(interleaved=True),
        _local_positions(),
    ),
    heads={"Cohere2ForCausalLM": causal(), "Cohere2Model": body()},
)

GLM4 = LLAMA._replace(
    name="glm4",
    base=transformer(attention=Attention(num_heads=1, rotary=True, bias=True), norm=Norm(kind="rms", placement="both")),
    keys=(*sizes(head_dim=128), Key("attention_bias", "attention.bias", True), rotary(fraction=0.5, interleaved=True)),
    rows=(
        *but(
            decoder_rows(
                attention_norm="input_layernorm",
                attention_output_norm="post_self_attn_layernorm",
                mlp_norm="post_attention_layernorm",
                mlp_output_norm="post_mlp_layernorm",
            ),
            *paths("mlp", "gate", "up"),
        ),
        GATE_UP,
    ),
    heads=decoder_heads("Glm4"),
)
KIN = (PHI3, OLMO2, OLMO3, SMOLLM3, GEMMA, GRANITE, STARCODER2, STABLELM, GPT_NEOX, COHERE2, GLM4)
