"""Families that read images and text, as data: towers side by side, and a tower before a language model."""

import math
from typing import Any

from jaxmodel.config import replace
from jaxmodel.interop.huggingface import keys as k
from jaxmodel.interop.huggingface.decoders import LLAMA
from jaxmodel.interop.huggingface.encoders import ENCODER_KEYS, images
from jaxmodel.interop.huggingface.rows import rows, within
from jaxmodel.interop.huggingface.table import Family, Group, Heads, Json, Overrides
from jaxmodel.models.pairs import Towers, VisionLanguage
from jaxmodel.models.parts import MLP

_ROWS = """
    copy   embeddings.(token|position)_embedding.weight  stem/(tokens|positions)
    linear encoder.layers.{i}.self_attn.(q|k|v|out)_proj stack/attention/(query|key|value|output)
    norm   encoder.layers.{i}.layer_norm(1|2)            stack/(attention|mlp)_norm
    linear encoder.layers.{i}.mlp.fc(1|2)                stack/mlp/(up|down)
"""
_TEXT_ROWS = f"{_ROWS}norm final_layer_norm norm\n"
_IMAGE_ROWS = f"""{_ROWS}
    copy    embeddings.class_embedding        stem/class_token
    patches embeddings.patch_embedding        stem/patches
"""
_POSITIONS = ("*embeddings.position_ids",)
_ALONE = Heads(base=True)


def _read_end(json: Json) -> Overrides:
    """Texts are pooled where they end: at the first such token, or, as the first configs have it, the highest id."""
    token = json.get("eos_token_id", 49407)
    if not isinstance(token, int):
        raise ValueError(f"eos_token_id={token!r} is not supported: only one id is")
    return {"pool.kind": "highest", "pool.token": None} if token == 2 else {"pool.token": token}


def _tower(said: str, *keyed: Any, **others: Any) -> Family:
    """A tower alone, "clip_text_model", with "text_model." before its names; the rest as `family` takes it."""
    given = {"prefix": said.split()[0].partition("_")[2] + ".", "ignored": _POSITIONS}
    return k.family(f"{said} base=biased stem.positions=learned head=none", ENCODER_KEYS, *keyed, **given, **others)


def _clip_heads(name: str, projection: str) -> dict[str, Heads]:
    """A tower alone, and with the projection to the space of both."""
    more = Heads(rows(f"transposed {projection}.weight pool/projection"), k.keys("projection_dim:pool.dim=512"))
    return {name: _ALONE, f"{name}WithProjection": more}


def _pair(name: str, architecture: str, image: Family, text: Family, keys: str, more: str, **fields: Any) -> Family:
    """Two towers, whose vectors have length 1."""
    unit = {"pool.normalize": True}
    return k.family(
        *(name, k.nested("text_config", "text", text), k.nested("vision_config", "image", image), keys),
        prefix="",
        base=Towers(image=replace(image.base, unit), text=replace(text.base, unit), **fields),
        rows=(*within("text_model.", "text", text.rows), *within("vision_model.", "image", image.rows), *rows(more)),
        heads={architecture: _ALONE},
        ignored=_POSITIONS,
    )


