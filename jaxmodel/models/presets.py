"""Named configs: the published sizes people ask for, as data.

They are tables of words. `path=value` is what a flag would say, a path alone that it is true; a number may be a power,
`256^-0.5`. `attention(bias window=512)` says it of a part, `*(…)` of every submodel, `a,b(…)` of both of these and
`local:path=value` of a variant. `base=NAME` stands for the words of that base. Of two words about one field the later
counts. A line that begins with the name of a config is a header: what follows are such, each a name, values in the
header's order, and more words.
"""

import functools
import re
from collections import UserDict
from collections.abc import Iterator
from typing import Any

from jaxmodel.config import FieldInfo, create, flatten, parse
from jaxmodel.models.configs import Transformer, Variant
from jaxmodel.models.pairs import EncoderDecoder, Towers, VisionLanguage
from jaxmodel.models.plain import ConvNet, Perceptron

KINDS = {each.__name__: each for each in (ConvNet, EncoderDecoder, Perceptron, Towers, Transformer, VisionLanguage)}

BASES = {
    # Sizes of towers.
    "base": "embed_dim=768 num_layers=12 attention.num_heads=12 mlp.dim=3072",
    "large": "embed_dim=1024 num_layers=24 attention.num_heads=16 mlp.dim=4096",
    "narrow": "embed_dim=512 num_layers=12 attention.num_heads=8 mlp.dim=2048",
    "so400m": "embed_dim=1152 num_layers=27 attention.num_heads=16 mlp.dim=4304",
    # What many have in common.
    "biased": "attention(bias output_bias) mlp.bias norm(kind=layer bias)",
    "both-ways": "base=biased attention.causal=false mlp.activation=gelu",
    "gpt": "base=biased stem.positions=learned init_scale=0.02",
    # As of Llama, Mistral and Phi-3 (arXiv:2404.14219).
    "llama": "attention.rotary mlp.activation=swiglu",
    # Small enough to learn something on a laptop in two minutes; the quickstart's model.
    "tiny": "attention(rotary qk_norm=head) mlp.activation=relu_squared stem.norm residual_init=0",
    # GPT-2's block (Radford et al. 2019): layer norm with biases, learned positions, tied head. For GPT-3 see
    # arXiv:2005.14165, table 2.1 (its alternating sparse attention is not published in detail: dense here).
    "gpt2": "base=gpt mlp.activation=gelu_tanh vocab_size=50257 max_length=1024 tied",
    # Llama 3.1 and 3.2 (arXiv:2407.21783): positions stretched from 8,192 tokens to 131,072.
    "llama3": "base=llama attention.rope_theta=5e5 vocab_size=128256 max_length=8192",
    "llama3.1": "base=llama3 attention.rope(scaling=llama3 factor=8 original_length=8192) max_length=131072",
    # Qwen 2.5 (arXiv:2412.15115) has biases on queries, keys and values, Qwen 3 (arXiv:2505.09388) norms.
    "qwen2": "base=llama attention(bias rope_theta=1e6) norm.epsilon=1e-6 vocab_size=151936 max_length=32768",
    "qwen3": "base=llama attention(qk_norm=head rope_theta=1e6) norm.epsilon=1e-6 vocab_size=151936 max_length=32768",
    # arXiv:2401.04088, arXiv:2505.09388, arXiv:2409.02060, and Qwen1.5-MoE (2024): mixtures of experts.
    "mixtral": "base=llama attention.rope_theta=1e6 vocab_size=32000 max_length=32768 moe(num_experts=8 dim=14336)",
    "qwen3-moe": "base=qwen3 max_length=40960 moe(num_experts=128 dim=768 experts_per_token=8)",
    "olmoe": "base=llama attention.qk_norm=all moe(num_experts=64 dim=1024 experts_per_token=8 normalize=false)",
    "qwen2-moe": "base=qwen2 moe(dim=1408 experts_per_token=4 normalize=false shared_dim=5632 shared_gate)",
    # gpt-oss (arXiv:2508.10925): every other layer local, sinks, clamped experts with biases.
    "gpt-oss": """base=llama attention(sinks bias output_bias rope_theta=1.5e5 rope(scaling=yarn factor=32
        original_length=4096 truncate=false)) moe(dim=2880 experts_per_token=4 activation=quick_geglu bias limit=7
        up_offset=1) pattern=local,global local:attention.window=128 vocab_size=201088 max_length=131072""",
    # arXiv:2412.19437; the scale is 192^-0.5 (0.1 ln 40 + 1)^2: yarn sharpens attention.
    "deepseek": """base=llama norm.epsilon=1e-6 attention(scale=0.1352337788608801 rope(scaling=yarn factor=40
        interleaved original_length=4096 attention_factor=1) latent(kv_rank=512 rope_dim=64 value_dim=128 q_rank=1536))
        moe(dim=2048 num_experts=256 experts_per_token=8 num_groups=8 groups_per_token=4 shared_dim=2048 scores=sigmoid
        selection_bias scale=2.5) first=dense,dense,dense dense:moe=none""",
    # Gemma (arXiv:2403.08295), 2 (arXiv:2408.00118) and 3 (arXiv:2503.19786): scaled embeddings, norms less one; in 3,
    # five local layers to a global one, whose positions turn more slowly.
    "gemma": "attention.rotary mlp.activation=geglu norm(offset=1 epsilon=1e-6) vocab_size=256000 max_length=8192 tied",
    "gemma2": """base=gemma attention(softcap=50 scale=256^-0.5) norm.placement=both head.softcap=30
        pattern=local,global local:attention.window=4096""",
    "gemma3": """base=gemma attention(qk_norm=head scale=256^-0.5) norm.placement=both vocab_size=262144
        pattern=local,local,local,local,local,global local:attention.window=512 global:attention.rope_theta=1e6""",
    # arXiv:2501.00656: norms on what each half gives, and of all queries, or keys, together.
    "olmo2": "base=llama attention(rope_theta=5e5 qk_norm=all) norm(placement=output epsilon=1e-6)",
    # Every fourth layer has no positions (arXiv:2501.18795).
    "smollm3": "base=llama attention.rope_theta=5e6 pattern=rotary,rotary,rotary,plain plain:attention.rotary=false",
    # arXiv:2402.19173
    "starcoder2": "base=biased attention(rotary rope_theta=999999.4420358813 window=4096) mlp.activation=gelu_tanh",
    # Pythia (arXiv:2304.01373): halves side by side, a quarter of each head turned.
    "pythia": "base=biased attention(rotary rope.fraction=0.25) mlp.activation=gelu norm.placement=parallel",
    # Mamba-2 (arXiv:2405.21060): blocks of a recurrence alone, twice as wide as the residual stream; nothing in it sets
    # a limit to length, and its heads of attention and MLP are not there.
    "mamba2": """sublayers=recurrence recurrence(head_dim=64 num_groups=1 chunk=256 skip conv_bias)
        vocab_size=50288 max_length=1048576 tied""",
    # Qwen3.5: three layers of the gated delta rule (arXiv:2412.06464), then one of gated attention.
    "qwen3.5": """base=llama attention(gate qk_norm=head rope_theta=1e7 rope.fraction=0.25) norm(offset=1 epsilon=1e-6)
        recurrence(num_heads=32 head_dim=128 num_groups=16 kind=delta norm=head norm_first)
        pattern=linear,linear,linear,full linear:sublayers=recurrence,mlp""",
    # ViT (arXiv:2010.11929), with 1,000 classes, and DINOv2 (arXiv:2304.07193), with an embedding alone. An image
    # becomes (size / patch)^2 tokens, and one for the class.
    "vision": "base=both-ways stem.positions=learned vocab_size=none pool.kind=first",
    "vit": "base=vision images.size=224 norm.epsilon=1e-12 head(outputs=1000 bias)",
    "dinov2": "base=vision images(size=518 mask_token) norm.epsilon=1e-6 layer_scale=1 head=none",
    # ResNet (arXiv:1512.03385) with 1,000 classes; a bottleneck strides in its 3 x 3 convolution.
    "resnet": "num_classes=1000 channels=3 stem(width=64 size=7 stride=2 pool) count_batches",
    # ConvNeXt (arXiv:2201.03545) with 1,000 classes; its third stage is the deep one.
    "convnext": """num_classes=1000 channels=3 stem(size=4 stride=4) block=inverted kernel=7 norm=layer epsilon=1e-6
        bias activation=gelu layer_scale=1e-6 pool_epsilon=1e-12""",
    # BERT's block (arXiv:1810.04805): both ways, layer norm after each residual; with the head of masked tokens.
    # DistilBERT (arXiv:1910.01108): half of its layers, and no types.
    # all-MiniLM-L6 (arXiv:2002.10957): the embedding of a sentence, of length 1.
    "bert-block": "base=both-ways base=gpt norm(placement=post epsilon=1e-12) stem(num_types=2 norm) max_length=512",
    "bert": "base=bert-block head(activation=gelu bias) vocab_size=30522 tied",
    # RoBERTa (arXiv:1907.11692): BERT with another vocabulary; positions begin behind the row of padding.
    "roberta": "base=bert norm.epsilon=1e-5 stem(position_offset=2 num_types=1) vocab_size=50265",
    # ModernBERT (arXiv:2412.13663): rotary positions, two local layers to a global one; none has a bias.
    "modernbert": """attention(causal=false rotary) mlp.activation=geglu_exact norm.kind=layer stem.norm init_scale=0.02
        head(activation=gelu bias dense_bias=false) tied first=first pattern=local,local,global
        local:attention.window=65 first:attention.rope_theta=1.6e5 first:norm.attention=false
        global:attention.rope_theta=1.6e5""",
    # ELECTRA's discriminator (arXiv:2003.10555): BERT that tells replaced tokens from real ones.
    "electra": "base=bert-block head(activation=gelu bias outputs=1 norm=false) vocab_size=30522",
    # wav2vec 2.0 (arXiv:2006.11477) and HuBERT (arXiv:2106.07447), with a CTC head of 32 characters.
    "wave": "base=both-ways init_scale=0.02 waveform.norm=group vocab_size=none max_length=32768 head(outputs=32 bias)",
    # CLIP (arXiv:2103.00020): towers to vectors of one width.
    "clip-image": "base=vision mlp.activation=quick_gelu stem.norm images(size=224 bias=false) pool.norm head=none",
    "clip": """image(base=clip-image pool.normalize) text(base=biased mlp.activation=quick_gelu stem.positions=learned
        vocab_size=49408 max_length=77 pool(kind=token token=49407 normalize) head=none)""",
    # SigLIP (arXiv:2303.15343): both towers of one size; texts are padded to 64 tokens, and the last is read. The scale
    # is the logarithm of 10.
    "siglip": """*(base=vision mlp.activation=gelu_tanh norm.epsilon=1e-6 pool.normalize head=none)
        image(images.class_token=false pool.kind=attention) logit_scale=2.302585092994046 logit_bias
        text(vocab_size=32000 max_length=64 stem.slots pool(kind=slot bias))""",
    # LLaVA 1.5 (arXiv:2310.03744): the last but one block of CLIP's tower, and Vicuna.
    "llava": """image(base=clip-image images(size=336 patch=14) max_length=577) projector(activation=gelu bias)
        text(base=llama attention(num_kv_heads=32 head_dim=128) stem.image_token=32000 max_length=4096)""",
    "pair": "encoder.attention,decoder.cross(causal=false) encoder.head=none decoder.sublayers=attention,cross,mlp",
    # T5 (arXiv:1910.10683): a bias by distance, scores without a scale; no distance is out of reach. 1.1
    # (arXiv:2210.11416) has gates and a head of its own.
    "t5-1.1": """base=pair *.attention,decoder.cross(head_dim=64 scale=1) *(attention.relative.buckets=32
        norm.epsilon=1e-6 mlp.activation=geglu vocab_size=32128 max_length=1048576) start_token=0""",
    "t5": "base=t5-1.1 *.mlp.activation=relu decoder.tied",
    "t5-wide": "base=t5 *.attention,decoder.cross(head_dim=128)",
    # BART's and Whisper's blocks: layer norms and biases.
    "biased-pair": "base=pair *(base=gpt mlp.activation=gelu) decoder(cross(bias output_bias) tied)",
    # BART (arXiv:1910.13461): norms after each half and on the embeddings.
    "bart": """base=biased-pair *(norm.placement=post stem(position_offset=2 norm) vocab_size=50265 max_length=1024)
        decoder.head.bias start_token=2""",
    # Whisper (arXiv:2212.04356): 30 s of sound as 1,500 vectors; keys have no biases.
    "whisper": """base=biased-pair *.attention,decoder.cross(key_bias=false) shared=false start_token=50258
        encoder(vocab_size=none spectrogram.bands=80 max_length=1500) decoder(vocab_size=51865 max_length=448)""",
    "whisper3": "base=whisper encoder.spectrogram.bands=128 decoder.vocab_size=51866",
}


