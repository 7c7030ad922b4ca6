"""Families that read samples of sound, as data: wav2vec2, hubert."""

from jaxmodel.interop.huggingface import keys as k
from jaxmodel.interop.huggingface.encoders import ENCODER_KEYS
from jaxmodel.interop.huggingface.rows import COPY, rows, windows
from jaxmodel.interop.huggingface.table import Family, Group, Json, Overrides, Row
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import Head, Pool, Waveform


def _read_masks(json: Json) -> Overrides:
    """Where channels are masked, frames are; a norm stands before the blocks or behind them."""
    if json.get("mask_feature_prob") and not json.get("mask_time_prob", 0.05):
        raise ValueError("mask_feature_prob without mask_time_prob is not supported")
    return {"stem.norm": not json.get("do_stable_layer_norm")}


_ROWS = """
    norm   feature_projection.layer_norm                                 stem/waveform/norm
    linear feature_projection.projection                                 stem/waveform/projection
    copy   masked_spec_embed                                             stem/waveform/masked
    copy   encoder.pos_conv_embed.conv.bias                              stem/waveform/positions_bias
    token  encoder.pos_conv_embed.conv.parametrizations.weight.original0 stem/waveform/positions_scale
    places encoder.pos_conv_embed.conv.parametrizations.weight.original1 stem/waveform/positions
    norm   encoder.layer_norm                                            stem/norm
    norm   encoder.layer_norm                                            norm
    linear encoder.layers.{i}.attention.(q|k|v|out)_proj                 stack/attention/(query|key|value|output)
    linear encoder.layers.{i}.feed_forward.(intermediate|output)_dense   stack/mlp/(up|down)
    norm   encoder.layers.{i}.(layer_norm|final_layer_norm)              stack/(attention|mlp)_norm
"""
_CONVOLUTION = """
    over_{size} feature_extractor.conv_layers.{j}.conv       stem/waveform/convolution_{j}
    norm        feature_extractor.conv_layers.{j}.layer_norm stem/waveform/convolution_{j}_norm
"""


def _rows(config: Transformer) -> tuple[Row, ...]:
    sound = config.waveform or Waveform()
    before = "".join(_CONVOLUTION.format(j=j, size=size) for j, size in enumerate(sound.kernels))
    forms = {f"over_{size}": (windows(size, 1), COPY) for size in sound.kernels}
    return rows(before + _ROWS, places=windows(sound.position_kernel, 1), **forms)


def _family(name: str, classes: str, said: str) -> Family:
    """One of them, with keys of its own, whose architecture classes' names begin so.

    CTC has logits of each frame; a layer narrows what is classified, and may do so behind the mean as before it.
    """
    return k.family(
        # Theirs has no bound of a length; this is 11 minutes.
        f"{name} base=biased attention.causal=false vocab_size=none max_length=32768 waveform.norm=group",
        *(ENCODER_KEYS, Group(_read_masks), said),
        """layer_norm_eps:norm.epsilon=1e-5 do_stable_layer_norm:norm.placement=false~false>post,true>pre
        conv_dim:waveform.dims=[512,512,512,512,512,512,512]~list conv_bias:waveform.bias=false
        conv_kernel:waveform.kernels=[10,3,3,3,3,2,2]~list conv_stride:waveform.strides=[5,2,2,2,2,2,2]~list
        feat_extract_norm:waveform.norm=group feat_extract_activation:waveform.activation=gelu~plain
        mask_time_prob:waveform.mask_fraction=0.05 mask_time_length:waveform.mask_length=10
        num_conv_pos_embeddings:waveform.position_kernel=128 num_conv_pos_embedding_groups:waveform.position_groups=16
        use_weighted_layer_sum==false""",
        rows=_rows,
        heads={
            f"{classes}ForCTC": k.headed(Head(bias=True), "lm_head", "vocab_size:head.outputs=32"),
            f"{classes}Model": k.body(),
            f"{classes}ForSequenceClassification": k.classifier(
                *("classifier", Pool("mean"), "classifier_proj_size:head.dim=256", "linear projector head/dense")
            ),
        },
        renamed={rf"conv\.weight_{old}$": f"conv.parametrizations.weight.original{i}" for i, old in enumerate("gv")},
    )


WAV2VEC2 = _family("wav2vec2", "Wav2Vec2", "add_adapter==false adapter_attn_dim==null")
HUBERT = _family("hubert", "Hubert", "feat_proj_layer_norm==true conv_pos_batch_norm==false")
