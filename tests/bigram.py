"""The smallest language model: one token of context, weights of any leaf type, a head to run apart."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodel.model import Model, Outputs, from_function
from jaxmodel.weights import matmul, take

V, D, B, T = 11, 4, 8, 6


def bigram() -> Model:
    """Values `logits` and `hidden`, from `tokens`, or `logits` from `hidden`."""

    def init(key):
        table, head = jax.random.normal(key, (V, D)), jax.random.normal(key, (D, V))
        return {"table": table, "head": head, "bias": jnp.arange(V) / V}

    def apply(params, batch):
        hidden = batch["hidden"] if "hidden" in batch else take(params["table"], batch["tokens"], jnp.float32)
        return {"logits": matmul(hidden, params["head"]) + params["bias"], "hidden": hidden}

    layout = {"table": "vocab <- embed", "head": "embed -> vocab", "bias": "vocab"}
    return from_function(init, apply, layout=layout, name="bigram")


def routed(model: Model) -> Model:
    """The model with a loss of its own, one number a sequence, as routers have."""

    def apply(params, batch, state=None, *, key=None, train=False):
        out = model.apply(params, batch, state, key=key, train=train)
        if "tokens" not in batch:
            return out
        balance = jnp.mean(jnp.square(out["hidden"]), axis=(1, 2))
        return Outputs(out.values, out.state, {"balance": balance})

    return model._replace(apply=apply)


def batch_of(step=0, rows=B) -> dict[str, Any]:
    """Rows that hold from all to none of their targets; the last is padding."""
    rng = np.random.default_rng((3, step))
    stream = rng.integers(0, V, (rows, T + 1)).astype(np.int32)
    weights = (rng.random((rows, T)) < 0.6).astype(np.float32)
    weights[0, 0], weights[-1] = 1, 0
    return {"tokens": stream[:, :-1], "targets": stream[:, 1:], "weights": weights}
