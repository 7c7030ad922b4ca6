"""Named configs: the published sizes people ask for, as data."""

from __future__ import annotations

import dataclasses

from jaxmodel.models.configs import ConvNet, Perceptron, Transformer
from jaxmodel.models.parts import MLP, Attention, Head, Norm, Pool, Stem

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


def _llama3(num_layers: int, embed_dim: int, num_heads: int, num_kv_heads: int, mlp_dim: int) -> Transformer:
    """Llama 3's block (arXiv:2407.21783): RMS norm, rotary positions, grouped heads, SwiGLU."""
    return Transformer(
        vocab_size=128256,
        max_length=8192,
        embed_dim=embed_dim,
        num_layers=num_layers,
        attention=Attention(num_heads=num_heads, num_kv_heads=num_kv_heads, rotary=True, rope_theta=500000.0),
        mlp=MLP(dim=mlp_dim, activation="swiglu"),
    )


def _bert(
    num_layers: int, embed_dim: int, num_heads: int, stem: Stem | None = None, **overrides
) -> Transformer:
    """BERT's block (arXiv:1810.04805): both ways, layer norm after each residual; with the head of masked tokens."""
    usual = {"vocab_size": 30522, "max_length": 512, "head": Head(activation="gelu", bias=True), "tied": True}
    return Transformer(
        embed_dim=embed_dim,
        num_layers=num_layers,
        attention=Attention(num_heads=num_heads, causal=False, bias=True, output_bias=True),
        mlp=MLP(dim=4 * embed_dim, activation="gelu", bias=True),
        norm=Norm(kind="layer", bias=True, placement="post", epsilon=1e-12),
        stem=stem or Stem(positions="learned", num_types=2, norm=True),
        init_scale=0.02,
        **usual | overrides,
    )


def _roberta(num_layers: int, embed_dim: int, num_heads: int) -> Transformer:
    """RoBERTa (arXiv:1907.11692): BERT with another vocabulary; positions begin behind the row of padding."""
    stem = Stem(positions="learned", position_offset=2, num_types=1, norm=True)
    norm = Norm(kind="layer", bias=True, placement="post", epsilon=1e-5)
    return dataclasses.replace(_bert(num_layers, embed_dim, num_heads, stem), vocab_size=50265, norm=norm)


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
    "llama3-8b": _llama3(32, 4096, 32, 8, 14336),
    "bert-base": _bert(12, 768, 12),
    "bert-large": _bert(24, 1024, 16),
    "roberta-base": _roberta(12, 768, 12),
    "roberta-large": _roberta(24, 1024, 16),
    # arXiv:1910.01108: half of BERT's layers, and no types.
    "distilbert-base": _bert(6, 768, 12, Stem(positions="learned", norm=True)),
    # all-MiniLM-L6 (arXiv:2002.10957): the embedding of a sentence, of length 1.
    "minilm-l6": _bert(6, 384, 12, head=None, tied=False, pool=Pool("mean", normalize=True)),
    # Of tables and images; their inputs and outputs are as the data says.
    "mlp": Perceptron(),
    "resnet-tiny": ConvNet(widths=(32, 64, 128)),
}
