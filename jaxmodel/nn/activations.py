"""Activations by name: elementwise functions that keep nothing but a slope for the backward pass."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Elementwise = Callable[[jax.Array], jax.Array]


def slope_saved(function: Elementwise) -> Elementwise:
    """The same elementwise function, whose slope is computed with its value and is all that the backward pass keeps.

    Left alone, a GELU stores several intermediates as large as its input: on CPU a fifth of an MLP's time.
    """

    @jax.custom_jvp
    def saved(x: jax.Array) -> jax.Array:
        return function(x)

    @saved.defjvp
    def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
        (x,), (dx,) = primals, tangents
        value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
        return value, slope * dx

    return saved


gelu = slope_saved(lambda x: jax.nn.gelu(x, approximate=False))
gelu_tanh = slope_saved(lambda x: jax.nn.gelu(x, approximate=True))
silu = slope_saved(jax.nn.silu)
quick_gelu = slope_saved(lambda x: x * jax.nn.sigmoid(1.702 * x))

# name -> (non-linearity, whether a gate multiplies it)
ACTIVATIONS: dict[str, tuple[Elementwise, bool]] = {
    "relu": (jax.nn.relu, False),
    "leaky_relu": (jax.nn.leaky_relu, False),  # slope 0.01 below zero
    "elu": (slope_saved(jax.nn.elu), False),  # arXiv:1511.07289
    "gelu": (gelu, False),  # arXiv:1606.08415
    "gelu_tanh": (gelu_tanh, False),
    "quick_gelu": (quick_gelu, False),
    "silu": (silu, False),  # also called swish, arXiv:1710.05941
    "mish": (slope_saved(jax.nn.mish), False),  # arXiv:1908.08681
    "tanh": (slope_saved(jnp.tanh), False),
    "sigmoid": (slope_saved(jax.nn.sigmoid), False),
    "softplus": (slope_saved(jax.nn.softplus), False),
    "relu_squared": (lambda x: jnp.square(jax.nn.relu(x)), False),  # arXiv:2109.08668
    "swiglu": (silu, True),
    "geglu": (gelu_tanh, True),
    "geglu_exact": (gelu, True),
    "quick_geglu": (quick_gelu, True),
}
