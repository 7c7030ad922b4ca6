"""A Hugging Face directory as a model, and a model as one: config.json, safetensors, tokenizer files."""

import difflib
import fnmatch
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxmodel
from jaxmodel import weights
from jaxmodel.data.tokenizer_files import read_tokenizer, write_tokenizer
from jaxmodel.errors import InputError
from jaxmodel.interop import placing
from jaxmodel.interop import tensors as files
from jaxmodel.interop.huggingface import sentences
from jaxmodel.interop.huggingface.families import FAMILIES
from jaxmodel.interop.huggingface.table import WHOLE, Bound, Family, Named, bind, computes, read_config, write_config
from jaxmodel.interop.signature import flat as flat_of
from jaxmodel.model import Model, Params, State
from jaxmodel.sharding import Partitioning

CONFIG = "config.json"
STATE = "state/"  # what paths in the state begin with
NAMED = 12  # tensors that a message lists before it counts the rest


class Found(NamedTuple):
    """What config.json says."""

    family: Family
    config: Any
    architecture: str
    json: Mapping[str, Any]
    sentence: Mapping[str, str]  # what sentence-transformers says beside, by file


def is_directory(path: Path) -> bool:
    """Whether a folder has a config.json, which nothing of ours is called."""
    return (path / CONFIG).is_file()


def describe(directory: Path) -> Found:
    """The model that config.json describes, no weight read; InputError, which names the nearest, for another family."""
    path = directory / CONFIG
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        kind = said["model_type"]
    except (KeyError, TypeError, ValueError) as error:
        why = f"is not JSON ({error})" if isinstance(error, ValueError) else "lacks model_type"
        raise InputError(f"{path} {why}: {WHOLE}") from error
    if kind not in FAMILIES:
        near = difflib.get_close_matches(str(kind), FAMILIES, len(FAMILIES), 0.0)
        raise InputError(f"{path}: model_type {kind} is not supported: there are {', '.join(near)}")
    family, sentence = FAMILIES[kind], sentences.read_files(directory)
    bare = {**said, "architectures": [sentences.architecture_of(family)]}
    config, architecture = read_config(family, bare if sentence else said, str(path))
    if sentence:
        config = sentences.pooled(family, config, sentence, directory, files.open_weights(directory))
    return Found(family, config, architecture, said, sentence)


def read(
    directory: Path, model: Model, partitioning: Partitioning | None = None, dtype: Any = None
) -> tuple[Params, State, Any, dict[str, Any]]:
    """(params, state, tokenizer or None, info) of a directory, streamed from its files to where they belong.

    Args:
      directory: with config.json, safetensors and perhaps a tokenizer.
      model: built from `describe(directory).config`, perhaps for a mesh.
      partitioning: of that mesh.
      dtype: to cast params to; None: as in the files.

    Raises:
      InputError: a file is missing or damaged; or tensors are missing, unexpected or misshapen: all by name.
    """
    found = describe(directory)
    tensors = {found.family.current(name): each for name, each in files.open_weights(directory).items()}
    shapes = jax.eval_shape(model.init, jax.random.key(0)), jax.eval_shape(model.start)
    flat = _flat(*shapes)
    bound = _bound(found, tensors, flat)
    heads = found.family.heads[found.architecture].rows
    # A head that is the embedding table may be on disk all the same.
    twice = tuple(row.name for row in heads) if getattr(found.config, "tied", False) else ()
    _check(directory, bound, tensors, (*found.family.ignored, *twice))
    readers, types = _readers(bound, tensors, flat)
    shardings = flat_of(partitioning.shardings(model.layout, shapes[0])) if partitioning else {}
    usual = partitioning.replicated() if partitioning else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(path: str, shape: Any) -> jax.Array:
        wanted = shape.dtype if path.startswith(STATE) else np.dtype(types[path] if dtype is None else dtype)
        part = functools.partial(placing.stacked, readers[path], dtype=wanted)
        return placing.place(shape.shape, wanted, shardings.get(path, usual), part)

    # Each part is read by the process that holds it.
    params, state = jax.tree.unflatten(jax.tree.structure(shapes), map(place, flat, flat.values()))
    kept = {"config": dict(found.json), "architecture": found.architecture}
    kept |= {"sentence": dict(found.sentence)} if found.sentence else {}
    return params, state, read_tokenizer(directory), {"huggingface": kept}


def _flat(params: Any, state: Any) -> dict[str, Any]:
    """Both by path, as rows name them."""
    return {**flat_of(params), **flat_of({"state": state})}


def _bound(found: Found, tensors: Named, flat: Named) -> list[Bound]:
    """The tensors that are wanted, by the names of this file: some are written without the prefix of their body."""
    family = found.family
    tried = (bind(family, found.architecture, found.config, flat, prefix) for prefix in (None, "", family.prefix))
    return max(tried, key=lambda bound: sum(each.name in tensors for each in bound))