def _said(text: str) -> Iterator[tuple[str, str]]:
    """(path, value) of words, with those of their bases."""
    places = [[""]]
    for word, opens, closes in re.findall(r"([^\s()]+)(\(?)|(\))", text):
        path, _, value = word.partition("=")
        here = [place + each for place in places[-1] for each in path.split(",")]
        if closes:
            places.pop()
        elif opens:
            places.append([f"{each}." for each in here])
        elif path.endswith("base"):
            yield from ((each.removesuffix("base") + path, said) for each in here for path, said in _said(BASES[value]))
        else:
            yield from ((each, value or "true") for each in here)


def _value(text: str, info: FieldInfo) -> Any:
    base, power, exponent = text.partition("^")
    return float(base) ** float(exponent) if power else parse(text, info)


@functools.cache
def configured(kind: Any, text: str) -> Any:
    """A config of this kind from words."""
    found: dict[str, dict[str, Any]] = {"": {}}  # by variant
    for path, value in _said(text):
        variant, _, path = path.rpartition(":")
        for part in kind.submodels if "*" in path else ("",):
            name = path.replace("*", part)
            found.setdefault(variant, {})[name] = _value(value, flatten(kind)[name])
    own = found[""]
    names = dict.fromkeys((*own.get("first", ()), *own.get("pattern", ())))
    variants = tuple(Variant(name, tuple(found.get(name, {}).items())) for name in names)
    return create(kind, {**own, "variants": variants} if variants else own)