_CLIP = "hidden_act:mlp.activation=quick_gelu~plain layer_norm_eps:norm.epsilon=1e-5"
CLIP_TEXT = _tower(
    "clip_text_model pool(kind=token token=49407)",
    f"""{_CLIP} vocab_size=49408 max_position_embeddings:max_length=77 hidden_size:embed_dim=512
    intermediate_size:mlp.dim=2048 num_attention_heads:attention.num_heads=8""",
    Group(_read_end, lambda config: {"eos_token_id": (config.pool and config.pool.token) or 2}),
    text=_TEXT_ROWS,
    heads=_clip_heads("CLIPTextModel", "text_projection"),
)
CLIP_IMAGE = _tower(
    *("clip_vision_model attention.causal=false stem.norm pool.norm", _CLIP, images(patch=32, bias=False)),
    text=f"{_IMAGE_ROWS}norm (pre_layr|post_layer)norm (stem|pool)/norm",
    heads=_clip_heads("CLIPVisionModel", "visual_projection"),
)
CLIP = _pair(
    *("clip", "CLIPModel", CLIP_IMAGE, CLIP_TEXT),
    "logit_scale_init_value:logit_scale=2.6592 projection_dim:text.pool.dim,image.pool.dim=512",
    "copy logit_scale logit_scale\ntransposed (text|visual)_projection.weight (text|image)/pool/projection",
)
_SIGLIP = "hidden_act:mlp.activation=gelu_pytorch_tanh~plain layer_norm_eps:norm.epsilon=1e-6"
SIGLIP_TEXT = _tower(
    "siglip_text_model attention.causal=false stem.slots pool(kind=slot dim=1 bias)",
    f"{_SIGLIP} vocab_size=32000 max_position_embeddings:max_length=64 projection_size:pool.dim=null",
    k.implied("pool.dim", lambda json: json.get("projection_size") or json.get("hidden_size", 768)),
    text=f"{_TEXT_ROWS}linear head pool/projection",
    heads={"SiglipTextModel": _ALONE},
)
_SIGLIP_HEAD = Group(
    lambda json: {} if json.get("vision_use_head", True) else {"pool": None},
    lambda config: {"vision_use_head": config.pool is not None},
)
SIGLIP_IMAGE = _tower(
    *("siglip_vision_model attention.causal=false pool.kind=attention", _SIGLIP),
    *(images(class_token=False), _SIGLIP_HEAD),
    text=f"""{_IMAGE_ROWS}
        norm       post_layernorm                norm
        token      head.probe                    pool/probe
        transposed head.attention.in_proj_weight pool/attention/query+key+value
        flat       head.attention.in_proj_bias   pool/attention/query_bias+key_bias+value_bias
        linear     head.attention.out_proj       pool/attention/output
        norm       head.layernorm                pool/mlp_norm
        linear     head.mlp.fc(1|2)              pool/mlp/(up|down)
    """,
    heads={"SiglipVisionModel": _ALONE},
)
SIGLIP = _pair(
    *("siglip", "SiglipModel", SIGLIP_IMAGE, SIGLIP_TEXT, "", "batched logit_(scale|bias) logit_()"),
    **{"logit_scale": math.log(10), "logit_bias": True},
)

# LLaVA: what its parts are where config.json does not say.
_LLAMA = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
_LLAMA |= {"num_attention_heads": 32, "max_position_embeddings": 2048}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_LARGE |= {"image_size": 336, "patch_size": 14}


def _read_text(json: Json) -> Overrides:
    """What the text and all around it say together."""
    text = {**_LLAMA, **(json.get("text_config") or {})}
    tied = json.get("tie_word_embeddings") or text.get("tie_word_embeddings") or False
    return {"projector.dim": text["hidden_size"], "text.tied": tied}


def _write_text(config: VisionLanguage) -> dict[str, Any]:
    return {"image_seq_length": config.num_vectors, "tie_word_embeddings": config.text.tied}


LLAVA = k.family(
    *("llava", k.nested("vision_config", "image", CLIP_IMAGE, _LARGE), k.nested("text_config", "text", LLAMA, _LLAMA)),
    """image_token_index:text.stem.image_token=32000 projector_hidden_act:projector.activation=gelu~plain
    multimodal_projector_bias:projector.bias=true vision_feature_layer:feature_layer=-2~int
    vision_feature_select_strategy:class_token=default~default>false,full>true""",
    Group(_read_text, _write_text),
    prefix="",
    base=VisionLanguage(CLIP_IMAGE.base, LLAMA.base, MLP(dim=1, activation="gelu", bias=True)),
    rows=(
        *within("vision_tower.", "image", CLIP_IMAGE.rows),
        *within("language_model.model.", "text", LLAMA.rows),
        *rows("transposed language_model.lm_head.weight text/head/logits"),
        *rows("linear multi_modal_projector.linear_(1|2) projector/(up|down)"),
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
