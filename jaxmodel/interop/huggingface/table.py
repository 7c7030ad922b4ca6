"""Mapping tables: which tensor on disk is which part of our params, and which key of config.json is which field.

A row and a key run both ways, so import and export are one table. Nothing here knows a family; `families` holds them.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodel import config as configs
from jaxmodel.errors import InputError
from jaxmodel.models.configs import Transformer, Variant
from jaxmodel.models.parts import MLP, Attention
from jaxmodel.models.plain import ConvNet

Overrides = dict[str, Any]  # dotted path of our config -> value
Json = Mapping[str, Any]


class Form(NamedTuple):
    """How one tensor on disk and some arrays of ours hold the same numbers.

    Attributes:
      read: (tensor, shapes of ours) -> ours, views of it where that can be.
      write: (each of ours) -> the tensor; of numpy arrays, or of jax's where only its shape is asked for.
      dtype: of the tensor, where that is not the dtype of ours.
    """

    read: Callable[[np.ndarray, Sequence[tuple[int, ...]]], list[np.ndarray]]
    write: Callable[..., Any]
    dtype: Any = None

    def shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Of the tensor, from those of ours."""
        return _shape(self.write, *shapes)


@functools.lru_cache(maxsize=1024)
def _shape(function: Callable[..., Any], *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Of what a function of arrays returns."""
    return tuple(jax.eval_shape(function, *(jax.ShapeDtypeStruct(each, np.float32) for each in shapes)).shape)


def _joined(arrays: Sequence[Any], axis: int) -> Any:
    if len(arrays) == 1:
        return arrays[0]
    return (jnp if isinstance(arrays[0], jax.Array) else np).concatenate(arrays, axis)


def fused(
    flat: Callable[[Any], Any], restored: Callable[[Any, tuple[int, ...]], Any], axis: int = 0, groups: int = 1
) -> Form:
    """Several of ours, each as `flat` makes it, one after the other along an axis; one of them is the plain case.

    Args:
      flat: ours -> as on disk.
      restored: (a part of the tensor, shape of ours) -> ours.
      axis: that they lie along.
      groups: how often they take turns along it: a part of each for every head.
    """

    def split(x: Any) -> Any:
        return x.reshape(*x.shape[:axis], groups, -1, *x.shape[axis + 1 :])

    def merged(x: Any) -> Any:
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    def read(tensor: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        if len(shapes) == 1:
            return [restored(tensor, shapes[0])]
        ends = np.cumsum([_shape(flat, shape)[axis] // groups for shape in shapes])[:-1]
        if groups == 1:
            parts = np.split(tensor, ends, axis)
        else:
            parts = [merged(part) for part in np.split(split(tensor), ends, axis + 1)]
        return [restored(part, shape) for part, shape in zip(parts, shapes, strict=True)]

    def write(*ours: Any) -> Any:
        parts = [flat(each) for each in ours]
        return _joined(parts, axis) if groups == 1 else merged(_joined([split(p) for p in parts], axis + 1))

    return Form(read, write)


COPY = fused(lambda x: x, lambda x, shape: x)
TRANSPOSED = fused(lambda x: x.T, lambda x, shape: x.T)
# Biases of heads: [heads, head_dim] with us.
FLAT = fused(lambda x: x.reshape(-1), lambda x, shape: x.reshape(shape))
# [1, 1, D] on disk: a class token, or positions [1, T, D].
BATCHED = fused(lambda x: x.reshape(1, *x.shape), lambda x, shape: x.reshape(shape))
TOKEN = fused(lambda x: x.reshape(1, 1, -1), lambda x, shape: x.reshape(shape))
COLUMNS = fused(lambda x: x, lambda x, shape: x, axis=1)  # stored [in, out], several side by side


COUNT = COPY._replace(dtype=np.dtype(np.int64))
# A convolution of each channel by itself: [channels, 1, size] on disk, [size, channels] with us.
DEPTHWISE = fused(lambda x: x.T[:, None], lambda x, shape: x[:, 0].T)


def windows(size: int, dims: int = 2) -> Form:
    """A convolution: [out, in, size, size] on disk, [size * size * in, out] with us, or [size, size, out].

    Over one dim, [out, in, size] and [size * in, out].
    """
    return fused(
        lambda x: x.reshape(*(size,) * dims, -1, x.shape[-1]).transpose(-1, -2, *range(dims)),
        lambda x, shape: x.transpose(*range(2, dims + 2), 1, 0).reshape(shape),
    )


def patches(config: Transformer) -> Form:
    """A patch projection, as `windows`."""
    assert config.images is not None
    return windows(config.images.patch)


def by_head(config: Transformer) -> Form:
    """Of each head its part of every one, one after the other."""
    return fused(lambda x: x.T, lambda x, shape: x.T, groups=config.attention.num_heads)


def biases_by_head(config: Transformer) -> Form:
    """Their biases, likewise."""
    return fused(lambda x: x.reshape(-1), lambda x, shape: x.reshape(shape), groups=config.attention.num_heads)


class Row(NamedTuple):
    """A tensor on disk, some arrays of ours, and how they hold the same.

    `name` may hold {i}, a layer, and {e}, an expert. A path that begins with "stack/" is within the block of layer {i};
    a model of several parts has "encoder/stack/" and the like, and {i} counts the layers of that part. A path
    "state/…" is in the model's state. A row counts where there are its paths. A form may depend on the config (of its
    part).
    """

    name: str
    paths: tuple[str, ...]
    form: Form | Callable[[Any], Form] = COPY


class Key(NamedTuple):
    """A key of config.json and a field of our config.

    Attributes:
      key: where it is on disk.
      field: dotted path of ours.
      default: of the key, where config.json does not have it; REQUIRED: it must.
      read: value on disk -> ours; None: as it is.
      write: ours -> value on disk.
    """

    key: str
    field: str
    default: Any = None
    read: Callable[[Any], Any] | None = None
    write: Callable[[Any], Any] | None = None


class Fixed(NamedTuple):
    """A key that must have a value, for another would be another computation."""

    key: str
    value: Any


class Group(NamedTuple):
    """Keys that say something together.

    Attributes:
      read: config.json -> overrides of our config; none, where it is not given.
      write: our config -> keys of config.json, likewise.
    """

    read: Callable[[Json], Overrides] = lambda json: {}
    write: Callable[[Any], dict[str, Any]] = lambda config: {}


Keys = Sequence[Key | Fixed | Group]


class Heads(NamedTuple):
    """What an architecture class has beside its body.

    Attributes:
      read: config.json -> overrides of our config: head, pool.
      rows: their tensors.
      write: our config -> keys of config.json, or None where the config has not these heads; where it is read again as
        another one, it has not.
      base: whether it is the bare model, whose names have no prefix.
      part: the field of the family's config that alone is the model: "encoder"; none: all of it.
      keys: of config.json, that say more of the head and the pool.
    """

    read: Callable[[Json], Overrides] = lambda json: {}
    rows: tuple[Row, ...] = ()
    write: Callable[[Any], dict[str, Any] | None] = lambda config: {}
    base: bool = False
    part: str = ""
    keys: Keys = ()


class Family(NamedTuple):
    """One `model_type` of config.json.

    Attributes:
      name: that type.
      prefix: before the names of the body in an architecture with heads: "transformer.".
      base: what all of the family have in common.
      keys: of config.json.
      rows: of the body; where they are not alike in all configs, config -> rows.
      heads: by architecture class; the first is what a config without `architectures` is.
      ignored: globs over names: buffers that old checkpoints hold.
      renamed: patterns of parts of names as other checkpoints have them, and what stands there today; one after the
        other.
    """

    name: str
    prefix: str
    base: Any
    keys: Keys
    rows: tuple[Row, ...] | Callable[[Any], tuple[Row, ...]]
    heads: Mapping[str, Heads]
    ignored: tuple[str, ...] = ()
    renamed: Mapping[str, str] = MappingProxyType({})

    def current(self, name: str) -> str:
        """The name that a tensor has now."""
        for old, new in self.renamed.items():
            name = re.sub(old, new, name)
        return name


REQUIRED = object()
WHOLE = "take the config.json that came with the weights"


def read_config(family: Family, json: Json, where: str) -> tuple[Any, str]:
    """Our config, and the architecture class; InputError, which names the key, for what is not supported.

    Args:
      family: of its `model_type`.
      json: config.json.
      where: its path, for messages.
    """
    if packed := json.get("quantization_config"):
        kind = packed.get("quant_method", "packed")
        raise InputError(
            f"{where}: quantization_config says that the weights are {kind}, which is not supported: load them with "
            "transformers and its option dequantize=True, save that, and read it"
        )
    said = (json.get("architectures") or [next(iter(family.heads))])[0]
    if said not in family.heads:
        raise InputError(
            f"{where}: architecture {said} is not supported: of {family.name} there are {', '.join(family.heads)}"
        )
    of = family.heads[said]
    overrides = read_keys(family.keys, json, where)
    heads = read_keys((Group(of.read), *of.keys), json, where)
    # Another head, or none: what was said of the usual one is not of it.
    replaced = tuple(f"{name}." for name in heads if name.split(".")[-1] == "head")
    overrides = {name: value for name, value in overrides.items() if not name.startswith(replaced)} | heads
    try:
        found = configs.replace(family.base, overrides)
        found.check()
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return getattr(found, of.part) if of.part else found, said


def read_keys(keys: Keys, json: Json, where: str) -> Overrides:
    """What keys say of our config; InputError, which names the key, for what is not supported."""
    overrides: Overrides = {}
    for key in keys:
        if isinstance(key, Group):
            try:
                overrides |= key.read(json)
            except KeyError as error:
                raise InputError(f"{where} lacks {error.args[0]}: {WHOLE}") from error
            except (TypeError, ValueError) as error:
                raise InputError(f"{where}: {error}") from error
        elif isinstance(key, Fixed):
            if json.get(key.key, key.value) != key.value:
                raise InputError(
                    f"{where}: {key.key}={json[key.key]!r} is not supported: only {key.key}={key.value!r} is"
                )
        else:
            value = json.get(key.key, key.default)
            if value is REQUIRED:
                raise InputError(f"{where} lacks {key.key}: {WHOLE}")
            try:
                overrides[key.field] = value if key.read is None else key.read(value)
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{where}: {key.key}={value!r} is not supported ({error})") from error
    return overrides


def write_keys(keys: Keys, config: Any) -> dict[str, Any]:
    """What keys say of one of ours."""
    json: dict[str, Any] = {}
    for key in keys:
        if isinstance(key, Group):
            json = _merged(json, key.write(config))
        elif isinstance(key, Fixed):
            json[key.key] = key.value
        else:
            value = _get(config, key.field)
            if value is None:  # not said, or of a part that is not there
                json[key.key] = None if key.default is REQUIRED else key.default
            else:
                json[key.key] = value if key.write is None else key.write(value)
    return json


def write_config(family: Family, config: Any) -> dict[str, Any] | None:
    """config.json of one of ours; None where the family cannot say it."""
    given = config
    for name, heads in family.heads.items():
        like = getattr(family.base, heads.part) if heads.part else family.base
        if type(given) is not type(like):
            continue
        config = dataclasses.replace(family.base, **{heads.part: given}) if heads.part else given
        of_heads = heads.write(config)
        if of_heads is None:
            continue
        absent = tuple(f"{each}." for each in submodels(config) if heads.part and each != heads.part)
        every = (*family.keys, *heads.keys)
        keys = [key for key in every if not (isinstance(key, Key) and key.field.startswith(absent))]
        json = {"model_type": family.name, "architectures": [name], **_merged(write_keys(keys, config), of_heads)}
        try:
            again, _ = read_config(family, json, family.name)
        except InputError:
            continue
        if computes(again) == computes(given):
            return json
    return None


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Both, and so are the objects within them: several groups may write keys of one."""
    both = {key: _merged(one[key], other[key]) for key in one.keys() & other.keys() if isinstance(other[key], dict)}
    return {**one, **other, **both}


