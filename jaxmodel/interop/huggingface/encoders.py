"""Families of encoders, of text and of images, as data."""

from typing import Any

from jaxmodel.interop.huggingface import keys as k
from jaxmodel.interop.huggingface import layers
from jaxmodel.interop.huggingface.decoders import BIASES
from jaxmodel.interop.huggingface.rows import rows
from jaxmodel.interop.huggingface.table import Group, Heads, Json, Keys, Overrides, Row, read_keys, write_keys
from jaxmodel.models.configs import Transformer, Variant
from jaxmodel.models.parts import GATED, Head, Images, Pool

# Encoders in the manner of BERT

ENCODER_KEYS = k.keys("""
    hidden_size:embed_dim=768 num_hidden_layers:num_layers=12 num_attention_heads:attention.num_heads=12
    intermediate_size:mlp.dim=3072 hidden_act:mlp.activation=gelu~plain layer_norm_eps:norm.epsilon=1e-12
""")
BASE = "base=biased attention.causal=false stem.positions=learned"
TANH = Pool("first", activation="tanh")
POOLER = "linear pooler.dense pool/dense"
CLASSIFIER_POOL = "linear classifier.dense pool/dense"


def masked(logits: str, dense: str, norm: str, said: str | Keys = "") -> Heads:
    """Logits of masked tokens by the embedding table, behind a dense layer with a non-linearity, and a norm.

    Args:
      logits: name of that layer, if it were one; it has a bias.
      dense: name of the dense layer.
      norm: that of the norm.
      said: keys which say what the head has otherwise; without, the non-linearity is gelu.
    """
    more = f"linear {dense} head/dense\nnorm {norm} head/norm"
    return k.headed(Head(activation="gelu", bias=True), logits, said, more)


def encoder_heads(name: str, words: Heads, bare: Heads, classes: Heads) -> dict[str, Heads]:
    """The architectures of a family of encoders, "Bert": the last one gives each token a class."""
    return {
        **{f"{name}ForMaskedLM": words, f"{name}Model": bare, f"{name}ForSequenceClassification": classes},
        f"{name}ForTokenClassification": k.classifier("classifier", None),
    }


ACTIVATION = "hidden_act:head.activation=gelu~plain"
_HEAD = "cls.predictions.transform"  # before the logits of masked tokens
BERT_BODY = """
    copy   embeddings.(word|position|token_type)_embeddings.weight        stem/(tokens|positions|types)
    norm   embeddings.LayerNorm                                           stem/norm
    linear encoder.layer.{i}.attention.self.(query|key|value)             stack/attention/(query|key|value)
    linear encoder.layer.{i}.(attention.output|intermediate|output).dense stack/(attention/output|mlp/up|mlp/down)
    norm   encoder.layer.{i}.(attention.output|output).LayerNorm          stack/(attention|mlp)_norm
"""
BERT = k.family(
    *(f"bert {BASE} norm.placement=post stem(num_types=2 norm) tied", ENCODER_KEYS),
    # A vector for one kind of segments is always added, which sets it apart from DistilBERT.
    """vocab_size tie_word_embeddings==true is_decoder==false add_cross_attention==false
    max_position_embeddings:max_length=512 type_vocab_size:stem.num_types=2~or_one position_embedding_type==absolute""",
    text=BERT_BODY + POOLER,
    heads=encoder_heads(
        *("Bert", masked("cls.predictions", f"{_HEAD}.dense", f"{_HEAD}.LayerNorm", ACTIVATION)),
        *(k.body(TANH), k.classifier("classifier", TANH)),
    ),
    ignored=("*embeddings.position_ids", "cls.seq_relationship.*", "cls.predictions.decoder.*"),
    renamed={r"\.gamma$": ".weight", r"\.beta$": ".bias"},
)
# Positions begin behind the row of padding, whose token's id is how many rows come before theirs.
_BEHIND = Group(
    lambda json: {"max_length": json.get("max_position_embeddings", 512) - json.get("pad_token_id", 1) - 1},
    lambda config: {"max_position_embeddings": config.max_length + config.stem.position_offset},
)
ROBERTA = BERT._replace(
    name="roberta",
    prefix="roberta.",
    keys=k.keys(k.without(BERT.keys, "max_position_embeddings"), "pad_token_id:stem.position_offset=1~next", _BEHIND),
    rows=rows(BERT_BODY),
    heads=encoder_heads(
        *("Roberta", masked("lm_head", "lm_head.dense", "lm_head.layer_norm"), k.body(TANH, POOLER)),
        k.classifier("classifier.out_proj", TANH, more=CLASSIFIER_POOL),
    ),
    ignored=("*embeddings.position_ids", "lm_head.decoder.*"),
)
_ACTIVATION = "activation:head.activation=gelu~plain"
DISTILBERT = k.family(
    f"distilbert {BASE} norm(placement=post epsilon=1e-12) stem.norm tied",
    """vocab_size dim:embed_dim=768 n_layers:num_layers=6 n_heads:attention.num_heads=12 hidden_dim:mlp.dim=3072
    activation:mlp.activation=gelu~plain max_position_embeddings:max_length=512 tie_word_embeddings==true""",
    text="""
        copy   embeddings.(word|position)_embeddings.weight                  stem/(tokens|positions)
        norm   embeddings.LayerNorm                                          stem/norm
        linear transformer.layer.{i}.attention.(q|k|v|out)_lin               stack/attention/(query|key|value|output)
        linear transformer.layer.{i}.ffn.lin(1|2)                            stack/mlp/(up|down)
        norm   transformer.layer.{i}.(sa|output)_layer_norm                  stack/(attention|mlp)_norm
    """,
    heads=encoder_heads(
        *("DistilBert", masked("vocab_projector", "vocab_transform", "vocab_layer_norm", _ACTIVATION), k.body()),
        k.classifier("classifier", Pool("first", activation="relu"), more="linear pre_classifier pool/dense"),
    ),
    ignored=("*embeddings.position_ids", "vocab_projector.weight"),
)

