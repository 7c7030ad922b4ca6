"""Metrics are (numerator, denominator) pairs: added over batches, divided once, the same however cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

Pair = tuple[Any, Any]  # float32[] each, on the device; floats on the host
Metrics = dict[str, Pair]

# What is not simply numerator / denominator.
FINISH: dict[str, Callable[[float], float]] = {
    "perplexity": lambda nats: math.inf if nats > 700 else math.exp(nats)
}


def add(first: Mapping[str, Pair], second: Mapping[str, Pair]) -> Metrics:
    """The metrics of two batches as those of one; both have the same names."""
    return jax.tree.map(lambda a, b: a + b, dict(first), dict(second))


def to_host(metrics: Mapping[str, Pair]) -> Metrics:
    """The pairs as Python floats (64 bits), so that many batches add up exactly; waits for the device."""
    return jax.tree.map(float, jax.device_get(dict(metrics)))


def finish(metrics: Mapping[str, Pair]) -> dict[str, float]:
    """Numbers from pairs; `nan` where nothing was counted.

    >>> finish({"accuracy": (0.0, 0.0), "loss": (6.0, 3.0), "perplexity": (0.0, 3.0)})
    {'accuracy': nan, 'loss': 2.0, 'perplexity': 1.0}
    """

    def ratio(name: str, pair: Pair) -> float:
        numerator, denominator = pair
        mean = numerator / denominator if denominator else math.nan
        return FINISH[name](mean) if name in FINISH else mean

    return {name: ratio(name, pair) for name, pair in to_host(metrics).items()}
