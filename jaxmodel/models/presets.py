"""Named configs: the published sizes people ask for, as data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxmodel.config import replace
from jaxmodel.models.configs import ConvNet, EncoderDecoder, Perceptron, Transformer, Variant
from jaxmodel.models.multimodal import Towers, VisionLanguage
from jaxmodel.models.parts import (
    MLP,
    Attention,
    ConvStem,
    Head,
    Images,
    Latent,
    MoE,
    Norm,
    Pool,
    Recurrence,
    Relative,
    Rope,
    Spectrogram,
    Stem,
    Waveform,
)

GPT2_VOCAB = 50257


def _gpt2(num_layers: int, embed_dim: int, num_heads: int, **overrides) -> Transformer:
    """GPT-2's block (Radford et al. 2019): layer norm with biases, learned positions, tied head."""
    sizes = {"vocab_size": GPT2_VOCAB, "max_length": 1024, **overrides}
    return Transformer(
        embed_dim=embed_dim,
        num_layers=num_layers,
        attention=Attention(num_heads=num_heads, bias=True, output_bias=True),
        mlp=MLP(dim=4 * embed_dim, activation="gelu_tanh", bias=True),
        norm=Norm(kind="layer", bias=True),
        stem=Stem(positions="learned"),
        tied=True,
        init_scale=0.02,
        **sizes,
    )


