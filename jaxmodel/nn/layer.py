"""The base of every layer: weights declared with their layout, and the one way to multiply by them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmodel import weights
from jaxmodel.sharding import Partitioning

# A method that declares weights inline; models build on `Layer` and need nothing else of Linen.
compact = nn.compact

Shape = tuple[int, ...]
Initializer = Callable[[jax.Array, Shape, Any], jax.Array]

# The one precision policy. Parameters are stored in float32; products run in the compute dtype of the model's
# `Execution`; norm statistics, softmax, router, logits and loss stay in float32 whatever that is.
PARAMS = jnp.float32
STABLE = jnp.float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Declared:
    """An initialised parameter with its layout beside it, so that one pass over a model gives both trees."""

    value: jax.Array
    layout: str = dataclasses.field(metadata={"static": True})


def is_declared(node: Any) -> bool:
    """Whether a tree node is a parameter that still carries its layout."""
    return isinstance(node, Declared)


def params_of(declared: Any) -> Any:
    """The params of a tree of `Declared`."""
    return jax.tree.map(lambda node: node.value, declared, is_leaf=is_declared)


def layout_of(declared: Any) -> Any:
    """The layouts of a tree of `Declared`."""
    return jax.tree.map(lambda node: node.layout, declared, is_leaf=is_declared)


@dataclasses.dataclass(frozen=True)
class Weight:
    """A declared weight inside a layer: the leaf, and the sizes that its flattened dims stand for."""

    leaf: Any
    contracted: Shape
    produced: Shape
    table: bool


def einsum(x: jax.Array, weight: Weight) -> jax.Array:
    """x [..., *contracted] times a weight of any type, to [..., *produced] in x's dtype."""
    lead = x.shape[: x.ndim - len(weight.contracted)]
    y = weights.matmul(x.reshape(*lead, math.prod(weight.contracted)), weight.leaf, table=weight.table)
    return y.reshape(*lead, *weight.produced)


class Layer(nn.Module):
    """A Linen module that knows the mesh it is built for and declares its weights with their layouts."""

    partitioning: Partitioning | None

    def weight(
        self, name: str, layout: str, contracted: Shape, produced: Shape, init: Initializer, stack: Shape = ()
    ) -> Weight:
        """Declare a weight that multiplies; `init` sees the flattened shape [*stack, in, out]."""
        table = weights.parse(layout).table
        matrix = (math.prod(contracted), math.prod(produced))
        leaf = self._declare(name, layout, (*stack, *(matrix[::-1] if table else matrix)), init)
        return Weight(leaf, contracted, produced, table)

    def linear(
        self, x: jax.Array, name: str, layout: str, shape: Shape, init: Initializer, bias: bool = False
    ) -> jax.Array:
        """x times a weight called `name`, to [..., *shape]; plus what is called `name`_bias, of what it produces."""
        contracted = len(weights.parse(layout).contracted)
        y = einsum(x, self.weight(name, layout, x.shape[x.ndim - contracted :], shape, init))
        return y + self.vector(f"{name}_bias", bias_layout(layout), shape, zeros).astype(y.dtype) if bias else y

    def vector(self, name: str, layout: str, shape: Shape, init: Initializer) -> jax.Array:
        """Declare what is no matrix, never quantized, adapted or decayed: a scale, a bias, positions, a router."""
        return self._declare(name, layout, shape, init).astype(STABLE)  # however narrow it is stored

    def _declare(self, name: str, layout: str, shape: Shape, init: Initializer) -> Any:
        if not self.has_variable("params", name):
            # Read back what is there before asking Linen to check shapes: a packed leaf has others than `init` gives.
            self.param(name, lambda key: Declared(init(key, shape, PARAMS), layout))
        value = self.get_variable("params", name)
        leaf = value.value if is_declared(value) else value
        return leaf if self.partitioning is None else self.partitioning.gather(leaf, layout)

    def constrain(self, x: jax.Array, *dims: str | None) -> jax.Array:
        """x placed on the mesh by the names of its dims; unchanged without a mesh."""
        return x if self.partitioning is None else self.partitioning.constrain(x, *dims)

    def dropout(self, x: jax.Array, rate: float, train: bool) -> jax.Array:
        """Inverted dropout with the key that `apply` was given; the identity in evaluation."""
        if rate == 0.0 or not train:
            return x
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, x.shape)
        return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def bias_layout(layout: str) -> str:
    """The layout of what is added to a product with a weight of this layout."""
    parsed = weights.parse(layout)
    return " ".join((*parsed.stack, *("embed_bias" if dim == "embed" else dim for dim in parsed.produced)))


class Half(Layer):
    """Half of a block: it reads vectors [B,T,D] and writes such, by weights that begin as it is told."""

    dim: int
    init_input: Initializer
    init_output: Initializer

    def to_heads(self, x: jax.Array, name: str, heads: str, shape: Shape, bias: bool) -> jax.Array:
        """x [B,T,D] times a weight called `name`, to as many `heads` as `shape` begins with, [B,T,*shape]."""
        layout = " ".join(("embed ->", heads, "head_dim")[: 1 + len(shape)])
        y = self.linear(x, name, layout, shape, self.init_input, bias)
        return self.constrain(y, "batch", None, heads, *(None,) * (len(shape) - 1))

    def from_heads(self, x: jax.Array, bias: bool, scale: float | None) -> jax.Array:
        """x [B,T,H,K] brought back to vectors, [B,T,D]."""
        x = self.constrain(x, "batch", None, "heads", None)
        return scaled(self.linear(x, "output", "heads head_dim -> embed", (self.dim,), self.init_output, bias), scale)


def scaled(x: jax.Array, scale: float | None) -> jax.Array:
    """x times a number that a config may give, in x's dtype."""
    return x if scale is None else x * jnp.asarray(scale, x.dtype)


def softcapped(x: jax.Array, cap: float | None) -> jax.Array:
    """x brought between -cap and cap, smoothly; as it is without one."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def rngs(key: jax.Array | None) -> dict[str, jax.Array]:
    """What a module draws from in `apply`."""
    return {} if key is None else {"dropout": key}


def normal(scale: float | None) -> Initializer:
    """Normal weights with standard deviation `scale`, or 1/sqrt(inputs) when it is None."""
    return lambda key, shape, dtype: (
        jax.random.normal(key, shape, dtype) * (shape[-2] ** -0.5 if scale is None else scale)
    )


def small(scale: float | None) -> Initializer:
    """Normal for tables, which start small whatever their width: 0.02 where `scale` is None."""
    return normal(0.02 if scale is None else scale)


def he(key: jax.Array, shape: Shape, dtype: Any) -> jax.Array:
    """Normal with variance 2 / inputs, for layers before a ReLU (arXiv:1502.01852)."""
    return jax.random.normal(key, shape, dtype) * (2.0 / shape[-2]) ** 0.5


def constant(value: float) -> Initializer:
    """An initializer of one value."""
    return lambda key, shape, dtype: jnp.full(shape, value, dtype)


zeros, ones = constant(0.0), constant(1.0)
