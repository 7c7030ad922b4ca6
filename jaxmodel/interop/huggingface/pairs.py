"""Families of an encoder and a decoder, as data."""

from typing import Any

from jaxmodel.data.audio import HOP
from jaxmodel.interop.huggingface import keys as k
from jaxmodel.interop.huggingface.rows import COPY, SIZES, rows, windows
from jaxmodel.interop.huggingface.table import Group, Heads, Json, Overrides, Row
from jaxmodel.models.pairs import EncoderDecoder
from jaxmodel.models.parts import GATED, Head, Pool
from jaxmodel.models.presets import configured


def _base(words: str) -> EncoderDecoder:
    """What a family has in common; sizes come from config.json."""
    return configured(EncoderDecoder, f"base=pair *({SIZES}) decoder.cross.num_heads=1 {words}")


_ENCODER = Heads(keys=(Group(write=lambda config: {"is_encoder_decoder": False}),), base=True, part="encoder")
_BARE = k.inside("decoder", k.body())
_LOGITS = "transposed lm_head.weight decoder/head/logits\n"

# T5


def _read_activation(json: Json) -> Overrides:
    """Of the MLP, and whether it has a gate."""
    said = json.get("feed_forward_proj", "relu")
    usual = "gelu_new" if said == "gated-gelu" else said.rpartition("-")[2]
    names = k.GATED if json.get("is_gated_act", said.startswith("gated-")) else k.ACTIVATIONS
    ours = k.named(names)[0](json.get("dense_act_fn") or usual)
    return {"encoder.mlp.activation": ours, "decoder.mlp.activation": ours}


def _write_activation(config: EncoderDecoder) -> dict[str, Any]:
    ours = config.encoder.mlp.activation
    gated = ours in GATED
    name = "gelu_new" if ours == "geglu" else k.named(k.GATED if gated else k.ACTIVATIONS)[1](ours)
    said = f"gated-{name.removesuffix('_new')}" if gated else name
    return {"feed_forward_proj": said, "dense_act_fn": name, "is_gated_act": gated}


def _read_scaled(json: Json) -> Overrides:
    """A head that is the embedding table, and then scaled, or its own; newer versions say of both that it is tied."""
    tied = json.get("scale_decoder_outputs", json.get("tie_word_embeddings") is not False)
    return {"decoder.tied": tied, "decoder.head": Head(scale=json["d_model"] ** -0.5 if tied else None)}


def _write_scaled(config: EncoderDecoder) -> dict[str, Any]:
    return dict.fromkeys(("tie_word_embeddings", "scale_decoder_outputs"), config.decoder.tied)


_T5_ROWS = """
    copy   shared.weight                                                    encoder/stem/tokens
    norm   (encoder|decoder).final_layer_norm                               ()/norm
    copy   (encoder|decoder).block.0.layer.0.SelfAttention.relative_attention_bias.weight ()/relative/table
    norm   (encoder|decoder).block.{i}.layer.0.layer_norm                   ()/stack/attention_norm
    linear (encoder|decoder).block.{i}.layer.0.SelfAttention.(q|k|v|o)      ()/stack/attention/(query|key|value|output)
    norm   decoder.block.{i}.layer.1.layer_norm                             decoder/stack/cross_norm
    linear decoder.block.{i}.layer.1.EncDecAttention.(q|k|v|o)              decoder/stack/cross/(query|key|value|output)
    norm   (encoder.block.{i}.layer.1|decoder.block.{i}.layer.2).layer_norm (en|de)coder/stack/mlp_norm
    linear (encoder.block.{i}.layer.1|decoder.block.{i}.layer.2).DenseReluDense.(wi|wo) (en|de)coder/stack/mlp/(up|down)
"""


def _t5_rows(config: Any) -> tuple[Row, ...]:
    """A gate has a name, and what it multiplies another than what stands alone."""
    gated = getattr(config, "encoder", config).mlp.activation in GATED
    return rows(_T5_ROWS.replace("(wi|", "(wi_0|wi_1|").replace("(up|", "(gate|up|") if gated else _T5_ROWS)


