"""Families that read images and text, as data: towers side by side, and a tower before a language model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxmodel.config import replace
from jaxmodel.interop.huggingface import table
from jaxmodel.interop.huggingface.decoders import LLAMA
from jaxmodel.interop.huggingface.encoders import TWO_WAYS, images
from jaxmodel.interop.huggingface.keys import ACTIVATIONS, named, nested
from jaxmodel.interop.huggingface.rows import LAYER_NORM, heads_of, linear, norm, transformer, within
from jaxmodel.interop.huggingface.table import BATCHED, TRANSPOSED, Family, Group, Heads, Json, Key, Overrides, Row
from jaxmodel.models.configs import Transformer
from jaxmodel.models.multimodal import Towers, VisionLanguage
from jaxmodel.models.parts import MLP, Attention, Pool, Stem

_LAYER = "encoder.layers.{i}"
_ROWS = (  # of both towers, as far as they have them
    Row("embeddings.token_embedding.weight", "stem/tokens"),
    Row("embeddings.position_embedding.weight", "stem/positions"),
    *heads_of(f"{_LAYER}.self_attn", "q_proj", "k_proj", "v_proj"),
    *linear(f"{_LAYER}.self_attn.out_proj", "stack/attention/output"),
    *norm(f"{_LAYER}.layer_norm1", "stack/attention_norm"),
    *norm(f"{_LAYER}.layer_norm2", "stack/mlp_norm"),
    *linear(f"{_LAYER}.mlp.fc1", "stack/mlp/up"),
    *linear(f"{_LAYER}.mlp.fc2", "stack/mlp/down"),
)
_IMAGE_ROWS = (
    *_ROWS,
    Row("embeddings.class_embedding", "stem/class_token"),
    Row("embeddings.patch_embedding.weight", "stem/patches", table.patches),
    Row("embeddings.patch_embedding.bias", "stem/patches_bias"),
)
_POSITIONS = ("*embeddings.position_ids",)
_LEARNED = Stem(positions="learned")


def _base(attention: Attention, stem: Stem, pool: Pool) -> Transformer:
    return transformer(attention=attention, mlp=MLP(dim=1, bias=True), norm=LAYER_NORM, stem=stem, pool=pool, head=None)


def _sizes(activation: str, width: int, dim: int, heads: int, epsilon: float) -> tuple[Key, ...]:
    """The keys that both towers have, and what they are where config.json does not say."""
    return (
        Key("hidden_size", "embed_dim", width),
        Key("intermediate_size", "mlp.dim", dim),
        Key("num_hidden_layers", "num_layers", 12),
        Key("num_attention_heads", "attention.num_heads", heads),
        Key("hidden_act", "mlp.activation", activation, *named(ACTIVATIONS)),
        Key("layer_norm_eps", "norm.epsilon", epsilon),
    )


def _text_sizes(vocab_size: int, length: int) -> tuple[Key, ...]:
    return Key("vocab_size", "vocab_size", vocab_size), Key("max_position_embeddings", "max_length", length)


def _read_end(json: Json) -> Overrides:
    """Texts are pooled where they end: at the first such token, or, as the first configs have it, the highest id."""
    token = json.get("eos_token_id", 49407)
    if not isinstance(token, int):
        raise ValueError(f"eos_token_id={token!r} is not supported: only one id is")
    return {"pool.kind": "highest", "pool.token": None} if token == 2 else {"pool.token": token}


def _pool(config: Transformer) -> Pool:
    return config.pool or Pool()


_END = Group(_read_end, lambda config: {"eos_token_id": _pool(config).token or 2})
_ALONE = Heads(lambda json: {}, (), lambda config: {}, base=True)


def _clip_heads(name: str, projection: str) -> Mapping[str, Heads]:
    """A tower alone, and with the projection to the space of both."""

    def heads(projected: bool, rows: tuple[Row, ...]) -> Heads:
        def write(config: Transformer) -> dict[str, Any] | None:
            dim = _pool(config).dim
            return None if (dim is not None) != projected else {"projection_dim": dim} if projected else {}

        return Heads(
            lambda json: {"pool.dim": json.get("projection_dim", 512) if projected else None},
            rows,
            write,
            base=not projected,
        )

    row = Row(f"{projection}.weight", "pool/projection", TRANSPOSED)
    return {name: heads(False, ()), f"{name}WithProjection": heads(True, (row,))}


def _pair(
    name: str,
    architecture: str,
    image: Family,
    text: Family,
    keys: tuple[Key | Group, ...],
    rows: tuple[Row, ...],
    **fields: Any,
) -> Family:
    """Two towers, whose vectors have length 1."""
    unit = {"pool.normalize": True}
    return Family(
        name,
        "",
        Towers(image=replace(image.base, unit), text=replace(text.base, unit), **fields),
        (nested("text_config", "text", text), nested("vision_config", "image", image), *keys),
        (*within("text_model.", "text", text), *within("vision_model.", "image", image), *rows),
        {architecture: _ALONE},
        _POSITIONS,
    )


CLIP_TEXT = Family(
    "clip_text_model",
    "text_model.",
    _base(Attention(num_heads=1, bias=True, output_bias=True), _LEARNED, Pool("token", token=49407)),
    (*_text_sizes(49408, 77), *_sizes("quick_gelu", 512, 2048, 8, 1e-5), _END),
    (*_ROWS, *norm("final_layer_norm", "norm")),
    _clip_heads("CLIPTextModel", "text_projection"),
    _POSITIONS,
)
CLIP_IMAGE = Family(
    "clip_vision_model",
    "vision_model.",
    _base(TWO_WAYS, Stem(positions="learned", norm=True), Pool("first", norm=True)),
    (*_sizes("quick_gelu", 768, 3072, 12, 1e-5), images(patch=32, bias=False)),
    (*_IMAGE_ROWS, *norm("pre_layrnorm", "stem/norm"), *norm("post_layernorm", "pool/norm")),
    _clip_heads("CLIPVisionModel", "visual_projection"),
    _POSITIONS,
)
CLIP = _pair(
    "clip",
    "CLIPModel",
    CLIP_IMAGE,
    CLIP_TEXT,
    (
        Key("logit_scale_init_value", "logit_scale", 2.6592),
        Group(
            lambda json: dict.fromkeys(("text.pool.dim", "image.pool.dim"), json.get("projection_dim", 512)),
            lambda config: {"projection_dim": config.text.pool.dim},
        ),
    ),
    (
        Row("text_projection.weight", "text/pool/projection", TRANSPOSED),
        Row("visual_projection.weight", "image/pool/projection", TRANSPOSED),
        Row("logit_scale", "logit_scale"),
    ),
)
_SIGLIP = _sizes("gelu_pytorch_tanh", 768, 3072, 12, 1e-6)
SIGLIP_TEXT = Family(
    "siglip_text_model",
    "text_model.",
    _base(TWO_WAYS, Stem(positions="learned", slots=True), Pool("slot", dim=1, bias=True)),
    (
        *_text_sizes(32000, 64),
        *_SIGLIP,
        Group(
            lambda json: {"pool.dim": json.get("projection_size") or json.get("hidden_size", 768)},
            lambda config: {"projection_size": _pool(config).dim},
        ),
    ),
    (*_ROWS, *norm("final_layer_norm", "norm"), *linear("head", "pool/projection")),
    {"SiglipTextModel": _ALONE},
    _POSITIONS,
)
_SEE = tuple(f"pool/attention/{name}" for name in ("query", "key", "value"))
SIGLIP_IMAGE = Family(
    "siglip_vision_model",
    "vision_model.",
    _base(TWO_WAYS, _LEARNED, Pool("attention")),
    (
        *_SIGLIP,
        images(class_token=False),
        Group(
            lambda json: {} if json.get("vision_use_head", True) else {"pool": None},
            lambda config: {"vision_use_head": config.pool is not None},
        ),
    ),
    (
        *_IMAGE_ROWS,
        *norm("post_layernorm", "norm"),
        Row("head.probe", "pool/probe", table.TOKEN),
        Row("head.attention.in_proj_weight", _SEE, TRANSPOSED),
        Row("head.attention.in_proj_bias", tuple(f"{each}_bias" for each in _SEE), table.FLAT),
        *linear("head.attention.out_proj", "pool/attention/output"),
        *norm("head.layernorm", "pool/mlp_norm"),
        *linear("head.mlp.fc1", "pool/mlp/up"),
        *linear("head.mlp.fc2", "pool/mlp/down"),
    ),
    {"SiglipVisionModel": _ALONE},
    _POSITIONS,
)
SIGLIP = _pair(
    "siglip",
    "SiglipModel",
    SIGLIP_IMAGE,
    SIGLIP_TEXT,
    (),
    (Row("logit_scale", "logit_scale", BATCHED), Row("logit_bias", "logit_bias", BATCHED)),
    logit_scale=math.log(10),
    logit_bias=True,
)

# LLaVA: what its parts are where config.json does not say.
_LLAMA = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
_LLAMA |= {"num_attention_heads": 32, "max_position_embeddings": 2048}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_LARGE |= {"image_size": 336, "patch_size": 14}


def _read_seen(json: Json) -> Overrides:
    """Which block of the tower is read, with its class token or not; what the text and all around it say together."""
    layer, how = json.get("vision_feature_layer", -2), json.get("vision_feature_select_strategy", "default")
    if not isinstance(layer, int) or how not in ("default", "full"):
        raise ValueError(f"vision_feature_layer={layer!r}, {how}: only one layer is supported, default or full")
    text = json.get("text_config") or {}
    tied = json.get("tie_word_embeddings") or text.get("tie_word_embeddings") or False
    width = text.get("hidden_size", _LLAMA["hidden_size"])
    return {"feature_layer": layer, "class_token": how == "full", "projector.dim": width, "text.tied": tied}


def _write_seen(config: VisionLanguage) -> dict[str, Any]:
    return {
        "vision_feature_layer": config.feature_layer,
        "vision_feature_select_strategy": "full" if config.class_token else "default",
        "image_seq_length": config.num_vectors,
        "tie_word_embeddings": config.text.tied,
    }


LLAVA = Family(
    name="llava",
    prefix="",
    base=VisionLanguage(CLIP_IMAGE.base, LLAMA.base, MLP(dim=1, activation="gelu", bias=True)),
    keys=(
        nested("vision_config", "image", CLIP_IMAGE, _LARGE),
        nested("text_config", "text", LLAMA, _LLAMA),
        Key("image_token_index", "text.stem.image_token", 32000),
        Key("projector_hidden_act", "projector.activation", "gelu", *named(ACTIVATIONS)),
        Key("multimodal_projector_bias", "projector.bias", True),
        Group(_read_seen, _write_seen),
    ),
    rows=(
        *within("vision_tower.", "image", CLIP_IMAGE),
        *within("language_model.model.", "text", LLAMA),
        Row("language_model.lm_head.weight", "text/head/logits", TRANSPOSED),
        *linear("multi_modal_projector.linear_1", "projector/up"),
        *linear("multi_modal_projector.linear_2", "projector/down"),
    ),
    heads={"LlavaForConditionalGeneration": _ALONE},
    ignored=(*_POSITIONS, *LLAMA.ignored),
    renamed={
        r"^model\.language_model\.": "language_model.model.",
        r"^lm_head\.": "language_model.lm_head.",
        r"^model\.": "",
        r"^vision_tower\.vision_model\.": "vision_tower.",
    },
)
TOWERS = (LLAVA, CLIP, CLIP_TEXT, CLIP_IMAGE, SIGLIP, SIGLIP_TEXT, SIGLIP_IMAGE)
