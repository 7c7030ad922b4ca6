"""A language model that sees: images through a tower and a projector, as vectors among the tokens of a text."""

import jax
import jax.numpy as jnp

from jaxmodel.model import Batch, Key, Model, Outputs, Params, State, start_of
from jaxmodel.models.pairs import VisionLanguage
from jaxmodel.nn import layer
from jaxmodel.nn.layer import normal
from jaxmodel.nn.mlp import MLP
from jaxmodel.sharding import Partitioning


def build(config: VisionLanguage, partitioning: Partitioning | None = None) -> Model:
    """Tower, projector and language model as pure functions.

    The batch holds `tokens` and what else the language model reads (see the transformer), and may hold `images`
    float32[I,H,W,C], each of which stands for `config.num_vectors` image tokens: the first for the first of them,
    whichever rows of the batch they are in. Values, state and errors are those of the language model; state and params
    of it are under "text". With a cache, images are read with the prompt.
    """
    whole, tower, text = (each.build(partitioning) for each in (config.image, config.tower, config.text))
    width = config.text.embed_dim

    def projector(partitioning: Partitioning | None) -> MLP:
        return MLP(partitioning, width, normal(None), normal(None), config.projector)

    def declare(key: jax.Array) -> Params:
        return projector(None).init({"params": key}, jnp.zeros((1, config.image.embed_dim)))["params"]

    def init(key: jax.Array) -> Params:
        image, between, language = jax.random.split(key, 3)
        between = layer.params_of(declare(between))
        return {"image": whole.init(image), "projector": between, "text": text.init(language)}

    def seen(params: Params, images: jax.Array, key: Key, train: bool) -> jax.Array:
        """Images as vectors [N,D], one after the other."""
        stack = jax.tree.map(lambda array: array[: tower.config.num_layers], params["image"]["stack"])
        hidden = tower.apply({**params["image"], "stack": stack}, {"images": images}, key=key, train=train)["hidden"]
        vectors = projector(partitioning).apply({"params": params["projector"]}, hidden[:, -config.num_vectors :])
        return jnp.reshape(vectors, (-1, width))  # pyright: ignore[reportArgumentType]

    def apply(params: Params, batch: Batch, state: State = None, *, key: Key = None, train: bool = False) -> Outputs:
        keys = (None, None) if key is None else jax.random.split(key)
        given = {name: batch[name] for name in (*config.text.inputs, "hidden") if name in batch}
        if batch.get("images") is not None:
            given["vectors"] = seen(params, batch["images"], keys[0], train)
        out = text.apply(params["text"], given, state and state["text"], key=keys[1], train=train)
        return Outputs(out.values, {"text": out.state} if out.state else {}, out.losses)

    between = layer.layout_of(jax.eval_shape(declare, jax.random.key(0)))
    layout = {"image": whole.layout, "projector": between, "text": text.layout}
    return Model(init, apply, start_of({"text": text}), layout, config)