T5 = k.family(
    "t5",
    """encoder,decoder( vocab_size d_model:embed_dim=512 d_ff:mlp.dim=2048 layer_norm_epsilon:norm.epsilon=1e-6 )
    encoder.attention,decoder.attention,decoder.cross( d_kv:head_dim=64 num_heads=8 )
    encoder.attention.relative,decoder.attention.relative( relative_attention_num_buckets:buckets=32
    relative_attention_max_distance:max_distance=128 )
    num_layers:encoder.num_layers decoder_start_token_id:start_token=null is_decoder==false""",
    Group(
        lambda json: {"decoder.num_layers": json.get("num_decoder_layers") or json["num_layers"]},
        lambda config: {"num_decoder_layers": config.decoder.num_layers},
    ),
    Group(_read_activation, _write_activation),
    prefix="",
    # No position is ever out of reach.
    base=_base("""*(max_length=1048576 attention.relative.buckets=32 mlp.activation=relu norm.epsilon=1e-6)
        *.attention,decoder.cross(scale=1)"""),
    rows=_t5_rows,
    heads={
        "T5ForConditionalGeneration": Heads(rows(_LOGITS), (Group(_read_scaled, _write_scaled),)),
        "T5Model": _BARE,
        "T5EncoderModel": _ENCODER,
    },
    ignored=(
        *("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    ),
)


# In the manner of BART

_ROWS = """
    copy   (encoder|decoder).embed_positions.weight                  ()/stem/positions
    norm   (encoder|decoder).layer(norm_embedding|_norm)             ()/(stem/norm|norm)
    linear (encoder|decoder).layers.{i}.self_attn.(q|k|v|out)_proj   ()/stack/attention/(query|key|value|output)
    linear decoder.layers.{i}.encoder_attn.(q|k|v|out)_proj          decoder/stack/cross/(query|key|value|output)
    norm   decoder.layers.{i}.encoder_attn_layer_norm                decoder/stack/cross_norm
    norm   (encoder|decoder).layers.{i}.(self_attn|final)_layer_norm ()/stack/(attention|mlp)_norm
    linear (encoder|decoder).layers.{i}.fc(1|2)                      ()/stack/mlp/(up|down)
"""
_KEYS = k.keys("""encoder,decoder( d_model:embed_dim activation_function:mlp.activation=gelu~plain )
    (encoder|decoder)_layers:().num_layers (encoder|decoder)_ffn_dim:().mlp.dim is_decoder==false
    (encoder|decoder)_attention_heads:().attention.num_heads decoder_attention_heads:decoder.cross.num_heads
    decoder_start_token_id:start_token=null
""")


def _words(text: str, bias: bool = False) -> Heads:
    """One logit a token of the vocabulary."""
    head = k.whatever(**{"decoder.head": Head(bias=bias)})
    return Heads(rows(text), k.keys(head, "tie_word_embeddings:decoder.tied=true"))


def _read_scale(json: Json) -> Overrides:
    """Whether embeddings are scaled by the root of their width."""
    scale = json["d_model"] ** 0.5 if json.get("scale_embedding") else None
    return {"encoder.stem.scale": scale, "decoder.stem.scale": scale}


# The last token of the target: the source again, moved on by one.
_DENSE = "linear classification_head.dense pool/dense"
_LAST_TOKEN = k.classifier("classification_head.out_proj", Pool("last", activation="tanh"), more=_DENSE)
BART = k.family(
    "bart",
    # With tie_word_embeddings=false, each part would have a table of its own.
    """encoder,decoder( vocab_size max_position_embeddings:max_length=1024 ) tie_word_embeddings==true
    normalize_before==false normalize_embedding==true add_final_layer_norm==false static_position_embeddings==false""",
    *(_KEYS, Group(_read_scale, lambda config: {"scale_embedding": config.encoder.stem.scale is not None})),
    prefix="model.",
    base=_base("""*(base=biased norm.placement=post stem(positions=learned position_offset=2 norm)) decoder.tied
        *.attention,decoder.cross(bias key_bias output_bias)"""),
    text=f"copy shared.weight encoder/stem/tokens{_ROWS}",
    heads={
        "BartForConditionalGeneration": _words(f"{_LOGITS}batched final_logits_bias decoder/head/bias", bias=True),
        "BartModel": _BARE,
        "BartForSequenceClassification": k.inside("decoder", _LAST_TOKEN, {"num_labels": 3}),
    },
    ignored=("*.embed_tokens.weight",),
)


# Whisper

_WHISPER_ROWS = """
    copy   decoder.embed_tokens.weight decoder/stem/tokens
    frames encoder.conv(1|2)           encoder/stem/convolution_(0|1)
"""


WHISPER = k.family(
    "whisper",
    """vocab_size:decoder.vocab_size max_target_positions:decoder.max_length=448 scale_embedding==false
    max_source_positions:encoder.max_length=1500 num_mel_bins:encoder.spectrogram.bands=80
    use_weighted_layer_sum==false""",
    _KEYS,
    # A position is two frames.
    k.implied("encoder.spectrogram.samples", lambda json: 2 * HOP * json.get("max_source_positions", 1500)),
    prefix="model.",
    base=_base("""*(base=biased stem.positions=learned) *.attention,decoder.cross(bias key_bias=false output_bias)
        encoder(vocab_size=none spectrogram.samples=320) decoder.tied shared=false"""),
    rows=rows(_ROWS + _WHISPER_ROWS, frames=(windows(3, dims=1), COPY)),
    heads={
        "WhisperForConditionalGeneration": _words("transposed proj_out.weight decoder/head/logits"),
        "WhisperModel": _BARE,
    },
)
