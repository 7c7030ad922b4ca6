"""A model's config in small: the same kinds of blocks, heads, experts and stages, few and narrow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxmodel.config import replace
from jaxmodel.models.configs import Transformer
from jaxmodel.models.plain import ConvNet
from jaxmodel.models.presets import PRESETS

# A size by the name of its field; a number that is smaller already stays.
SIZES: Mapping[str, int] = {
    **{"vocab_size": 64, "max_length": 32, "embed_dim": 32, "dim": 48, "head_dim": 8, "window": 4, "num_heads": 4},
    **{"num_experts": 4, "experts_per_token": 2, "shared_dim": 24, "size": 8, "patch": 4},
    **{"state_dim": 8, "num_groups": 2, "chunk": 4, "groups_per_token": 1},
    **{"kv_rank": 12, "q_rank": 16, "rope_dim": 4, "value_dim": 6},
    **{"position_kernel": 8, "position_groups": 4},
    **{"num_classes": 5, "outputs": 5, "image_token": 2, "samples": 3840, "bands": 16},
}  # fmt: skip


def shrunk(config: Any) -> Any:
    """The config in small; what two models have in common when shrunk need be tried once."""
    small: Any = _by_name(config)
    if isinstance(config, Transformer):
        small = _transformer(config, small)
    if isinstance(config, ConvNet):
        small = _convnet(config, small)
    for part in getattr(config, "submodels", ()):
        small = dataclasses.replace(small, **{part: shrunk(getattr(config, part))})
    return small


def distinct(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Shrunk configs of all presets, each once, by the names of those that it stands for.

    Args:
      facts: sizes of data, for presets that leave theirs to them.
    """
    names: dict[Any, list[str]] = {}
    for name, config in PRESETS.items():
        unknown: tuple[str, ...] = getattr(config, "by_data", ())
        sizes = {each: facts[each] for each in unknown if getattr(config, each) is None}
        config = dataclasses.replace(config, **sizes)
        names.setdefault(shrunk(config), []).append(name)
    return {" ".join(each): config for config, each in names.items()}


def batch_of(config: Any, rows: int = 8, length: int = 12) -> dict[str, np.ndarray]:
    """Random arrays of all that a model cannot do without."""
    rng = np.random.default_rng(0)
    found, free = {}, {"batch": rows}
    if getattr(config, "waveform", None) is not None:
        free["samples"] = config.waveform.samples(length)
    for name in config.reads:
        dtype, dims = config.inputs[name]
        shape = [each if isinstance(each, int) else free.get(each, length) for each in dims]
        found[name] = rng.integers(0, 3, shape) if dtype == "int32" else rng.normal(size=shape)
        found[name] = found[name].astype(dtype)
    return found


def params_of(config: Any) -> Any:
    """Of the model of a config, from key 0."""
    return jax.jit(config.build().init)(jax.random.key(0))


def _by_name(config: Any) -> Any:
    """Sizes made small, in a config and all those within it."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found[field.name] = _by_name(value)
        elif isinstance(value, int) and not isinstance(value, bool) and field.name in SIZES:
            found[field.name] = min(value, SIZES[field.name])
    return dataclasses.replace(config, **found)


def _transformer(config: Transformer, small: Transformer) -> Transformer:
    """Layers: the first of each kind at the beginning, and the pattern once; as many key heads as is in proportion."""
    first = tuple(dict.fromkeys(config.first))
    pattern = config.pattern
    if len(pattern) > 6:  # each kind once
        pattern = tuple(dict.fromkeys(pattern))
    layers = len(first) + max(len(pattern), 2 - len(first))
    changes: dict[str, Any] = {"first": first, "pattern": pattern, "num_layers": layers}
    changes |= _heads(config.attention, "attention.", small.attention.num_heads)
    if small.length is not None:
        changes["max_length"] = small.length
    if small.waveform is not None:
        changes["waveform.dims"] = (16,) * len(small.waveform.dims)
    if small.pool is not None and small.pool.dim is not None:
        changes["pool.dim"] = small.embed_dim
    variants = []
    for variant in config.variants:
        if variant.name in (*first, *pattern):
            overrides = dict(variant.overrides)
            overrides |= {
                path: min(value, SIZES[path.rpartition(".")[2]])
                for path, value in overrides.items()
                if isinstance(value, int) and not isinstance(value, bool) and path.rpartition(".")[2] in SIZES
            }
            overrides |= {path: _by_name(value) for path, value in overrides.items() if dataclasses.is_dataclass(value)}
            variants.append(dataclasses.replace(variant, overrides=tuple(overrides.items())))
    return replace(small, {**changes, "variants": tuple(variants)})


def _convnet(config: ConvNet, small: ConvNet) -> ConvNet:
    """Two stages, the first of two blocks, so that a small image has something left at their end."""
    depths = None if config.depths is None else (2, 1)
    stem = dataclasses.replace(config.stem, width=config.stem.width and 16)
    return dataclasses.replace(small, widths=(16, 32), depths=depths, stem=stem)


def _heads(attention: Any, place: str, heads: int) -> dict[str, Any]:
    groups = attention.num_kv_heads
    if groups is not None:
        groups = heads if groups == attention.num_heads else 1 if groups == 1 else heads // 2
    return {f"{place}num_kv_heads": groups, f"{place}head_dim": attention.head_dim and 8}
