"""A small problem: a student with a hidden layer learns what a teacher of its kind computes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmodel.optim import make_optimizer

LAYOUT = {"up": "features -> mlp", "bias": "mlp", "down": "mlp -> embed"}
INPUTS, HIDDEN, OUTPUTS, ROWS = 8, 64, 64, 64


def learnt(options, steps=200):
    """(loss before, loss after) of the student in a run of `steps`."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(ROWS, INPUTS)), jnp.float32)

    def weights():
        arrays = {
            "up": rng.normal(size=(INPUTS, HIDDEN)) / INPUTS**0.5,
            "bias": np.zeros(HIDDEN),
            "down": rng.normal(size=(HIDDEN, OUTPUTS)) / HIDDEN**0.5,
        }
        return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}

    def net(params):
        return jnp.tanh(x @ params["up"] + params["bias"]) @ params["down"]

    target, student = net(weights()), weights()
    optimizer = make_optimizer(options, steps, LAYOUT)

    def loss(params):
        return jnp.mean(jnp.square(net(params) - target))

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def train(params):
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)
        return losses[0], loss(params)

    return tuple(map(float, train(student)))
