"""The feed-forward half of a block: a plain or gated MLP, or a mixture of experts.

B batch, T time, D model dim, F hidden, E experts, N = tokens sent to experts.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel import weights
from jaxmodel.errors import InputError
from jaxmodel.models import parts
from jaxmodel.nn.activations import ACTIVATIONS
from jaxmodel.nn.layer import STABLE, Half, bias_layout, compact, ones, scaled, zeros
from jaxmodel.nn.mask import segment_starts
from jaxmodel.nn.norm import Norm


class MLP(Half):
    """x [...,E] to [..., D] through F hidden units; in a block E is D."""

    config: parts.MLP

    @compact
    def __call__(self, x: jax.Array) -> jax.Array:
        activation, gated = ACTIVATIONS[self.config.activation]
        h = activation(scaled(self._up(x, "gate" if gated else "up"), self.config.gate_scale))
        if gated:
            h = h * self._up(x, "up")
        y = self.linear(h, "down", "mlp -> embed", (self.dim,), self.init_output, self.config.bias)
        return scaled(y, self.config.output_scale)

    def _up(self, x: jax.Array, name: str) -> jax.Array:
        y = self.linear(x, name, "embed -> mlp", (self.config.dim,), self.init_input, self.config.bias)
        return self.constrain(y, "batch", *(None,) * (y.ndim - 2), "mlp")


class MoE(Half):
    """Every token goes through its top experts, none is dropped (arXiv:2211.15841); h [B,T,D] to [B,T,D].

    What is `apart` reads x, from which h came by the norm of a block's half; the expert of every token reads h.

    A token's result depends on that token alone and the losses on one sequence, never on what shares the device. With a
    `capacity_factor` an expert takes but so many tokens of a sequence, the earlier first (arXiv:2101.03961): others get
    0 from it. That is for whole sequences: where a cache holds the earlier part of one, nothing is dropped.
    """

    config: parts.MoE
    norm: parts.Norm = parts.Norm()

    @compact
    def __call__(
        self, h: jax.Array, real: jax.Array, segments: jax.Array | None = None, whole: bool = True, x: Any = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        config, E = self.config, self.config.num_experts
        asks, x = (self._normed(name, x) if config.apart else h for name in ("router_norm", "expert_norm"))
        asks = asks.astype(STABLE) * (self.dim**-0.5 if config.apart else 1.0)
        logits = asks @ self.vector("router", "embed experts", (self.dim, E), self.init_input)
        if config.bias:
            logits = logits + self.vector("router_bias", "experts", (E,), zeros)
        chance, gates, chosen = self._route(logits)
        leaves, layouts = self._experts()
        sent = chosen
        if config.capacity_factor is not None and whole:
            room = self._room(chosen, real, segments, config.capacity_factor)
            sent = jnp.where(room, chosen, E)  # an expert that nobody has
        y = self._dispatch(layouts, x, gates.astype(x.dtype), sent, leaves)
        y = self._normed("expert_output_norm", y)
        if config.shared_dim is not None:
            y = y + self._normed("shared_output_norm", self._shared(h, config.shared_dim))
        return y, self._losses(logits, chance, chosen, real)

    def _normed(self, name: str, x: jax.Array) -> jax.Array:
        return Norm(self.partitioning, self.norm, name=name)(x) if self.config.apart else x

    def _route(self, logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Probabilities of all experts [B,T,E]; gates of each token's own, and which these are [B,T,K]."""
        config = self.config
        softmax = config.scores == "softmax"
        scores = jax.nn.softmax(logits, axis=-1) if softmax else jax.nn.sigmoid(logits)
        ranked = scores
        if config.selection_bias:
            ranked = ranked + self.vector("selection_bias", "experts", (config.num_experts,), zeros)
        if config.num_groups > 1:
            grouped = ranked.reshape(*ranked.shape[:-1], config.num_groups, -1)
            best, _ = _top(grouped, grouped, config.group_best)
            groups = jnp.sum(best, axis=-1)
            _, chosen = _top(groups, groups, config.groups_per_token)
            allowed = jnp.any(jax.nn.one_hot(chosen, config.num_groups, dtype=bool), axis=-2)
            ranked = jnp.where(allowed[..., None], grouped, -jnp.inf).reshape(ranked.shape)
        gates, chosen = _top(ranked, scores, config.experts_per_token)
        if config.normalize:
            gates = gates / jnp.sum(gates, axis=-1, keepdims=True)
        if config.scale != 1.0:
            gates = gates * config.scale
        if config.apart:
            gates = gates * self.vector("expert_scale", "experts", (config.num_experts,), ones)[chosen]
        return scores if softmax else scores / jnp.sum(scores, axis=-1, keepdims=True), gates, chosen

    def _room(self, chosen: jax.Array, real: jax.Array, segments: jax.Array | None, factor: float) -> jax.Array:
        """Whether each of a token's experts has room for it, bool[B,T,K]; padding needs none and gets none."""
        E, (_, T, top) = self.config.num_experts, chosen.shape
        picked = jnp.any(jax.nn.one_hot(chosen, E, dtype=bool), axis=2) & real[..., None]
        before = jnp.cumsum(picked, axis=1) - picked  # tokens [B,T,E] that an expert got already
        if segments is None:
            length = jnp.sum(real, axis=1, keepdims=True)
        else:
            before = before - jnp.take_along_axis(before, segment_starts(segments)[..., None], axis=1)
            count = jax.vmap(lambda row, mine: jnp.bincount(row, mine, length=T + 1)[row])
            length = count(segments, real.astype(jnp.int32))
        room = jnp.asarray([math.ceil(factor * count * top / E) for count in range(T + 1)])[length]
        return jnp.take_along_axis(before < room[..., None], chosen, axis=2) & real[..., None]

    def _shared(self, x: jax.Array, width: int) -> jax.Array:
        """What the expert of all tokens gives."""
        config = parts.MLP(dim=width, activation=self.config.activation)
        y = MLP(self.partitioning, self.dim, self.init_input, self.init_output, config, name="shared")(x)
        if not self.config.shared_gate:
            return y
        gate = self.vector("shared_gate", "embed classes", (self.dim, 1), self.init_input)
        return y * jax.nn.sigmoid(x.astype(STABLE) @ gate).astype(y.dtype)

    def _experts(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Weights and biases of all experts by name, and their layouts."""
        E, D, F = self.config.num_experts, self.dim, self.config.dim
        read = "experts; embed -> mlp", (D,), (F,), self.init_input
        write = "experts; mlp -> embed", (F,), (D,), self.init_output
        ways = {"gate": read} if ACTIVATIONS[self.config.activation][1] else {}
        ways |= {"up": read, "down": write}
        leaves = {name: self.weight(name, *way, (E,)).leaf for name, way in ways.items()}
        layouts = {name: layout for name, (layout, *_) in ways.items()}
        if self.config.bias:
            for name, (layout, _, shape, _) in ways.items():
                layouts[f"{name}_bias"] = beside = bias_layout(layout)
                leaves[f"{name}_bias"] = self.vector(f"{name}_bias", beside, (E, *shape), zeros)
        return leaves, layouts

    def _dispatch(self, layouts: Mapping[str, str], *args: Any) -> jax.Array:
        """Sort tokens by expert and multiply group by group, on each device for its own sequences and experts.

        What comes after layouts is what `_compute` takes beside `share`.
        """
        partitioning, x, leaves = self.partitioning, args[0], args[-1]
        if partitioning is None:
            return self._compute(0, *args)
        across = partitioning.mesh_axes(("experts",))
        # Rows that the mesh does not divide (a prompt or two) stay whole, and every device works on all of them.
        rows = partitioning.spec((("batch",),), x.shape[:1])
        batch = {axis for axis in partitioning.mesh_axes(("batch",)) if rows[0] is not None}
        if batch & set(across):
            raise InputError(f"rules put `batch` and `experts` on {', '.join(across)}: give them axes of their own")
        manual = batch | set(across)
        if not manual:
            return self._compute(0, *args)

        def local(*args: Any) -> jax.Array:
            y = self._compute(jax.lax.axis_index(across) if across else 0, *args)
            return jax.lax.psum(y, across) if across else y

        without = tuple(axis for axis in partitioning.mesh.axis_names if axis not in across)
        specs = rows, rows, rows, partitioning.specs(layouts, leaves, without)
        split = {"mesh": partitioning.mesh, "in_specs": specs, "out_specs": rows, "axis_names": manual}
        return jax.shard_map(local, **split, check_vma=False)(*args)

    def _compute(
        self, share: jax.Array | int, x: jax.Array, gates: jax.Array, chosen: jax.Array, leaves: Mapping[str, Any]
    ) -> jax.Array:
        """The experts that `leaves` holds, the `share`-th of equal shares, applied to the tokens that chose them."""
        B, T, D = x.shape
        config, top = self.config, self.config.experts_per_token
        held = jax.eval_shape(weights.dense, leaves["up"]).shape[0]
        expert = chosen.reshape(-1) - share * held
        mine = (expert >= 0) & (expert < held)
        expert = jnp.where(mine, expert, held)  # others sort to the end, behind every group
        order = jnp.argsort(expert, stable=True)
        sizes = jnp.bincount(expert, length=held + 1)[:held].astype(jnp.int32)
        of_row = jnp.minimum(expert[order], held - 1)
        (activation, gated), limit = ACTIVATIONS[config.activation], config.limit

        def product(x: jax.Array, name: str) -> jax.Array:
            y = weights.grouped(x, leaves[name], sizes)
            return y + leaves[f"{name}_bias"][of_row].astype(y.dtype) if config.bias else y

        rows = x.reshape(B * T, D)[order // top]
        h = product(rows, "gate" if gated else "up")
        h = activation(h if limit is None else jnp.minimum(h, limit))
        if gated:
            up = product(rows, "up")
            up = up if limit is None else jnp.clip(up, -limit, limit)
            h = h * (up + config.up_offset if config.up_offset else up)
        y = product(h, "down")
        back = jnp.where(mine[:, None], y[jnp.argsort(order)], 0.0)
        return jnp.sum(back.reshape(B, T, top, D) * gates[..., None], axis=2)

    def _losses(self, logits: jax.Array, chance: jax.Array, chosen: jax.Array, real: jax.Array) -> dict[str, jax.Array]:
        """float32[B] each: load balancing over one sequence's tokens, and the router z-loss."""
        count = jnp.maximum(jnp.sum(real, axis=1), 1).astype(STABLE)
        weight = real[..., None].astype(STABLE)
        picked = jnp.sum(jax.nn.one_hot(chosen, self.config.num_experts, dtype=STABLE), axis=2)
        share = jnp.sum(picked * weight, axis=1) / (count[:, None] * self.config.experts_per_token)
        mean = jnp.sum(chance * weight, axis=1) / count[:, None]
        z = jnp.sum(jax.nn.logsumexp(logits, axis=-1) ** 2 * real, axis=1) / count
        balance = self.config.num_experts * jnp.sum(share * mean, axis=-1)
        return {"balance": self.config.balance_loss * balance, "router_z": self.config.z_loss * z}


def _top(ranked: jax.Array, scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Scores of the best `count` of the last axis, and their indices.

    As `lax.top_k`, which no mesh can split by rows.
    """
    left, values, indices = ranked, [], []
    for _ in range(count):
        index = jnp.argmax(left, axis=-1)
        here = jax.nn.one_hot(index, left.shape[-1], dtype=bool)
        values.append(jnp.sum(jnp.where(here, scores, 0.0), axis=-1))
        indices.append(index)
        left = jnp.where(here, -jnp.inf, left)
    return jnp.stack(values, axis=-1), jnp.stack(indices, axis=-1).astype(jnp.int32)
