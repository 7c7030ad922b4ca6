"""Which mesh axes a logical dim is split over: the one table."""

from __future__ import annotations

from collections.abc import Mapping

AXES = ("data", "fsdp", "expert", "tensor")

Rules = tuple[tuple[str, tuple[str, ...]], ...]

# A dim that is not named here is never split. Weights and activations share the names of the dims that
# tensor parallelism cuts (heads, mlp, vocab): a layer's output leaves the product split as its weight was.
RULES: Rules = (
    # -- activations -----------------------------------------------------------------------------
    ("batch", ("data", "fsdp")),  # every device holds whole sequences; fsdp is data parallelism too
    # -- weights ---------------------------------------------------------------------------------
    ("embed", ("fsdp",)),  # stored in pieces; gathered, as over every axis of `batch`, just before use
    ("filters", ("fsdp", "tensor")),  # of a convolution; its small inputs stay whole
    ("units", ("fsdp", "tensor")),  # of a perceptron's layer, as filters
    ("experts", ("expert",)),  # each device holds some of the experts
    # -- both ------------------------------------------------------------------------------------
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("mlp", ("tensor",)),
    ("vocab", ("tensor",)),
)


def with_rules(changes: Mapping[str, tuple[str, ...]], rules: Rules = RULES) -> Rules:
    """The table with some rows replaced or added.

    >>> dict(with_rules({"embed": ("fsdp", "data")}))["embed"]
    ('fsdp', 'data')
    """
    kept = tuple((name, axes) for name, axes in rules if name not in changes)
    return kept + tuple((name, tuple(axes)) for name, axes in changes.items())
