"""Mapping tables: which tensor on disk is which part of our params, and which key of config.json is which field.

A row and a key run both ways, so import and export are one table. Nothing here knows a family; `families` holds them.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmodel import config as configs
from jaxmodel.errors import InputError
from jaxmodel.models.configs import Transformer
from jaxmodel.models.plain import ConvNet

Overrides = dict[str, Any]  # dotted path of our config -> value
Json = Mapping[str, Any]
Named = Mapping[str, Any]  # tensors on disk by name, or arrays of ours by path


class Form(NamedTuple):
    """How one tensor on disk and some arrays of ours hold the same numbers: one after the other, along an axis.

    Attributes:
      flat: one of ours -> as it is on disk; of numpy arrays, or of jax's where only its shape is asked for.
      restored: (a part of the tensor, shape of ours) -> ours, a view of it where that can be.
      axis: that they lie along, where there are several.
      groups: how often they take turns along it: a part of each for every head.
      dtype: of the tensor, where that is not the dtype of ours.
    """

    flat: Callable[[Any], Any] = lambda x: x
    restored: Callable[[Any, tuple[int, ...]], Any] = lambda x, shape: x.reshape(shape)
    axis: int = 0
    groups: int = 1
    dtype: Any = None

    def read(self, tensor: np.ndarray, shapes: tuple[tuple[int, ...], ...]) -> list[np.ndarray]:
        """The arrays, of these shapes, that a tensor holds."""
        if len(shapes) == 1:
            return [self.restored(tensor, shapes[0])]
        flat = [shape_of(self, (shape,)) for shape in shapes]
        ends = np.cumsum([shape[self.axis] // self.groups for shape in flat])[:-1]
        parts = map(np.reshape, np.split(self._split(tensor), ends, self.axis + 1), flat)
        return list(map(self.restored, parts, shapes))

    def write(self, *ours: Any) -> Any:
        """The tensor that holds these."""
        if len(ours) == 1:
            return self.flat(ours[0])
        join = ours[0].__array_namespace__().concat
        x = join([self._split(self.flat(each)) for each in ours], axis=self.axis + 1)
        return x.reshape(*x.shape[: self.axis], -1, *x.shape[self.axis + 2 :])

    def _split(self, x: Any) -> Any:
        return x.reshape(*x.shape[: self.axis], self.groups, -1, *x.shape[self.axis + 1 :])


@functools.lru_cache(maxsize=1024)
def shape_of(form: Form, shapes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """Of the tensor, from those of ours."""
    ours = (jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)
    return tuple(jax.eval_shape(form.write, *ours).shape)


class Row(NamedTuple):
    """A tensor on disk, some arrays of ours, and how they hold the same.

    `name` may hold {i}, a layer, and {e}, an expert. A path that begins with "stack/" is within the block of layer {i};
    a model of several parts has "encoder/stack/" and the like, and {i} counts the layers of that part. A path
    "state/…" is in the model's state. A row counts where there are its paths. A form may depend on the config (of its
    part).
    """

    name: str
    paths: tuple[str, ...]
    form: Form | Callable[[Any], Form] = Form()


class Group(NamedTuple):
    """A key of config.json, or several that say something together.

    Attributes:
      read: config.json -> overrides of our config; none, where it is not given.
      write: our config -> keys of config.json, likewise.
      key: that, where it is one.
      field: dotted path of ours, where it is that of one key alone.
    """

    read: Callable[[Json], Overrides] = lambda json: {}
    write: Callable[[Any], dict[str, Any]] = lambda config: {}
    key: str = ""
    field: str = ""


Keys = Sequence[Group]


class Heads(NamedTuple):
    """What an architecture class has beside its body.

    Attributes:
      rows: its tensors.
      keys: of config.json, that say more of the head and the pool, or what these are whatever it says.
      base: whether it is the bare model, whose names have no prefix.
      part: the field of the family's config that alone is the model: "encoder"; none: all of it.
    """

    rows: tuple[Row, ...] = ()
    keys: Keys = ()
    base: bool = False
    part: str = ""

    def of(self, config: Any) -> Any:
        """The model's config, of a family's."""
        return getattr(config, self.part) if self.part else config


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
    renamed: Mapping[str, str] = {}

    def current(self, name: str) -> str:
        """The name that a tensor has now."""
        return functools.reduce(lambda name, each: re.sub(*each, name), self.renamed.items(), name)


WHOLE = "take the config.json that came with the weights"


def read_config(family: Family, json: Json, where: str) -> tuple[Any, str]:
    """Our config, and the architecture class; InputError, which names the key, for what is not supported.

    Args:
      family: of its `model_type`.
      json: config.json.
      where: its path, for messages.
    """
    if packed := json.get("quantization_config"):
        said = f"quantization_config says that the weights are {packed.get('quant_method', 'packed')}"
        fix = "load them with transformers and its option dequantize=True, save that, and read it"
        raise InputError(f"{where}: {said}, which is not supported: {fix}")
    said = (json.get("architectures") or [*family.heads])[0]
    if said not in family.heads:
        known = ", ".join(family.heads)
        raise InputError(f"{where}: architecture {said} is not supported: of {family.name} there are {known}")
    overrides, of_heads = (read_keys(keys, json, where) for keys in (family.keys, family.heads[said].keys))
    # Another head, or none: what was said of the usual one is not of it.
    replaced = tuple(f"{name}." for name in of_heads if name.split(".")[-1] == "head")
    overrides = {name: value for name, value in overrides.items() if not name.startswith(replaced)} | of_heads
    try:
        found = configs.replace(family.base, overrides)
        found.check()
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return family.heads[said].of(found), said


def read_keys(keys: Keys, json: Json, where: str) -> Overrides:
    """What keys say of our config; InputError, which names the key, for what is not supported."""
    overrides: Overrides = {}
    for key in keys:
        try:
            overrides |= key.read(json)
        except KeyError as error:
            raise InputError(f"{where} lacks {error.args[0]}: {WHOLE}") from error
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: {error}") from error
    return overrides


def write_keys(keys: Keys, config: Any) -> dict[str, Any]:
    """What keys say of one of ours."""
    return functools.reduce(_merged, (key.write(config) for key in keys), {})


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Both, and so are the objects within them: several groups may write keys of one."""
    both = {key: _merged(one[key], other[key]) for key in one.keys() & other.keys() if isinstance(other[key], dict)}
    return {**one, **other, **both}


