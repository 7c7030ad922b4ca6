"""What the golden checkpoints hold. One that is there stays as it is: what old versions wrote does not change.

Schema 1 is made by `python -m tests.golden.make_checkpoints`; schema 2 was written by the last version that wrote it,
with `training_state(CONFIG.build())`.
"""

import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodel import weights
from jaxmodel.checkpoint import Checkpointer, record
from jaxmodel.data.tokenizer import ByteTokenizer
from jaxmodel.model import Model
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import MLP, Attention
from jaxmodel.train import TrainState

HERE = Path(__file__).parent
STEP = 3
CONFIG = Transformer(
    vocab_size=16, max_length=8, embed_dim=8, num_layers=2, attention=Attention(num_heads=2), mlp=MLP(dim=8)
)


def filled(tree: Any) -> Any:
    """Arrays in place of shapes, their values given by their paths alone."""

    def fill(path: Any, each: Any) -> np.ndarray:
        seed = zlib.crc32(weights.path_name(path).encode())
        return ((np.arange(each.size, dtype=np.int64) * 7919 + seed) % 255).reshape(each.shape).astype(each.dtype)

    return jax.tree_util.tree_map_with_path(fill, tree)


def training_state(model: Model) -> TrainState:
    """The state that every golden checkpoint of this model holds, int8 weights among it."""

    def make() -> TrainState:
        params = weights.quantize(model.init(jax.random.key(0)), model.layout, select="stack/*/mlp/*")
        trainable, _ = weights.partition(params, model.layout)
        return TrainState(jnp.int32(STEP), params, {"mean": trainable}, {})

    return filled(jax.eval_shape(make))


def renamed(tree: Any) -> Any:
    """A tree of dicts and tuples as schema 1 named it."""
    if isinstance(tree, dict):
        return {"attn" if name == "attention" else name: renamed(each) for name, each in tree.items()}
    return tuple(map(renamed, tree)) if type(tree) is tuple else tree


def make_schema_1(workdir: Path) -> None:
    """Schema 1 called the attention of a block "attn"; else it was schema 2."""
    model = CONFIG.build()
    state = jax.tree.map(jnp.asarray, training_state(model))
    state = TrainState(state.step, renamed(state.params), renamed(state.opt_state), {})
    record.SCHEMA = 1
    old = model._replace(layout=renamed(model.layout))
    with Checkpointer(workdir, old, fitted=ByteTokenizer(), info={"task": "language_model"}) as checkpointer:
        checkpointer.save(STEP, state)


if __name__ == "__main__":
    if not (HERE / "schema1").exists():  # what old versions wrote must not change with this one
        make_schema_1(HERE / "schema1")