def _get(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name, None)
    return config


def computes(config: Any) -> Any:
    """The config without what changes no output: how it runs, how it was initialised, what only training has."""
    fields = configs.fields(type(config))
    kept = ("execution", "dropout", "init_scale", "residual_init", "momentum", "logit_scale")
    said: Overrides = {name: fields[name].default for name in kept if name in fields}
    said |= {name: computes(getattr(config, name)) for name in submodels(config)}
    if isinstance(config, Transformer):
        said["variants"] = _spelt_out(config)
        for name in ("attention", "cross"):
            if (attention := getattr(config, name)) is None:
                continue
            width = attention.head_dim or config.embed_dim // attention.num_heads
            said |= {
                f"{name}.num_kv_heads": attention.num_kv_heads or attention.num_heads,
                f"{name}.head_dim": width,
                f"{name}.scale": attention.scale or width**-0.5,
                f"{name}.key_bias": attention.bias if attention.key_bias is None else attention.key_bias,
            }
        if config.moe is not None:
            said |= {"moe.balance_loss": 0.0, "moe.z_loss": 0.0}
            kinds = {name for pattern, _ in config.segments for name in pattern}
            if all(config.variant(name).moe is not None for name in kinds):
                said["mlp"] = MLP(dim=1)
        blocks = [config.variant(name) for names, _ in config.segments for name in names]
        unread = {"attention": Attention(num_heads=1), "recurrence": None, "mlp": MLP(dim=1)}
        for half in [each for each in unread if not any(block.has(each) for block in blocks)]:
            said = {name: value for name, value in said.items() if name.split(".")[0] != half}
            said[half] = unread[half]
    if getattr(config, "layer_scale", None) is not None:
        said["layer_scale"] = 1.0
    if isinstance(config, ConvNet):
        depths = tuple(depth for _, depth, _ in config.stages)
        said |= {"blocks": 1, "depths": depths, "stem.width": config.stem.width or config.widths[0]}
    return configs.replace(config, said)