# Encoders of images, in the manner of ViT


def images(patch: int = 16, **usual: Any) -> Group:
    """Sizes of images and of their patches; `usual` is what else a family's patches are."""
    sizes = k.keys(f"image_size:size=224 patch_size:patch={patch} num_channels:channels=3")

    def read(json: Json) -> Overrides:
        found = Images(**read_keys(sizes, json, "images"), **usual)
        return {"images": found, "vocab_size": None, "max_length": found.length}

    return Group(read, lambda config: write_keys(sizes, config.images))


_VIT_ROWS = """
    token   embeddings.cls_token                                     stem/class_token
    batched embeddings.(position_embeddings|mask_token)              stem/(positions|mask_token)
    patches embeddings.patch_embeddings.projection                   stem/patches
    linear  encoder.layer.{i}.attention.attention.(query|key|value)  stack/attention/(query|key|value)
    linear  encoder.layer.{i}.attention.output.dense                 stack/attention/output
    norm    layernorm                                                norm
    linear  pooler.dense                                             pool/dense
"""
VIT = k.family(
    *(f"vit {BASE}", ENCODER_KEYS, images(), "qkv_bias:attention.bias=true pooler_act==tanh"),
    text=f"""{_VIT_ROWS}
        linear encoder.layer.{{i}}.(intermediate|output).dense stack/mlp/(up|down)
        norm   encoder.layer.{{i}}.layernorm_(before|after)    stack/(attention|mlp)_norm
    """,
    heads={"ViTForImageClassification": k.classifier("classifier", Pool("first")), "ViTModel": k.body(TANH)},
)


def _width(hidden_size: int, ratio: float, gated: bool) -> int:
    """The MLP's, as a ratio to the model's; a gated one has two thirds of that, in whole eights."""
    dim = int(hidden_size * ratio)
    return (int(dim * 2 / 3) + 7) // 8 * 8 if gated else dim


def _read_mlp(json: Json) -> Overrides:
    gated = json.get("use_swiglu_ffn", False)
    name = "swiglu" if gated else k.read_activation(json.get("hidden_act", "gelu"))
    return {"mlp.dim": _width(json.get("hidden_size", 768), json.get("mlp_ratio", 4), gated), "mlp.activation": name}


def _write_mlp(config: Transformer) -> dict[str, Any]:
    gated, dim = config.mlp.activation == "swiglu", config.mlp.dim
    whole = (n for n in range(1, 65) if _width(config.embed_dim, n, gated) == dim)
    said = {} if gated else {"hidden_act": k.write_activation(config.mlp.activation)}
    return {"use_swiglu_ffn": gated, "mlp_ratio": next(whole, dim / config.embed_dim), **said}


def _dinov2_rows(config: Transformer) -> tuple[Row, ...]:
    gated = config.mlp.activation in GATED
    mlp = "weights_(in|out) stack/mlp/(gate+up|down)" if gated else "fc(1|2) stack/mlp/(up|down)"
    return rows(f"""{_VIT_ROWS}
        norm   encoder.layer.{{i}}.norm(1|2)                stack/(attention|mlp)_norm
        copy   encoder.layer.{{i}}.layer_scale(1|2).lambda1 stack/(attention|mlp)_scale
        linear encoder.layer.{{i}}.mlp.{mlp}
    """)


DINOV2 = k.family(
    *(f"dinov2 {BASE}", k.without(ENCODER_KEYS, "intermediate_size", "hidden_act")),
    *(Group(_read_mlp, _write_mlp), images(patch=14)),
    """layer_norm_eps:norm.epsilon=1e-6 use_mask_token:images.mask_token=true layerscale_value:layer_scale=1.0
    qkv_bias:attention.bias=true""",
    rows=_dinov2_rows,
    heads={
        "Dinov2ForImageClassification": k.classifier("classifier", Pool("first_mean")),
        "Dinov2Model": k.body(Pool()),
    },
)

# ModernBERT: layers with a window and layers without, each kind with positions of its own; the first has one norm.

_KINDS = {"full_attention": ("global", 160000.0), "sliding_attention": ("local", 10000.0)}


