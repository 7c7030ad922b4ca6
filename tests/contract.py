"""The contract models: tiny, and between them every kind of thing a model can be. The laws run over this table."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np

from jaxmodel.model import Model, from_function, from_nnx
from jaxmodel.models.configs import Transformer, Variant
from jaxmodel.models.parts import MLP, Attention, Head, Images, MoE, Norm, PerLayer, Pool, Stem
from jaxmodel.models.plain import ConvNet, Perceptron

# Jitted as for users: where the last digits count, which other tests, compiled quickly, round more.
compiled = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
        **({"xla_cpu_use_fusion_emitters": True} if jax.__version__.startswith("0.10.") else {}),
    },
)

VOCAB, LENGTH, BATCH, DIM = 64, 16, 8, 32

GPT = Transformer(
    vocab_size=VOCAB,
    max_length=32,
    embed_dim=DIM,
    num_layers=2,
    attention=Attention(num_heads=8, bias=True, output_bias=True),
    mlp=MLP(dim=64, bias=True),
    norm=Norm(kind="layer", bias=True),
    stem=Stem(positions="learned"),
    tied=True,
)

# Five layers of a two-block pattern: a segment of two repeats, and one of the single local block left over.
PATTERN = Transformer(
    vocab_size=VOCAB,
    max_length=32,
    embed_dim=DIM,
    num_layers=5,
    attention=Attention(num_heads=8, num_kv_heads=2, rotary=True, qk_norm="head", softcap=50.0),
    mlp=MLP(dim=64, activation="swiglu"),
    head=Head(softcap=30.0),
    pattern=("local", "global"),
    variants=(Variant("local", (("attention.window", 6),)), Variant("global", (("attention.rope_theta", 1e5),))),
)

MIXTURE = Transformer(
    vocab_size=VOCAB,
    max_length=32,
    embed_dim=DIM,
    num_layers=3,
    attention=Attention(num_heads=8, rotary=True),
    mlp=MLP(dim=64, activation="geglu"),
    moe=MoE(num_experts=8, dim=32),
    first=("dense",),
    variants=(Variant("dense", (("moe", None),)),),
)

# Two blocks whose keys and values the four behind them reuse, and vectors for each layer.
REUSE = Transformer(
    vocab_size=VOCAB,
    max_length=32,
    embed_dim=DIM,
    num_layers=6,
    stem=Stem(scale=100.0),  # as large as what blocks add: the first of them then blows up no rounding
    attention=Attention(num_heads=8, num_kv_heads=2, rotary=True, qk_norm="head", sharing="reuse"),
    mlp=MLP(dim=64, activation="geglu"),
    per_layer=PerLayer(dim=8, vocab_size=VOCAB),
    first=("local_kept", "kept"),
    pattern=("local", "block"),
    variants=(
        Variant("local", (("attention.window", 6),)),
        Variant("local_kept", (("attention.window", 6), ("attention.sharing", "keep"))),
        Variant("kept", (("attention.sharing", "keep"),)),
    ),
)

# BERT's block, read by its first token; and ViT's, of images of 8 x 8 pixels.
ENCODER = Transformer(
    vocab_size=VOCAB,
    max_length=32,
    embed_dim=DIM,
    num_layers=2,
    attention=Attention(num_heads=8, causal=False, bias=True, output_bias=True),
    mlp=MLP(dim=64, activation="gelu", bias=True),
    norm=Norm(kind="layer", bias=True, placement="post"),
    stem=Stem(positions="learned", num_types=2, norm=True),
    pool=Pool(activation="tanh"),
    head=Head(outputs=10, bias=True),
)
VISION = Transformer(
    vocab_size=None,
    max_length=17,
    embed_dim=DIM,
    num_layers=2,
    attention=Attention(num_heads=8, causal=False, bias=True, output_bias=True),
    mlp=MLP(dim=64, activation="gelu", bias=True),
    norm=Norm(kind="layer", bias=True),
    stem=Stem(positions="learned"),
    images=Images(size=8, patch=2, channels=1),
    pool=Pool(),
    head=Head(outputs=10, bias=True),
)

CONV = ConvNet(num_classes=10, channels=1, widths=(16, 32), dropout=0.2)

PERCEPTRON = Perceptron(
    num_features=DIM, categories=(5, 12), num_outputs=10, hidden=(64, 32), norm="batch", dropout=0.1
)


class _Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(DIM, 64, rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.last = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, features: jax.Array) -> dict[str, jax.Array]:
        return {"logits": self.last(self.drop(jax.nn.relu(self.norm(self.first(features)))))}


def _init_function(key: jax.Array) -> Any:
    first, last = jax.random.split(key)
    return {
        "up": jax.random.normal(first, (DIM, 64)) * DIM**-0.5,
        "bias": jnp.zeros(64),
        "down": jax.random.normal(last, (64, 10)) * 0.125,
    }


def _apply_function(params: Any, batch: Any) -> dict[str, jax.Array]:
    return {"logits": jax.nn.relu(batch["features"] @ params["up"] + params["bias"]) @ params["down"]}


class Entry(NamedTuple):
    """A contract model, the task it is trained on, and the names of what it reads."""

    make: Any
    task: str
    inputs: str

    @property
    def config(self) -> Any:
        return self.make().config


CONTRACT: dict[str, Entry] = {
    "gpt": Entry(GPT.build, "language_model", "tokens"),
    "pattern": Entry(PATTERN.build, "language_model", "tokens"),
    "mixture": Entry(MIXTURE.build, "language_model", "tokens"),
    "reuse": Entry(REUSE.build, "language_model", "tokens"),
    "encoder": Entry(ENCODER.build, "classification", "tokens"),
    "vision": Entry(VISION.build, "classification", "images"),
    "conv": Entry(CONV.build, "classification", "images"),
    "perceptron": Entry(PERCEPTRON.build, "classification", "features categories"),
    "nnx": Entry(functools.partial(from_nnx, _Net, "features"), "classification", "features"),
    "function": Entry(functools.partial(from_function, _init_function, _apply_function), "classification", "features"),
}

CAUSAL = {"gpt": GPT, "pattern": PATTERN, "mixture": MIXTURE, "reuse": REUSE}


@functools.cache
def built(name: str) -> Model:
    """The model, built once a process, so that compiled functions are shared."""
    return CONTRACT[name].make()


@functools.cache
def params_of(name: str) -> Any:
    """Its parameters from key 0."""
    return jax.jit(built(name).init)(jax.random.key(0))


def batch_of(name: str, step: int = 0, rows: int = BATCH) -> dict[str, np.ndarray]:
    """A fixed host batch; row i of step k is always the same."""
    rng = np.random.default_rng((7, step))
    inputs = CONTRACT[name].inputs
    if CONTRACT[name].task == "language_model":
        stream = rng.integers(0, VOCAB, (rows, LENGTH + 1)).astype(np.int32)
        # Something to learn: every other token repeats the one before it.
        stream[:, 1::2] = stream[:, :-1:2]
        weights = np.ones((rows, LENGTH), np.float32)
        weights[:, -1] = rng.integers(0, 2, rows)
        return {"tokens": stream[:, :-1], "targets": stream[:, 1:], "weights": weights}
    targets = rng.integers(0, 10, rows).astype(np.int32)
    if inputs == "images":
        noise = rng.normal(size=(rows, 8, 8, 1)).astype(np.float32)
        values = noise + targets[:, None, None, None].astype(np.float32)
    elif inputs == "tokens":
        values = rng.integers(10, VOCAB, (rows, LENGTH)).astype(np.int32)
        values[:, 0] = targets
    else:
        values = rng.normal(size=(rows, DIM)).astype(np.float32)
        values[np.arange(rows), targets] += 3.0
    first, *more = inputs.split()
    batch = {first: values, "targets": targets, "weights": np.ones(rows, np.float32)}
    if more:  # the one column tells something, the other nothing
        batch[more[0]] = np.stack([targets % 5, rng.integers(0, 12, rows)], axis=1).astype(np.int32)
    return batch


def relative(a: Any, b: Any) -> float:
    """Largest difference of two trees over the largest magnitude of the second, array by array, at worst."""
    worst = 0.0
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        worst = max(worst, float(np.max(np.abs(x - y), initial=0.0) / max(np.max(np.abs(y), initial=0.0), 1e-30)))
    return worst


def same(a: Any, b: Any) -> bool:
    """Whether two trees are bitwise equal."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)
