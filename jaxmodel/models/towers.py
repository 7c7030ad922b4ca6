"""Two towers: images and texts as vectors of one space."""

import jax
import jax.numpy as jnp

from jaxmodel.errors import InputError
from jaxmodel.model import Batch, Key, Model, Outputs, Params, State, init_of, no_state
from jaxmodel.models.pairs import Towers
from jaxmodel.nn.layer import PARAMS, STABLE
from jaxmodel.sharding import Partitioning

BIAS = -10.0  # of logits at the beginning: nearly all pairs are wrong ones


def build(config: Towers, partitioning: Partitioning | None = None) -> Model:
    """Two towers as pure functions.

    The batch holds `images` and `tokens`, with what else the towers read (see the transformer), or one of them. Values
    are `image_embedding` [I,P] and `text_embedding` [T,P]; with both, `logits` float32[I,T], the similarity of every
    image and every text, as many of each as there are.

    Raises InputError (when built or called) for fields that contradict each other, and a batch with neither.
    """
    towers = {name: getattr(config, name).build(partitioning) for name in config.submodels}
    ends = {"logit_scale": config.logit_scale} | ({"logit_bias": BIAS} if config.logit_bias else {})

    def init(key: jax.Array) -> Params:
        return init_of(towers)(key) | {name: jnp.asarray(value, PARAMS) for name, value in ends.items()}

    def apply(params: Params, batch: Batch, state: State = None, *, key: Key = None, train: bool = False) -> Outputs:
        del state
        found, losses = {}, {}
        for i, (name, tower) in enumerate(towers.items()):
            if batch.get(config.reads[i]) is not None:
                mine = {each: batch[each] for each in tower.config.inputs if each in batch}
                drawn = None if key is None else jax.random.fold_in(key, i)
                out = tower.apply(params[name], mine, key=drawn, train=train)
                found[f"{name}_embedding"] = out["embedding"]
                losses |= {f"{name}/{loss}": value for loss, value in out.losses.items()}
        if not found:
            raise InputError(f"the model reads {' and '.join(config.reads)}: the batch needs one of them")
        if len(found) == len(towers):
            images, texts = (each.astype(STABLE) for each in found.values())
            logits = jnp.matmul(images, texts.T, precision="highest")
            logits = logits * jnp.exp(params["logit_scale"].astype(STABLE))
            found["logits"] = logits + params.get("logit_bias", jnp.zeros(())).astype(STABLE)
        return Outputs(found, {}, losses)

    layout = {name: tower.layout for name, tower in towers.items()} | dict.fromkeys(ends, "")
    return Model(init, apply, no_state, layout, config)