def _read_layers(json: Json) -> Overrides:
    period = json.get("global_attn_every_n_layers", 3)
    usual = ["sliding_attention" if i % period else "full_attention" for i in range(json["num_hidden_layers"])]
    first, *others = (_KINDS[kind][0] for kind in json.get("layer_types") or usual)
    variants: dict[str, Overrides] = {}
    for kind, (name, theta) in _KINDS.items():
        said = (json.get("rope_parameters") or {}).get(kind) or json.get("rope_scaling") or {}
        found = layers.read_rope(said, json, theta=json.get(f"{name}_rope_theta", theta))
        window = json.get("local_attention", 128) // 2 + 1 if name == "local" else None
        variants[name] = {**found, "attention.window": window}
    alone = Variant("first", (*variants[first].items(), ("norm.attention", False)))
    found = layers.patterned(others or [first], variants)
    return {**found, "first": ("first",), "variants": (alone, *found.get("variants", ()))}


def _write_layers(config: Transformer) -> dict[str, Any]:
    kinds = [layers.slides(layer) for layer in layers.blocks(config)]
    ropes = {kind: {"rope_theta": theta, "rope_type": "default"} for kind, (_, theta) in _KINDS.items()}
    ropes |= {layers.slides(each): layers.write_rope(each.attention) for each in layers.blocks(config)}
    window = 2 * (layers.window_of(config) or 65) - 2
    return {"layer_types": kinds, "local_attention": window, "rope_parameters": ropes}


_DENSE = "classifier_activation:head.activation=gelu~plain classifier_bias:head.dense_bias=false"
_POOLED = f"{_DENSE} classifier_pooling:pool.kind=cls~cls>first,mean>mean"
_BEFORE = "linear head.dense head/dense\nnorm head.norm head/norm"
MODERNBERT = k.family(
    *("modernbert attention(causal=false rotary) norm.kind=layer stem.norm", ENCODER_KEYS),
    f"""vocab_size=50368 num_hidden_layers:num_layers intermediate_size:mlp.dim=1152
    hidden_activation:mlp.activation=gelu~gated max_position_embeddings:max_length=8192 norm_eps:norm.epsilon=1e-5
    norm_bias:norm.bias=false mlp_bias:mlp.bias=false tie_word_embeddings:tied=true {BIASES}""",
    Group(_read_layers, _write_layers),
    prefix="model.",
    text="""
        copy   embeddings.tok_embeddings.weight stem/tokens
        norm   embeddings.norm                  stem/norm
        linear layers.{i}.attn.Wqkv             stack/attention/query+key+value
        linear layers.{i}.mlp.Wi                stack/mlp/gate+up
        linear layers.{i}.(attn|mlp).Wo         stack/(attention/output|mlp/down)
        norm   layers.{i}.(attn|mlp)_norm       stack/(attention|mlp)_norm
        norm   final_norm                       norm
    """,
    heads={
        "ModernBertForMaskedLM": masked("decoder", "head.dense", "head.norm", f"{_DENSE} decoder_bias:head.bias=true"),
        "ModernBertModel": k.body(),
        "ModernBertForSequenceClassification": k.classifier("classifier", Pool(), _POOLED, _BEFORE),
        "ModernBertForTokenClassification": k.classifier("classifier", None, _DENSE, _BEFORE),
    },
)


def _table_width(json: Json) -> int | None:
    """Of ELECTRA's tables, where it is not that of the blocks."""
    width = json.get("embedding_size", 128)
    return None if width == json.get("hidden_size", 256) else width


_TABLES = Group(
    lambda json: {"stem.embed_dim": _table_width(json)},
    lambda config: {"embedding_size": config.stem.embed_dim or config.embed_dim},
)
_NARROW = [k.implied("head.dim", _table_width)]
_GENERATOR, _DISCRIMINATOR = "generator_predictions", "discriminator_predictions"
ELECTRA = BERT._replace(
    name="electra",
    prefix="electra.",
    keys=k.keys(
        *(k.without(BERT.keys, "tie_word_embeddings"), _TABLES),
        """tie_word_embeddings:tied=true hidden_size:embed_dim=256 num_attention_heads:attention.num_heads=4
        intermediate_size:mlp.dim=1024""",
    ),
    rows=rows(f"{BERT_BODY}linear embeddings_project stem/projection"),
    heads={
        "ElectraForPreTraining": k.headed(
            *(Head(outputs=1, bias=True, norm=False), f"{_DISCRIMINATOR}.dense_prediction", ACTIVATION),
            more=f"linear {_DISCRIMINATOR}.dense head/dense",
            tied=False,
        ),
        **encoder_heads(
            "Electra",
            masked("generator_lm_head", f"{_GENERATOR}.dense", f"{_GENERATOR}.LayerNorm", _NARROW),
            *(k.body(), k.classifier("classifier.out_proj", Pool(activation="gelu"), more=CLASSIFIER_POOL)),
        ),
    },
    ignored=("*embeddings.position_ids",),
)
