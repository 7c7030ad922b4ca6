"""Checkpoints for the recipes to load: small models with what a run writes beside them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from jaxmodel import options
from jaxmodel.checkpoint import Checkpointer
from jaxmodel.config import replace
from jaxmodel.data.tokenizer import ByteTokenizer
from jaxmodel.data.tokenizer_files import write_tokenizer
from jaxmodel.interop.huggingface import directory
from jaxmodel.interop.huggingface.families import FAMILIES
from jaxmodel.interop.huggingface.table import read_config
from jaxmodel.train import TrainState
from tests.contract import GPT, built, params_of

LENGTH = 24
BYTES = replace(GPT, {"vocab_size": ByteTokenizer.vocab_size, "max_length": 64})


def language_model(workdir: Path) -> Path:
    """A run of a GPT over bytes after 5 steps; its data are 40 short documents beside the checkpoints."""
    texts = workdir / "texts"
    texts.mkdir(parents=True)
    for i in range(40):
        (texts / f"{i:02}.txt").write_text(f"Document {i} says: " + f"{i * i} is the square of {i}. é\n" * (1 + i % 7))
    data = options.Data(path=str(texts), tokenizer="byte", length=LENGTH, heldout=0.2, cache=str(workdir / "cache"))
    params = jax.jit(BYTES.build().init)(jax.random.key(0))
    info = {"task": "language_model", "data": dataclasses.asdict(data)}
    with Checkpointer(workdir, BYTES.build(), fitted=ByteTokenizer(), info=info) as checkpointer:
        checkpointer.save(5, TrainState(jnp.int32(5), params, (), {}))
    return workdir


def classifier(workdir: Path) -> Path:
    """A run of a convolutional classifier, with statistics that are not those it starts with."""
    statistics = jax.tree.map(lambda array: array + 0.5, built("conv").start())
    with Checkpointer(workdir, built("conv"), info={"task": "classification"}) as checkpointer:
        checkpointer.save(7, TrainState(jnp.int32(7), params_of("conv"), (), statistics))
    return workdir


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def huggingface(
    folder: Path, name: str = "llama", architecture: str | None = None, dtype: str = "float32", **more: Any
) -> Path:
    """A Hugging Face directory with random weights, and a tokenizer of bytes if it reads tokens."""
    text = {} if "image_size" in more else {"vocab_size": 288, "max_position_embeddings": 64}
    said = {"model_type": name, **SIZES, **text, **more}
    config, architecture = read_config(
        FAMILIES[name], said | {"architectures": architecture and [architecture]}, "config.json"
    )
    model, rng = config.build(), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def leaf(path: Any, shape: Any) -> jax.Array:
        usual = 1.0 if path[-1].key == "scale" else 0.0  # of norms
        return jnp.asarray(usual + rng.normal(size=shape.shape) * 0.1, dtype)

    params = jax.tree_util.tree_map_with_path(leaf, shapes)
    said["architectures"] = [architecture]
    directory.write(folder, model, params, info={"huggingface": {"config": said}})
    if "tokens" in config.reads and config.causal:
        write_tokenizer(folder, ByteTokenizer())
    elif "tokens" in config.reads:
        _masked_bytes(folder)
    return folder


def _masked_bytes(folder: Path) -> None:
    """A tokenizer as BERT has one: [CLS] before and [SEP] behind a text, and a token for what is hidden."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *map(chr, range(32, 127)), *(f"##{chr(i)}" for i in range(32, 127))]
    inner: Any = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    inner.add_special_tokens(special)
    inner.save(str(folder / "tokenizer.json"))
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