def _check(directory: Path, bound: list[Bound], tensors: Named, ignored: tuple[str, ...]) -> None:
    """InputError where the tensors are not those of the model."""
    wanted = {each.name: list(each.shape) for each in bound}
    has = {name: list(tensor.shape) for name, tensor in tensors.items()}
    known = {*wanted, *(name for glob in ignored for name in fnmatch.filter(has, glob))}
    wrong = [f"{name} {shape} is missing" for name, shape in wanted.items() if name not in has]
    wrong += [f"{name} {shape} is unexpected" for name, shape in has.items() if name not in known]
    wrong += [f"{name} is {has[name]}, not {shape}" for name, shape in wanted.items() if has.get(name, shape) != shape]
    if wrong:
        told = "; ".join(wrong[:NAMED]) + (f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else "")
        raise InputError(f"{directory}: the weights are not those of {CONFIG}: {told}: take both from one place")


def _readers(bound: list[Bound], tensors: Named, flat: Named) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What reads each part of our arrays, by path, and the dtypes that these have on disk."""
    readers: dict[str, np.ndarray] = {}
    types: dict[str, Any] = {}
    for each in bound:
        tensor = tensors[each.name]
        for nth, (path, index) in enumerate(each.places):
            reader = readers.setdefault(path, np.empty(flat[path].shape[: len(index)], object))
            reader[index] = functools.partial(_part, tensor, each, nth)
            types[path] = np.promote_types(types.get(path, tensor.dtype), tensor.dtype)
    assert readers.keys() == flat.keys(), f"no row of the table has {flat.keys() - readers.keys()}"
    return readers, types


def _part(tensor: files.Lazy, each: Bound, nth: int) -> np.ndarray:
    return each.form.read(tensor.view(), each.shapes)[nth]


def write(
    directory: str | Path,
    model: Model,
    params: Params,
    tokenizer: Any = None,
    info: Mapping[str, Any] | None = None,
    state: State = None,
    family: str | None = None,
    shard_bytes: int = 5_000_000_000,
) -> list[Path]:
    """Write a model as transformers reads it; the paths of its weights.

    A model that was read from such a directory gives the same tensors, and the same config.json where it computes the
    same.

    Args:
      directory: made where it is not there.
      model: of a family that transformers has.
      params: plain arrays: merged, and not quantized.
      tokenizer: written beside.
      info: of the checkpoint, which may hold the config.json that it came with.
      state: batch statistics, of a model that has them.
      family: the `model_type` to write, where several compute the same; None: the one that it came from, or the first.
      shard_bytes: largest size of a file.

    Raises:
      InputError: no family is this model, or its weights are not plain.
    """
    directory, kept = Path(directory), dict((info or {}).get("huggingface") or {})
    config, sentence = model.config, sentences.written(kept.get("sentence"), model.config)
    if sentence:
        config, kept["config"] = sentences.plain(config, FAMILIES[kept["config"]["model_type"]], kept["config"])
    of, said = _written(config, kept, family)
    architecture = said["architectures"][0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=weights.is_leaf):
        if weights.is_leaf(leaf):
            name = f"{weights.path_name(path)} is {type(leaf).__name__}"
            raise InputError(f"{name}, transformers wants plain weights: merge adapters and dequantize first")
    flat = _flat(params, state or {})
    bound = bind(of, architecture, model.config, flat)
    if left := flat.keys() - {path for each in bound for path, _ in each.places}:
        raise InputError(f"transformers has no tensor in {architecture} for {', '.join(sorted(left))}")
    types = (flat[path].dtype for each in bound for path, _ in each.places if not path.startswith(STATE))
    usual = next(each for each in types if jnp.issubdtype(each, jnp.floating))
    said["dtype"] = str(usual)
    paths = files.write_weights(directory, [_tensor(each, flat, usual) for each in bound], shard_bytes=shard_bytes)
    config_text = json.dumps(said, indent=2, sort_keys=True) + "\n"
    for name, text in {CONFIG: config_text, **sentence}.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")
    if tokenizer is not None:
        write_tokenizer(directory, tokenizer)
    return paths


def _tensor(each: Bound, flat: Mapping[str, Any], usual: Any) -> files.Tensor:
    """As it is written; statistics, which here are float32 always, are as narrow as weights are on disk."""
    first = each.places[0][0]
    dtype = each.form.dtype or (usual if first.startswith(STATE) else flat[first].dtype)

    def produce() -> np.ndarray:
        ours = [np.asarray(flat[path][index]) for path, index in each.places]
        return np.asarray(each.form.write(*ours)).astype(dtype, copy=False)

    return files.Tensor(each.name, dtype, each.shape, produce)


def _written(config: Any, kept: Mapping[str, Any], wanted: str | None) -> tuple[Family, dict[str, Any]]:
    """The family that can say this config, that which is wanted or it came from first, and its config.json."""
    came = dict(kept.get("config") or {})
    first = came.get("model_type") if wanted is None else wanted
    for name in sorted(FAMILIES, key=lambda name: name != first):
        if (said := write_config(FAMILIES[name], config)) is None:
            continue
        if name != came.get("model_type"):
            return FAMILIES[name], {**said, "jaxmodel_version": jaxmodel.__version__}
        same = computes(read_config(FAMILIES[name], came, CONFIG)[0]) == computes(config)
        return FAMILIES[name], came if same else {**came, **said}
    does = f"what {type(config).__name__} with these options does: there are {', '.join(FAMILIES)}"
    raise InputError(f"no family of transformers that is known here computes {does}")