def submodels(config: Any) -> tuple[str, ...]:
    """Fields of a config that are configs of models, whose params are under the same names: encoder, decoder."""
    return tuple(getattr(config, "submodels", ()))


def _spelt_out(config: Transformer) -> tuple[Variant, ...]:
    """Variants by name, each with all that any of them has otherwise than the model, whoever said so."""
    kinds = {name: config.variant(name) for name in sorted(each.name for each in config.variants)}
    paths = sorted({path for each in config.variants for path, _ in each.overrides})
    unlike = [path for path in paths if any(_get(kind, path) != _get(config, path) for kind in kinds.values())]
    return tuple(Variant(name, tuple((path, _get(kind, path)) for path in unlike)) for name, kind in kinds.items())


class Bound(NamedTuple):
    """A tensor on disk, and the places in our params that it fills.

    Attributes:
      name: on disk.
      places: (path in our params, index over its stacked dims) each.
      shapes: of the array at each place.
      shape: of the tensor.
      form: how one becomes the other.
    """

    name: str
    places: tuple[tuple[str, tuple[int, ...]], ...]
    shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    form: Form


def bind(
    family: Family, architecture: str, config: Any, shapes: Mapping[str, Any], prefix: str | None = None
) -> list[Bound]:
    """Every tensor that a checkpoint of this model has on disk.

    Args:
      shapes: of our params and, as "state/…", of our state, by path.
      prefix: of the body's names; None: as the architecture has it.
    """
    heads = family.heads[architecture]
    prefix = ("" if heads.base else family.prefix) if prefix is None else prefix
    body = family.rows if isinstance(family.rows, tuple) else family.rows(config)
    found = []
    for row, before in [*((row, prefix) for row in body), *((row, "") for row in heads.rows)]:
        paths = [path.removeprefix(f"{heads.part}/") for path in row.paths] if heads.part else row.paths
        part = paths[0].split("/", 1)[0]
        part, of = (f"{part}/", getattr(config, part)) if part in submodels(config) else ("", config)
        form = row.form if isinstance(row.form, Form) else row.form(of)
        for i, (place, index) in enumerate(_layers(of) if "{i}" in row.name else [("", ())]):
            mine = [path.replace(f"{part}stack", part + place, 1) if place else path for path in paths]
            if any(path not in shapes for path in mine):
                continue
            whole = [tuple(shapes[path].shape)[len(index) :] for path in mine]
            experts = range(whole[0][0]) if "{e}" in row.name else [None]
            for e in experts:
                at = index if e is None else (*index, e)
                inner = tuple(shape if e is None else shape[1:] for shape in whole)
                shape = form.shape(inner)
                name = before + row.name.replace("{i}", str(i)).replace("{e}", str(e))
                found.append(Bound(name, tuple((path, at) for path in mine), inner, shape, form))
    assert len({each.name for each in found}) == len(found), "two rows give one name"
    return found


def _layers(config: Transformer) -> list[tuple[str, tuple[int, ...]]]:
    """Where each layer is in our params: "stack/0/local", and the index of its block there."""
    found = []
    for i, (pattern, repeats) in enumerate(config.segments):
        for repeat in range(repeats):
            for j, kind in enumerate(pattern):
                index = repeat * pattern.count(kind) + pattern[:j].count(kind)
                found.append((f"stack/{i}/{kind}", (index,)))
    return found
