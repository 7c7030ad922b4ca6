"""Families that read samples of sound, as data: wav2vec2, hubert."""

from __future__ import annotations

from typing import Any

from jaxmodel.interop.huggingface.encoders import ENCODER_KEYS, TWO_WAYS
from jaxmodel.interop.huggingface.keys import ACTIVATIONS, body, classes, headed, labels, named
from jaxmodel.interop.huggingface.kin import without
from jaxmodel.interop.huggingface.rows import LAYER_NORM, heads_of, linear, norm, transformer
from jaxmodel.interop.huggingface.table import (
    TOKEN,
    Family,
    Fixed,
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
from jaxmodel.models.parts import MLP, Head, Pool, Waveform

_SAID = {  # field of ours -> key
    **{"dims": "conv_dim", "kernels": "conv_kernel", "strides": "conv_stride", "norm": "feat_extract_norm"},
    **{"bias": "conv_bias", "activation": "feat_extract_activation", "mask_fraction": "mask_time_prob"},
    **{"mask_length": "mask_time_length", "position_kernel": "num_conv_pos_embeddings"},
    **{"position_groups": "num_conv_pos_embedding_groups"},
}
_NAMED = dict(zip(("read", "write"), named(ACTIVATIONS), strict=True))


def _waveform() -> Group:
    def read(json: Json) -> Overrides:
        found = ((field, json[key]) for field, key in _SAID.items() if key in json)
        said: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found}
        said["activation"] = _NAMED["read"](said.get("activation", "gelu"))
        if json.get("mask_feature_prob") and not said.get("mask_fraction", 0.05):
            raise ValueError("mask_feature_prob without mask_time_prob is not supported")
        stable = json.get("do_stable_layer_norm", False)
        return {"waveform": Waveform(**said), "norm.placement": "pre" if stable else "post", "stem.norm": not stable}

    def write(config: Transformer) -> dict[str, Any]:
        if config.waveform is None:
            return {}
        said = {key: getattr(config.waveform, field) for field, key in _SAID.items()}
        said = {key: list(each) if isinstance(each, tuple) else each for key, each in said.items()}
        said["feat_extract_activation"] = _NAMED["write"](config.waveform.activation)
        return {**said, "do_stable_layer_norm": config.norm.placement == "pre"}

    return Group(read, write)


def _kernel(size: int) -> Form:
    """A convolution over so many places: [out, in, size] on disk, [size * in, out] with us."""
    return fused(
        lambda x: x.reshape(size, -1, x.shape[-1]).transpose(2, 1, 0),
        lambda x, shape: x.transpose(2, 1, 0).reshape(shape),
    )


def _rows(config: Transformer) -> tuple[Row, ...]:
    waveform = config.waveform
    if waveform is None:
        return ()
    before, layer, place = "feature_extractor.conv_layers", "encoder.layers.{i}", "stem/waveform"
    convolution = "encoder.pos_conv_embed.conv"
    return (
        *(
            row
            for j, size in enumerate(waveform.kernels)
            for row in (
                *linear(f"{before}.{j}.conv", f"{place}/convolution_{j}", _kernel(size)),
                *norm(f"{before}.{j}.layer_norm", f"{place}/convolution_{j}_norm"),
            )
        ),
        *norm("feature_projection.layer_norm", f"{place}/norm"),
        *linear("feature_projection.projection", f"{place}/projection"),
        Row("masked_spec_embed", f"{place}/masked"),
        Row(f"{convolution}.bias", f"{place}/positions_bias"),
        Row(f"{convolution}.parametrizations.weight.original0", f"{place}/positions_scale", TOKEN),
        Row(
            f"{convolution}.parametrizations.weight.original1", f"{place}/positions", _kernel(waveform.position_kernel)
        ),
        *norm("encoder.layer_norm", "stem/norm"),
        *norm("encoder.layer_norm", "norm"),
        *heads_of(f"{layer}.attention", "q_proj", "k_proj", "v_proj"),
        *linear(f"{layer}.attention.out_proj", "stack/attention/output"),
        *linear(f"{layer}.feed_forward.intermediate_dense", "stack/mlp/up"),
        *linear(f"{layer}.feed_forward.output_dense", "stack/mlp/down"),
        *norm(f"{layer}.layer_norm", "stack/attention_norm"),
        *norm(f"{layer}.final_layer_norm", "stack/mlp_norm"),
    )


def _heads(name: str) -> dict[str, Heads]:
    """CTC has logits of each frame; a layer narrows what is classified, and may do so behind the mean as before it."""
    ctc = headed(
        lambda json: Head(outputs=json.get("vocab_size") or 32, bias=True),
        *("lm_head", lambda config: {"vocab_size": config.num_outputs}),
    )
    several = headed(
        lambda json: Head(outputs=labels(json), dim=json.get("classifier_proj_size", 256), bias=True),
        *("classifier", lambda config: {**classes(config), "classifier_proj_size": config.head.dim}),
        *(lambda json: Pool("mean"), linear("projector", "head/dense")),
    )
    return {f"{name}ForCTC": ctc, f"{name}Model": body(), f"{name}ForSequenceClassification": several}


WAV2VEC2 = Family(
    name="wav2vec2",
    prefix="wav2vec2.",
    base=transformer(
        vocab_size=None,
        waveform=Waveform(),
        max_length=32768,  # theirs has no bound; this is 11 minutes
        attention=TWO_WAYS,
        mlp=MLP(dim=1, bias=True),
        norm=LAYER_NORM,
    ),
    keys=(
        *without(ENCODER_KEYS, "layer_norm_eps"),
        Key("layer_norm_eps", "norm.epsilon", 1e-5),
        _waveform(),
        Fixed("use_weighted_layer_sum", False),
        Fixed("add_adapter", False),
        Fixed("adapter_attn_dim", None),
    ),
    rows=_rows,
    heads=_heads("Wav2Vec2"),
    renamed={
        r"conv\.weight_g$": "conv.parametrizations.weight.original0",
        r"conv\.weight_v$": "conv.parametrizations.weight.original1",
    },
)
HUBERT = WAV2VEC2._replace(
    name="hubert",
    prefix="hubert.",
    keys=(
        *without(WAV2VEC2.keys, "add_adapter", "adapter_attn_dim"),
        Fixed("feat_proj_layer_norm", True),
        Fixed("conv_pos_batch_norm", False),
    ),
    heads=_heads("Hubert"),
)