def write_config(family: Family, config: Any) -> dict[str, Any] | None:
    """config.json of one of ours; None where the family cannot say it: where it would be read as another."""
    for name, heads in family.heads.items():
        if type(config) is not type(heads.of(family.base)):
            continue
        whole = dataclasses.replace(family.base, **{heads.part: config}) if heads.part else config
        absent = tuple(f"{each}." for each in whole.submodels if heads.part not in ("", each))
        keys = [key for key in (*family.keys, *heads.keys) if not key.field.startswith(absent)]
        json = {"model_type": family.name, "architectures": [name], **write_keys(keys, whole)}
        with contextlib.suppress(InputError):
            if computes(read_config(family, json, family.name)[0]) == computes(config):
                return json
    return None


def computes(config: Any) -> Any:
    """What to know configs by that compute the same: layer by layer, and without what changes no output.

    That is how it runs, how it was initialised, and what only training has.
    """
    fields = configs.fields(type(config))
    kept = ("execution", "dropout", "init_scale", "residual_init", "momentum", "logit_scale")
    said: Overrides = {name: fields[name].default for name in kept if name in fields}
    said |= {name: computes(getattr(config, name)) for name in config.submodels}
    said |= {"layer_scale": 1.0} if getattr(config, "layer_scale", None) is not None else {}
    if isinstance(config, ConvNet):
        stem = dataclasses.replace(config.stem, width=config.stem.width or config.widths[0])
        said |= {"blocks": 1, "depths": tuple(depth for _, depth, _ in config.stages), "stem": stem}
    config = dataclasses.replace(config, **said)
    return list(map(_block, blocks(config))) if isinstance(config, Transformer) else config


def blocks(config: Transformer) -> list[Transformer]:
    """The block of each layer, in order."""
    return [config.variant(kind) for pattern, n in config.segments for _ in range(n) for kind in pattern]


def _block(config: Transformer) -> Transformer:
    """One layer's: what follows from other fields spelt out, and without what it does not read."""
    said: Overrides = {"first": (), "pattern": (), "variants": ()}
    for name in ("attention", "cross"):
        if (a := getattr(config, name)) is not None:
            _, groups, width = a.sizes(config.embed_dim)
            rope = dataclasses.replace(a.rope, original_length=a.rope.original_length or config.max_length)
            usual = {"num_kv_heads": groups, "scale": a.scale or width**-0.5, "head_dim": width, "rope": rope}
            said[name] = dataclasses.replace(a, **usual, key_bias=a.bias if a.key_bias is None else a.key_bias)
    if config.moe is not None:
        said |= {"moe": dataclasses.replace(config.moe, balance_loss=0.0, z_loss=0.0), "mlp": None}
    said |= {half: None for half in ("attention", "recurrence", "mlp") if not config.has(half)}
    return dataclasses.replace(config, **said)


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


def bind(family: Family, architecture: str, config: Any, shapes: Named, prefix: str | None = None) -> list[Bound]:
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
        paths = [path.removeprefix(f"{heads.part}/") for path in row.paths]
        part = paths[0].split("/")[0]
        of = getattr(config, part) if part in config.submodels else config
        form = row.form if isinstance(row.form, Form) else row.form(of)
        for i, (place, index) in enumerate(_places(of) if "{i}" in row.name else [("stack", ())]):
            mine = [path.replace("stack", place, 1) for path in paths]
            if any(path not in shapes for path in mine):
                continue
            for e in range(shapes[mine[0]].shape[len(index)]) if "{e}" in row.name else [None]:
                at = index if e is None else (*index, e)
                inner = tuple(tuple(shapes[path].shape)[len(at) :] for path in mine)
                places = tuple((path, at) for path in mine)
                found.append(Bound(before + row.name.format(i=i, e=e), places, inner, shape_of(form, inner), form))
    assert len({each.name for each in found}) == len(found), "two rows give one name"
    return found


def _places(config: Transformer) -> list[tuple[str, tuple[int, ...]]]:
    """Where each layer is in our params: "stack/0/local", and the index of its block there."""
    return [
        (f"stack/{i}/{kind}", (repeat * pattern.count(kind) + pattern[:j].count(kind),))
        for i, (pattern, repeats) in enumerate(config.segments)
        for repeat in range(repeats)
        for j, kind in enumerate(pattern)
    ]