class Presets(UserDict[str, Any]):
    """Configs by name: a kind and its words, which become a config when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        return configured(*super().__getitem__(name))


def presets(text: str) -> Presets:
    """From tables of words, as this file's first lines say."""
    found, kind, columns = Presets(), None, []
    for line in text.strip().splitlines():
        first, *cells = line.split()
        if first in KINDS:
            kind, columns = KINDS[first], cells
        else:
            found[first] = kind, " ".join([*map("=".join, zip(columns, cells, strict=False)), *cells[len(columns) :]])
    return found


PRESETS = presets("""
    Transformer base embed_dim num_layers attention.num_heads attention.num_kv_heads attention.head_dim mlp.dim
    tiny              tiny       192   4  6   none none 768   vocab_size=2048 max_length=512
    gpt2              gpt2       768   12 12  none none 3072
    gpt2-medium       gpt2       1024  24 16  none none 4096
    gpt2-large        gpt2       1280  36 20  none none 5120
    gpt2-xl           gpt2       1600  48 25  none none 6400
    gpt3-175b         gpt2       12288 96 96  none none 49152 max_length=2048
    llama3-8b         llama3     4096  32 32  8    none 14336
    llama-3.1-8b      llama3.1   4096  32 32  8    128  14336
    llama-3.1-70b     llama3.1   8192  80 64  8    128  28672
    llama-3.2-1b      llama3.1   2048  16 32  8    64   8192  tied attention.rope.factor=32
    llama-3.2-3b      llama3.1   3072  28 24  8    128  8192  tied attention.rope.factor=32
    mistral-7b        llama      4096  32 32  8    128  14336 attention.window=4096 max_length=32768 vocab_size=32000
    qwen2.5-0.5b      qwen2      896   24 14  2    64   4864  tied
    qwen2.5-1.5b      qwen2      1536  28 12  2    128  8960  tied
    qwen2.5-7b        qwen2      3584  28 28  4    128  18944 vocab_size=152064
    qwen3-0.6b        qwen3      1024  28 16  8    128  3072  tied
    qwen3-1.7b        qwen3      2048  28 16  8    128  6144  tied
    qwen3-4b          qwen3      2560  36 32  8    128  9728  tied
    qwen3-8b          qwen3      4096  36 32  8    128  12288
    qwen3-32b         qwen3      5120  64 64  8    128  25600
    mixtral-8x7b      mixtral    4096  32 32  8    128  14336
    qwen3-30b-a3b     qwen3-moe  2048  48 32  4    128  6144
    olmoe-1b-7b       olmoe      2048  16 16  16   128  1024  vocab_size=50304 max_length=4096
    qwen1.5-moe-a2.7b qwen2-moe  2048  24 16  16   128  5632  moe.num_experts=60 max_length=8192
    gpt-oss-20b       gpt-oss    2880  24 64  8    64   2880  moe.num_experts=32
    gpt-oss-120b      gpt-oss    2880  36 64  8    64   2880  moe.num_experts=128
    deepseek-v3       deepseek   7168  61 128 128  192  18432 vocab_size=129280 max_length=163840
    gemma-2b          gemma      2048  18 8   1    256  16384 stem.scale=2048^0.5
    gemma-2-2b        gemma2     2304  26 8   4    256  9216  stem.scale=2304^0.5
    gemma-2-9b        gemma2     3584  42 16  8    256  14336 stem.scale=3584^0.5
    gemma-3-270m      gemma3     640   18 4   1    256  2048  stem.scale=640^0.5 max_length=32768
    gemma-3-1b        gemma3     1152  26 4   1    256  6912  stem.scale=1152^0.5 max_length=32768
    phi-3-mini        llama      3072  32 32  32   96   8192  attention.window=2047 max_length=4096 vocab_size=32064
    olmo-2-7b         olmo2      4096  32 32  32   128  11008 vocab_size=100352 max_length=4096
    smollm3-3b        smollm3    2048  36 16  4    128  11008 vocab_size=128256 max_length=65536 tied norm.epsilon=1e-6
    starcoder2-3b     starcoder2 3072  30 24  2    128  12288 tied vocab_size=49152 max_length=16384
    pythia-160m       pythia     768   12 12  12   none 3072  vocab_size=50304 max_length=2048
    pythia-1b         pythia     2048  16 8   8    none 8192  vocab_size=50304 max_length=2048
    mamba2-130m       mamba2     768   24 1   none none 1     recurrence.num_heads=24
    mamba2-370m       mamba2     1024  48 1   none none 1     recurrence.num_heads=32
    mamba2-780m       mamba2     1536  48 1   none none 1     recurrence.num_heads=48
    mamba2-1.3b       mamba2     2048  48 1   none none 1     recurrence.num_heads=64
    mamba2-2.7b       mamba2     2560  64 1   none none 1     recurrence.num_heads=80
    qwen3.5-9b        qwen3.5    4096  32 16  4    256  12288 vocab_size=248320 max_length=262144
    Transformer base embed_dim num_layers attention.num_heads mlp.dim images.patch max_length
    vit-b/16     vit    768  12 12 3072 16 197
    vit-b/32     vit    768  12 12 3072 32 50
    vit-l/16     vit    1024 24 16 4096 16 197
    vit-l/32     vit    1024 24 16 4096 32 50
    vit-h/14     vit    1280 32 16 5120 14 257
    dinov2-small dinov2 384  12 6  1536 14 1370
    dinov2-base  dinov2 768  12 12 3072 14 1370
    dinov2-large dinov2 1024 24 16 4096 14 1370
    dinov2-giant dinov2 1536 40 24 4096 14 1370 mlp.activation=swiglu
    ConvNet base depths widths
    resnet-18      resnet   2,2,2,2  64,128,256,512
    resnet-34      resnet   3,4,6,3  64,128,256,512
    resnet-50      resnet   3,4,6,3  256,512,1024,2048 block=bottleneck
    resnet-101     resnet   3,4,23,3 256,512,1024,2048 block=bottleneck
    resnet-152     resnet   3,8,36,3 256,512,1024,2048 block=bottleneck
    convnext-tiny  convnext 3,3,9,3  96,192,384,768
    convnext-small convnext 3,3,27,3 96,192,384,768
    convnext-base  convnext 3,3,27,3 128,256,512,1024
    convnext-large convnext 3,3,27,3 192,384,768,1536
    Transformer base embed_dim num_layers attention.num_heads mlp.dim
    bert-base        bert       768  12 12 3072
    bert-large       bert       1024 24 16 4096
    roberta-base     roberta    768  12 12 3072
    roberta-large    roberta    1024 24 16 4096
    distilbert-base  bert       768  6  12 3072 stem.num_types=0
    modernbert-base  modernbert 768  22 12 1152 vocab_size=50368 max_length=8192
    modernbert-large modernbert 1024 28 16 2624 vocab_size=50368 max_length=8192
    electra-small    electra    256  12 4  1024 stem.embed_dim=128
    electra-base     electra    768  12 12 3072
    electra-large    electra    1024 24 16 4096
    wav2vec2-base    wave       768  12 12 3072 norm.placement=post stem.norm
    wav2vec2-large   wave       1024 24 16 4096 waveform(norm=layer bias)
    hubert-base      wave       768  12 12 3072 norm.placement=post stem.norm
    hubert-large     wave       1024 24 16 4096 waveform(norm=layer bias)
    minilm-l6        bert-block 384  6  12 1536 head=none pool(kind=mean normalize) vocab_size=30522
    Towers base image.base text.base *.pool.dim image.images.patch image.max_length
    clip-vit-b/32             clip   base   narrow 512  32 50
    clip-vit-b/16             clip   base   narrow 512  16 197
    clip-vit-l/14             clip   large  base   768  14 257
    siglip-base-patch16-224   siglip base   base   768  16 196 image(images.size=224 pool.dim=none)
    siglip-so400m-patch14-384 siglip so400m so400m 1152 14 729 image(images.size=384 pool.dim=none)
    VisionLanguage base image.base text.embed_dim,projector.dim text.num_layers text.attention.num_heads text.mlp.dim
    llava-1.5-7b llava large 4096 32 32 11008 text.vocab_size=32064
    EncoderDecoder base *.embed_dim *.num_layers *.attention.num_heads,decoder.cross.num_heads *.mlp.dim
    t5-small               t5       512  6  8   2048  decoder.head.scale=512^-0.5
    t5-base                t5       768  12 12  3072  decoder.head.scale=768^-0.5
    t5-large               t5       1024 24 16  4096  decoder.head.scale=1024^-0.5
    t5-3b                  t5-wide  1024 24 32  16384 decoder.head.scale=1024^-0.5
    t5-11b                 t5-wide  1024 24 128 65536 decoder.head.scale=1024^-0.5
    flan-t5-small          t5-1.1   512  8  6   1024
    flan-t5-base           t5-1.1   768  12 12  2048
    flan-t5-large          t5-1.1   1024 24 16  2816
    flan-t5-xl             t5-1.1   2048 24 32  5120
    flan-t5-xxl            t5-1.1   4096 24 64  10240
    bart-base              bart     768  6  12  3072
    bart-large             bart     1024 12 16  4096
    whisper-tiny           whisper  384  4  6   1536
    whisper-base           whisper  512  6  8   2048
    whisper-small          whisper  768  12 12  3072
    whisper-medium         whisper  1024 24 16  4096
    whisper-large-v3       whisper3 1280 32 20  5120
    whisper-large-v3-turbo whisper3 1280 32 20  5120  decoder.num_layers=4
    Perceptron
    mlp
    ConvNet
    resnet-tiny widths=32,64,128
""")
