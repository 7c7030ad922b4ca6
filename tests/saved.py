"""Checkpoints for the recipes to load: small models with what a run writes beside them."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxmodel import options
from jaxmodel.checkpoint import Checkpointer
from jaxmodel.config import replace
from jaxmodel.data.tokenizer import ByteTokenizer
from jaxmodel.train import TrainState
from tests.contract import GPT, built, params_of

LENGTH = 24
BYTES = replace(GPT, {"vocab_size": ByteTokenizer.vocab_size, "max_length": 64})


def language_model(workdir: Path) -> Path:
    """A run of a GPT over bytes after 5 steps; its data are 40 short documents beside the checkpoints."""
    texts = workdir / "texts"
    texts.mkdir(parents=True)
    for i in range(40):
        (texts / f"{i:02}.txt").write_text(
            f"Document {i} says: " + f"{i * i} is the square of {i}. é\n" * (1 + i % 7)
        )
    data = options.Data(
        path=str(texts), tokenizer="byte", length=LENGTH, heldout=0.2, cache=str(workdir / "cache")
    )
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