def _decoder(
    vocab_size: int,
    embed_dim: int,
    num_layers: int,
    heads: tuple[int, int, int | None],
    mlp_dim: int,
    max_length: int,
    theta: float = 10000.0,
    attention: Mapping[str, Any] | None = None,
    mlp: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Transformer:
    """A decoder in the manner of Llama; `heads` are those of queries, of keys and values, and their width."""
    num_heads, num_kv_heads, head_dim = heads
    usual = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    return Transformer(
        vocab_size=vocab_size,
        max_length=max_length,
        embed_dim=embed_dim,
        num_layers=num_layers,
        attention=Attention(**usual, **{"rotary": True, "rope_theta": theta, **(attention or {})}),
        mlp=MLP(**{"dim": mlp_dim, "activation": "swiglu", **(mlp or {})}),
        **overrides,
    )


def _llama32(
    embed_dim: int, num_layers: int, heads: tuple[int, int, int | None], dim: int, factor: float, tied: bool
) -> Transformer:
    """Llama 3.1 and 3.2 (arXiv:2407.21783): positions stretched from 8,192 tokens to 131,072."""
    rope = Rope(scaling="llama3", factor=factor, original_length=8192)
    return _decoder(128256, embed_dim, num_layers, heads, dim, 131072, 5e5, {"rope": rope}, tied=tied)


def _qwen(
    embed_dim: int,
    num_layers: int,
    heads: tuple[int, int, int | None],
    dim: int,
    tied: bool,
    vocab_size: int = 151936,
    **attention: Any,
) -> Transformer:
    """Qwen 2.5 (arXiv:2412.15115) has biases on queries, keys and values, Qwen 3 (arXiv:2505.09388) norms."""
    norm = Norm(epsilon=1e-6)
    return _decoder(vocab_size, embed_dim, num_layers, heads, dim, 32768, 1e6, attention, tied=tied, norm=norm)


def _gemma(
    embed_dim: int,
    num_layers: int,
    heads: tuple[int, int, int | None],
    dim: int,
    attention: Mapping[str, Any] | None = None,
    placement: str = "both",
    vocab_size: int = 256000,
    max_length: int = 8192,
    **overrides: Any,
) -> Transformer:
    """Gemma (arXiv:2403.08295), 2 (arXiv:2408.00118) and 3 (arXiv:2503.19786): scaled embeddings, norms less one."""
    return _decoder(
        *(vocab_size, embed_dim, num_layers, heads, dim, max_length, 1e4, attention, {"activation": "geglu"}),
        norm=Norm(offset=1.0, epsilon=1e-6, placement=placement),
        stem=Stem(scale=embed_dim**0.5),
        tied=True,
        **overrides,
    )


def _gemma3(embed_dim: int, num_layers: int, dim: int, window: int) -> Transformer:
    """Five local layers to a global one, whose positions turn more slowly."""
    variants = (Variant("local", (("attention.window", window),)), Variant("global", (("attention.rope_theta", 1e6),)))
    return _gemma(
        *(embed_dim, num_layers, (4, 1, 256), dim, {"qk_norm": "head", "scale": 256**-0.5}),
        vocab_size=262144,
        max_length=32768,
        pattern=("local",) * 5 + ("global",),
        variants=variants,
    )


def _gpt_oss(num_layers: int, num_experts: int) -> Transformer:
    """gpt-oss (arXiv:2508.10925): every other layer local, sinks, clamped experts with biases."""
    rope = Rope(scaling="yarn", factor=32.0, original_length=4096, truncate=False)
    return _decoder(
        *(201088, 2880, num_layers, (64, 8, 64), 2880, 131072, 1.5e5),
        {"rope": rope, "sinks": True, "bias": True, "output_bias": True},
        moe=MoE(
            **{"num_experts": num_experts, "dim": 2880, "experts_per_token": 4, "bias": True},
            **{"activation": "quick_geglu", "limit": 7.0, "up_offset": 1.0},
        ),
        pattern=("local", "global"),
        variants=(Variant("local", (("attention.window", 128),)), Variant("global")),
    )


def _pythia(embed_dim: int, num_layers: int, num_heads: int) -> Transformer:
    """Pythia (arXiv:2304.01373): halves side by side, a quarter of each head turned."""
    attention = {"bias": True, "output_bias": True, "rope": Rope(fraction=0.25)}
    return _decoder(
        *(50304, embed_dim, num_layers, (num_heads, num_heads, None), 4 * embed_dim, 2048, 1e4, attention),
        {"activation": "gelu", "bias": True},
        norm=Norm(kind="layer", bias=True, placement="parallel"),
    )


def _mamba2(embed_dim: int, num_layers: int) -> Transformer:
    """Mamba-2 (arXiv:2405.21060): blocks of a recurrence alone, twice as wide as the residual stream."""
    return Transformer(
        vocab_size=50288,
        max_length=1 << 20,  # nothing in it sets a limit
        embed_dim=embed_dim,
        num_layers=num_layers,
        attention=Attention(num_heads=1),  # neither is there
        mlp=MLP(dim=1),
        recurrence=Recurrence(embed_dim // 32, 64, 128, 1, chunk=256, skip=True, conv_bias=True),
        sublayers=("recurrence",),
        tied=True,
    )


def _qwen_delta(
    vocab_size: int, embed_dim: int, num_layers: int, heads: tuple[int, int, int], mlp_dim: int, **overrides: Any
) -> Transformer:
    """Qwen3.5: three layers of the gated delta rule (arXiv:2412.06464), then one of gated attention."""
    attention = {"rope": Rope(fraction=0.25), "qk_norm": "head", "gate": True}
    return _decoder(
        *(vocab_size, embed_dim, num_layers, heads, mlp_dim, 262144, 1e7, attention),
        recurrence=Recurrence(32, 128, 128, 16, kind="delta", norm="head", norm_first=True),
        norm=Norm(offset=1.0, epsilon=1e-6),
        pattern=("linear",) * 3 + ("full",),
        variants=(Variant("linear", (("sublayers", ("recurrence", "mlp")),)), Variant("full")),
        **overrides,
    )


def _vit(embed_dim: int, num_layers: int, num_heads: int, patch: int) -> Transformer:
    """ViT (arXiv:2010.11929) on images of 224 x 224, with 1,000 classes."""
    images = Images(size=224, patch=patch)
    return Transformer(
        vocab_size=None,
        max_length=images.length,
        embed_dim=embed_dim,
        num_layers=num_layers,
        attention=Attention(num_heads=num_heads, causal=False, bias=True, output_bias=True),
        mlp=MLP(dim=4 * embed_dim, activation="gelu", bias=True),
        norm=Norm(kind="layer", bias=True, epsilon=1e-12),
        stem=Stem(positions="learned"),
        images=images,
        pool=Pool(),
        head=Head(outputs=1000, bias=True),
    )


def _dinov2(embed_dim: int, num_layers: int, num_heads: int, mlp: MLP) -> Transformer:
    """DINOv2 (arXiv:2304.07193) on images of 518 x 518: an embedding, no classes."""
    images = Images(size=518, patch=14, mask_token=True)
    vit = _vit(embed_dim, num_layers, num_heads, images.patch)
    norm = Norm(kind="layer", bias=True, epsilon=1e-6)
    changes: dict[str, Any] = {"images": images, "max_length": images.length, "head": None}
    return dataclasses.replace(vit, mlp=mlp, norm=norm, layer_scale=1.0, **changes)


def _resnet(block: str, widths: tuple[int, ...], depths: tuple[int, ...]) -> ConvNet:
    """ResNet (arXiv:1512.03385) with 1,000 classes; a bottleneck strides in its 3 x 3 convolution."""
    stem = ConvStem(width=64, size=7, stride=2, pool=True)
    return ConvNet(1000, 3, widths, depths=depths, stem=stem, block=block, count_batches=True)


def _convnext(width: int, depth: int) -> ConvNet:
    """ConvNeXt (arXiv:2201.03545) with 1,000 classes; its third stage is the deep one."""
    return ConvNet(
        *(1000, 3, (width, 2 * width, 4 * width, 8 * width)),
        depths=(3, 3, depth, 3),
        stem=ConvStem(size=4, stride=4),
        block="inverted",
        kernel=7,
        norm="layer",
        epsilon=1e-6,
        bias=True,
        activation="gelu",
        layer_scale=1e-6,
        pool_epsilon=1e-12,
    )


def _encoder(
    num_layers: int,
    embed_dim: int,
    heads: Mapping[str, Any],
    norm: Norm,
    mlp: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Transformer:
    """Blocks that look both ways, with biases unless `heads` and `mlp` say otherwise."""
    usual = {"vocab_size": None, "embed_dim": embed_dim, "num_layers": num_layers, "init_scale": 0.02}
    attention = Attention(**{"causal": False, "bias": True, "output_bias": True, **heads})
    half = MLP(**{"dim": 4 * embed_dim, "activation": "gelu", "bias": True, **(mlp or {})})
    return Transformer(**{**usual, **overrides}, attention=attention, mlp=half, norm=norm)


def _tower(
    sizes: tuple[int, int, int], mlp: MLP, epsilon: float = 1e-5, causal: bool = False, **fields: Any
) -> Transformer:
    """One of two towers; `sizes` are width, layers and heads."""
    return Transformer(
        embed_dim=sizes[0],
        num_layers=sizes[1],
        attention=Attention(num_heads=sizes[2], causal=causal, bias=True, output_bias=True),
        mlp=mlp,
        norm=Norm(kind="layer", bias=True, epsilon=epsilon),
        head=None,
        **{"stem": Stem(positions="learned"), **fields},
    )


def _clip(dim: int, image: tuple[int, int, int], patch: int, text: tuple[int, int, int], size: int = 224) -> Towers:
    """CLIP (arXiv:2103.00020): towers to vectors of `dim`."""
    images = Images(size=size, patch=patch, bias=False)
    mlp = [MLP(dim=4 * sizes[0], activation="quick_gelu", bias=True) for sizes in (image, text)]
    stem = Stem(positions="learned", norm=True)
    pool = Pool("first", norm=True, dim=dim, normalize=True)
    end = Pool("token", token=49407, dim=dim, normalize=True)
    sizes = {"vocab_size": None, "max_length": images.length}
    return Towers(
        image=_tower(image, mlp[0], images=images, stem=stem, pool=pool, **sizes),
        text=_tower(text, mlp[1], causal=True, vocab_size=49408, max_length=77, pool=end),
    )


def _siglip(sizes: tuple[int, int, int], mlp_dim: int, patch: int, size: int) -> Towers:
    """SigLIP (arXiv:2303.15343): both towers of one size; texts are padded to 64 tokens, and the last is read."""
    images = Images(size=size, patch=patch, class_token=False)
    mlp = MLP(dim=mlp_dim, activation="gelu_tanh", bias=True)
    pool, last = Pool("attention", normalize=True), Pool("slot", dim=sizes[0], bias=True, normalize=True)
    text = {"vocab_size": 32000, "max_length": 64, "stem": Stem(positions="learned", slots=True)}
    return Towers(
        image=_tower(sizes, mlp, 1e-6, images=images, pool=pool, vocab_size=None, max_length=images.length),
        text=_tower(sizes, mlp, 1e-6, pool=last, **text),
        logit_scale=math.log(10),
        logit_bias=True,
    )


def _bert(num_layers: int, embed_dim: int, num_heads: int, stem: Stem | None = None, **overrides) -> Transformer:
    """BERT's block (arXiv:1810.04805): both ways, layer norm after each residual; with the head of masked tokens."""
    usual = {"vocab_size": 30522, "max_length": 512, "head": Head(activation="gelu", bias=True), "tied": True}
    usual["stem"] = stem or Stem(positions="learned", num_types=2, norm=True)
    norm = Norm(kind="layer", bias=True, placement="post", epsilon=1e-12)
    return _encoder(num_layers, embed_dim, {"num_heads": num_heads}, norm, **usual | overrides)


def _roberta(num_layers: int, embed_dim: int, num_heads: int) -> Transformer:
    """RoBERTa (arXiv:1907.11692): BERT with another vocabulary; positions begin behind the row of padding."""
    stem = Stem(positions="learned", position_offset=2, num_types=1, norm=True)
    norm = Norm(kind="layer", bias=True, placement="post", epsilon=1e-5)
    return dataclasses.replace(_bert(num_layers, embed_dim, num_heads, stem), vocab_size=50265, norm=norm)


def _modernbert(num_layers: int, embed_dim: int, num_heads: int, dim: int) -> Transformer:
    """ModernBERT (arXiv:2412.13663): rotary positions, two local layers to a global one; none has a bias."""
    heads = {"num_heads": num_heads, "rotary": True, "bias": False, "output_bias": False}
    mlp = {"dim": dim, "activation": "geglu_exact", "bias": False}
    theta = ("attention.rope_theta", 1.6e5)
    return _encoder(
        *(num_layers, embed_dim, heads, Norm(kind="layer"), mlp),
        **{"vocab_size": 50368, "max_length": 8192, "stem": Stem(norm=True), "tied": True},
        head=Head(activation="gelu", bias=True, dense_bias=False),
        first=("first",),
        pattern=("local", "local", "global"),
        variants=(
            Variant("first", (theta, ("norm.attention", False))),
            Variant("local", (("attention.window", 65),)),
            Variant("global", (theta,)),
        ),
    )


def _electra(num_layers: int, embed_dim: int, num_heads: int, width: int | None = None) -> Transformer:
    """ELECTRA's discriminator (arXiv:2003.10555): BERT that tells replaced tokens from real ones."""
    stem = Stem(positions="learned", num_types=2, norm=True, embed_dim=width)
    head = Head(outputs=1, activation="gelu", bias=True, norm=False)
    return _bert(num_layers, embed_dim, num_heads, stem, head=head, tied=False)


def _wav2vec2(num_layers: int, embed_dim: int, num_heads: int, stable: bool) -> Transformer:
    """wav2vec 2.0 (arXiv:2006.11477) and HuBERT (arXiv:2106.07447), with a CTC head of 32 characters."""
    return _encoder(
        *(num_layers, embed_dim, {"num_heads": num_heads}),
        Norm(kind="layer", bias=True, placement="pre" if stable else "post"),
        waveform=Waveform(norm="layer", bias=True) if stable else Waveform(),
        **{"max_length": 32768, "stem": Stem(norm=not stable), "head": Head(outputs=32, bias=True)},
    )


def _t5(
    embed_dim: int, num_layers: int, num_heads: int, head_dim: int, dim: int, gated: bool = False
) -> EncoderDecoder:
    """T5 (arXiv:1910.10683): a bias by distance, scores without a scale; 1.1 has gates and a head of its own."""
    heads = {"num_heads": num_heads, "head_dim": head_dim, "scale": 1.0}
    shared: dict[str, Any] = {
        "vocab_size": 32128,
        "max_length": 1 << 20,  # no distance is out of reach
        "embed_dim": embed_dim,
        "num_layers": num_layers,
        "mlp": MLP(dim=dim, activation="geglu" if gated else "relu"),
        "norm": Norm(epsilon=1e-6),
    }
    encoder = Transformer(attention=Attention(**heads, causal=False, relative=Relative()), head=None, **shared)
    decoder = Transformer(
        attention=Attention(**heads, relative=Relative()),
        cross=Attention(**heads, causal=False),
        sublayers=("attention", "cross", "mlp"),
        head=Head(scale=None if gated else embed_dim**-0.5),
        tied=not gated,
        **shared,
    )
    return EncoderDecoder(encoder, decoder, start_token=0)


def _pair(
    embed_dim: int, layers: tuple[int, int], num_heads: int, start_token: int, encoder: Mapping[str, Any], **fields
) -> EncoderDecoder:
    """BART's and Whisper's blocks: layer norms and biases; `encoder` lays what it has of its own over `fields`."""
    own = {"num_heads": num_heads, "bias": True, "key_bias": fields.pop("key_bias", None), "output_bias": True}
    inner, both_ways = Attention(**own), Attention(**own, causal=False)
    mlp = MLP(dim=4 * embed_dim, activation="gelu", bias=True)
    both = {"embed_dim": embed_dim, "mlp": mlp, "init_scale": 0.02, **fields}
    reader = {**both, "num_layers": layers[0], "attention": both_ways, "head": None, **encoder}
    crossed = {"cross": both_ways, "sublayers": ("attention", "cross", "mlp"), "tied": True}
    writer = {**both, "num_layers": layers[1], "attention": inner, **crossed}
    shared = "spectrogram" not in encoder
    return EncoderDecoder(Transformer(**reader), Transformer(**writer), shared, start_token)


def _bart(embed_dim: int, num_layers: int, num_heads: int) -> EncoderDecoder:
    """BART (arXiv:1910.13461): norms after each half and on the embeddings."""
    return _pair(
        *(embed_dim, (num_layers, num_layers), num_heads, 2, {}),
        **{"vocab_size": 50265, "max_length": 1024, "head": Head(bias=True)},
        norm=Norm(kind="layer", bias=True, placement="post"),
        stem=Stem(positions="learned", position_offset=2, norm=True),
    )


def _whisper(
    embed_dim: int, layers: tuple[int, int], num_heads: int, bands: int = 80, vocab_size: int = 51865
) -> EncoderDecoder:
    """Whisper (arXiv:2212.04356): 30 s of sound as 1,500 vectors; keys have no biases."""
    sound = Spectrogram(bands=bands)
    encoder = {"vocab_size": None, "spectrogram": sound, "max_length": sound.length}
    return _pair(
        *(embed_dim, layers, num_heads, 50258, encoder),
        **{"vocab_size": vocab_size, "max_length": 448, "key_bias": False},
        norm=Norm(kind="layer", bias=True),
        stem=Stem(positions="learned"),
    )


PRESETS = {
    # Small enough to learn something on a laptop in two minutes; the quickstart's model.
    "tiny": Transformer(
        vocab_size=2048,
        max_length=512,
        embed_dim=192,
        num_layers=4,
        attention=Attention(num_heads=6, rotary=True, qk_norm="head"),
        mlp=MLP(dim=768, activation="relu_squared"),
        stem=Stem(norm=True),
        residual_init=0.0,
    ),
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    # arXiv:2005.14165, table 2.1 (its alternating sparse attention is not published in detail: dense here).
    "gpt3-175b": _gpt2(96, 12288, 96, max_length=2048),
    "llama3-8b": _decoder(128256, 4096, 32, (32, 8, None), 14336, 8192, 5e5),
    "llama-3.1-8b": _llama32(4096, 32, (32, 8, 128), 14336, 8.0, False),
    "llama-3.1-70b": _llama32(8192, 80, (64, 8, 128), 28672, 8.0, False),
    "llama-3.2-1b": _llama32(2048, 16, (32, 8, 64), 8192, 32.0, True),
    "llama-3.2-3b": _llama32(3072, 28, (24, 8, 128), 8192, 32.0, True),
    "mistral-7b": _decoder(32000, 4096, 32, (32, 8, 128), 14336, 32768, 1e4, {"window": 4096}),
    "qwen2.5-0.5b": _qwen(896, 24, (14, 2, 64), 4864, True, bias=True),
    "qwen2.5-1.5b": _qwen(1536, 28, (12, 2, 128), 8960, True, bias=True),
    "qwen2.5-7b": _qwen(3584, 28, (28, 4, 128), 18944, False, 152064, bias=True),
    "qwen3-0.6b": _qwen(1024, 28, (16, 8, 128), 3072, True, qk_norm="head"),
    "qwen3-1.7b": _qwen(2048, 28, (16, 8, 128), 6144, True, qk_norm="head"),
    "qwen3-4b": _qwen(2560, 36, (32, 8, 128), 9728, True, qk_norm="head"),
    "qwen3-8b": _qwen(4096, 36, (32, 8, 128), 12288, False, qk_norm="head"),
    "qwen3-32b": _qwen(5120, 64, (64, 8, 128), 25600, False, qk_norm="head"),
    # arXiv:2401.04088, arXiv:2505.09388, arXiv:2409.02060, and Qwen1.5-MoE (2024): mixtures of experts.
    "mixtral-8x7b": _decoder(*(32000, 4096, 32, (32, 8, 128), 14336, 32768, 1e6), moe=MoE(num_experts=8, dim=14336)),
    "qwen3-30b-a3b": _decoder(
        *(151936, 2048, 48, (32, 4, 128), 6144, 40960, 1e6, {"qk_norm": "head"}),
        norm=Norm(epsilon=1e-6),
        moe=MoE(num_experts=128, dim=768, experts_per_token=8),
    ),
    "olmoe-1b-7b": _decoder(
        *(50304, 2048, 16, (16, 16, 128), 1024, 4096, 1e4, {"qk_norm": "all"}),
        moe=MoE(num_experts=64, dim=1024, experts_per_token=8, normalize=False),
    ),
    "qwen1.5-moe-a2.7b": _decoder(
        *(151936, 2048, 24, (16, 16, 128), 5632, 8192, 1e6, {"bias": True}),
        norm=Norm(epsilon=1e-6),
        moe=MoE(
            **{"num_experts": 60, "dim": 1408, "experts_per_token": 4, "normalize": False},
            shared_dim=5632,
            shared_gate=True,
        ),
    ),
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
    # arXiv:2412.19437
    "deepseek-v3": _decoder(
        *(129280, 7168, 61, (128, 128, 192), 18432, 163840, 1e4),
        {
            "rope": Rope(
                **{"scaling": "yarn", "factor": 40.0, "original_length": 4096, "attention_factor": 1.0},
                interleaved=True,
            ),
            "scale": 192**-0.5 * (0.1 * math.log(40.0) + 1.0) ** 2,
            "latent": Latent(kv_rank=512, rope_dim=64, value_dim=128, q_rank=1536),
        },
        norm=Norm(epsilon=1e-6),
        moe=MoE(
            **{"num_experts": 256, "dim": 2048, "experts_per_token": 8, "shared_dim": 2048},
            **{"scores": "sigmoid", "selection_bias": True, "scale": 2.5, "num_groups": 8, "groups_per_token": 4},
        ),
        first=("dense",) * 3,
        variants=(Variant("dense", (("moe", None),)),),
    ),
    "gemma-2b": _gemma(2048, 18, (8, 1, 256), 16384, placement="pre"),
    **{
        name: _gemma(
            *(*sizes, {"softcap": 50.0, "scale": 256**-0.5}),
            head=Head(softcap=30.0),
            pattern=("local", "global"),
            variants=(Variant("local", (("attention.window", 4096),)), Variant("global")),
        )
        for name, sizes in {
            "gemma-2-2b": (2304, 26, (8, 4, 256), 9216),
            "gemma-2-9b": (3584, 42, (16, 8, 256), 14336),
        }.items()
    },
    "gemma-3-270m": _gemma3(640, 18, 2048, 512),
    "gemma-3-1b": _gemma3(1152, 26, 6912, 512),
    # arXiv:2404.14219
    "phi-3-mini": _decoder(32064, 3072, 32, (32, 32, 96), 8192, 4096, 1e4, {"window": 2047}),
    # arXiv:2501.00656: norms on what each half gives, and of all queries, or keys, together.
    "olmo-2-7b": _decoder(
        *(100352, 4096, 32, (32, 32, 128), 11008, 4096, 5e5, {"qk_norm": "all"}),
        norm=Norm(placement="output", epsilon=1e-6),
    ),
    # Every fourth layer has no positions (arXiv:2501.18795).
    "smollm3-3b": _decoder(
        *(128256, 2048, 36, (16, 4, 128), 11008, 65536, 5e6),
        norm=Norm(epsilon=1e-6),
        tied=True,
        pattern=("rotary",) * 3 + ("plain",),
        variants=(Variant("rotary"), Variant("plain", (("attention.rotary", False),))),
    ),
    # arXiv:2402.19173
    "starcoder2-3b": _decoder(
        *(49152, 3072, 30, (24, 2, 128), 12288, 16384, 999999.4420358813),
        {"bias": True, "output_bias": True, "window": 4096},
        {"activation": "gelu_tanh", "bias": True},
        norm=Norm(kind="layer", bias=True),
        tied=True,
    ),
    "pythia-160m": _pythia(768, 12, 12),
    "pythia-1b": _pythia(2048, 16, 8),
    "mamba2-130m": _mamba2(768, 24),
    "mamba2-370m": _mamba2(1024, 48),
    "mamba2-780m": _mamba2(1536, 48),
    "mamba2-1.3b": _mamba2(2048, 48),
    "mamba2-2.7b": _mamba2(2560, 64),
    "qwen3.5-9b": _qwen_delta(248320, 4096, 32, (16, 4, 256), 12288),
    "vit-b/16": _vit(768, 12, 12, 16),
    "vit-b/32": _vit(768, 12, 12, 32),
    "vit-l/16": _vit(1024, 24, 16, 16),
    "vit-l/32": _vit(1024, 24, 16, 32),
    "vit-h/14": _vit(1280, 32, 16, 14),
    **{
        f"dinov2-{name}": _dinov2(*sizes, MLP(dim=4 * sizes[0], activation="gelu", bias=True))
        for name, sizes in {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}.items()
    },
    "dinov2-giant": _dinov2(1536, 40, 24, MLP(dim=4096, activation="swiglu", bias=True)),
    **{
        f"resnet-{name}": _resnet("basic", (64, 128, 256, 512), depths)
        for name, depths in {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3)}.items()
    },
    **{
        f"resnet-{name}": _resnet("bottleneck", (256, 512, 1024, 2048), depths)
        for name, depths in {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}.items()
    },
    "convnext-tiny": _convnext(96, 9),
    "convnext-small": _convnext(96, 27),
    "convnext-base": _convnext(128, 27),
    "convnext-large": _convnext(192, 27),
    "bert-base": _bert(12, 768, 12),
    "bert-large": _bert(24, 1024, 16),
    "roberta-base": _roberta(12, 768, 12),
    "roberta-large": _roberta(24, 1024, 16),
    # arXiv:1910.01108: half of BERT's layers, and no types.
    "distilbert-base": _bert(6, 768, 12, Stem(positions="learned", norm=True)),
    "modernbert-base": _modernbert(22, 768, 12, 1152),
    "modernbert-large": _modernbert(28, 1024, 16, 2624),
    "electra-small": _electra(12, 256, 4, 128),
    "electra-base": _electra(12, 768, 12),
    "electra-large": _electra(24, 1024, 16),
    "wav2vec2-base": _wav2vec2(12, 768, 12, False),
    "wav2vec2-large": _wav2vec2(24, 1024, 16, True),
    "hubert-base": _wav2vec2(12, 768, 12, False),
    "hubert-large": _wav2vec2(24, 1024, 16, True),
    # all-MiniLM-L6 (arXiv:2002.10957): the embedding of a sentence, of length 1.
    "minilm-l6": _bert(6, 384, 12, head=None, tied=False, pool=Pool("mean", normalize=True)),
    "clip-vit-b/32": _clip(512, (768, 12, 12), 32, (512, 12, 8)),
    "clip-vit-b/16": _clip(512, (768, 12, 12), 16, (512, 12, 8)),
    "clip-vit-l/14": _clip(768, (1024, 24, 16), 14, (768, 12, 12)),
    "siglip-base-patch16-224": _siglip((768, 12, 12), 3072, 16, 224),
    "siglip-so400m-patch14-384": _siglip((1152, 27, 16), 4304, 14, 384),
    # LLaVA 1.5 (arXiv:2310.03744): the last but one block of CLIP's tower, and Vicuna.
    "llava-1.5-7b": VisionLanguage(
        image=replace(_clip(768, (1024, 24, 16), 14, (768, 12, 12), 336).image, {"pool": Pool("first", norm=True)}),
        projector=MLP(dim=4096, activation="gelu", bias=True),
        text=_decoder(*(32064, 4096, 32, (32, 32, 128), 11008, 4096, 1e4), stem=Stem(image_token=32000)),
    ),
    "t5-small": _t5(512, 6, 8, 64, 2048),
    "t5-base": _t5(768, 12, 12, 64, 3072),
    "t5-large": _t5(1024, 24, 16, 64, 4096),
    "t5-3b": _t5(1024, 24, 32, 128, 16384),
    "t5-11b": _t5(1024, 24, 128, 128, 65536),
    # arXiv:2210.11416
    "flan-t5-small": _t5(512, 8, 6, 64, 1024, True),
    "flan-t5-base": _t5(768, 12, 12, 64, 2048, True),
    "flan-t5-large": _t5(1024, 24, 16, 64, 2816, True),
    "flan-t5-xl": _t5(2048, 24, 32, 64, 5120, True),
    "flan-t5-xxl": _t5(4096, 24, 64, 64, 10240, True),
    "bart-base": _bart(768, 6, 12),
    "bart-large": _bart(1024, 12, 16),
    "whisper-tiny": _whisper(384, (4, 4), 6),
    "whisper-base": _whisper(512, (6, 6), 8),
    "whisper-small": _whisper(768, (12, 12), 12),
    "whisper-medium": _whisper(1024, (24, 24), 16),
    "whisper-large-v3": _whisper(1280, (32, 32), 20, 128, 51866),
    "whisper-large-v3-turbo": _whisper(1280, (32, 4), 20, 128, 51866),
    # Of tables and images; their inputs and outputs are as the data says.
    "mlp": Perceptron(),
    "resnet-tiny": ConvNet(widths=(32, 64, 128)),
}
