"""Directories of sentence-transformers: modules.json says how a model's hidden values become an embedding."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxmodel import config as configs
from jaxmodel.errors import InputError
from jaxmodel.interop.huggingface.table import Family, read_keys
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import Pool

MODULES, CONFIG = "modules.json", "config.json"
OTHERS = ("sentence_bert_config.json", "config_sentence_transformers.json")  # of texts, before they are tokens
CHAIN = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}  # the last may be left out
MODE = "pooling_mode"
KINDS = {"cls_token": "first", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "last"}
KNOWN = {**KINDS, "cls": "first", "mean": "mean", "max": "max"}  # the latter as `pooling_mode` alone has them


def architecture_of(family: Family) -> str:
    """The bare model, which is what sentence-transformers takes whatever architecture config.json names."""
    return next((name for name, heads in family.heads.items() if heads.base), next(iter(family.heads)))


def read_files(directory: Path) -> dict[str, str]:
    """modules.json and what belongs to it, by name; {} in a directory of transformers alone."""
    if not (directory / MODULES).is_file():
        return {}
    names = [MODULES, *OTHERS, *(str(path.relative_to(directory)) for path in directory.glob("*_*/config.json"))]
    return {name: (directory / name).read_text("utf-8") for name in names if (directory / name).is_file()}


def read_pool(files: Mapping[str, str], where: Path, width: int | None = None) -> Pool:
    """How they pool; InputError, which names what is not supported.

    Args:
      files: as `read_files` gives them.
      where: their directory, for messages.
      width: of the model, which theirs must be.
    """
    at, modules = where / MODULES, _json(files, MODULES, where)
    try:
        kinds = [str(each["type"]).rpartition(".")[2] for each in modules]
        paths = [str(each["path"]) for each in modules]
    except (KeyError, TypeError) as error:
        raise InputError(f"{at} is no list of modules with path and type: download it again") from error
    if kinds not in ([*CHAIN], [*CHAIN][:2]):
        usual = "only Transformer, Pooling is, and perhaps Normalize behind"
        raise InputError(f"{at}: {', '.join(kinds)} is not supported: {usual}")
    if paths[0]:
        raise InputError(f"{at}: the Transformer is in {paths[0]!r}: only that beside {MODULES} is read")
    at, said = where / paths[1] / CONFIG, _json(files, f"{paths[1]}/{CONFIG}", where)
    modes = [key.removeprefix(f"{MODE}_") for key, on in said.items() if key.startswith(f"{MODE}_") and on]
    names = said.get(MODE) or modes
    names = [names] if isinstance(names, str) else names
    if len(names) != 1 or names[0] not in KNOWN:
        has = " and ".join(f"{MODE}_{each}" for each in names) or "no pooling mode"
        raise InputError(f"{at}: {has} is not supported: one of {', '.join(KNOWN)} is")
    if not said.get("include_prompt", True):
        raise InputError(f"{at}: include_prompt=false is not supported: every token is pooled here")
    theirs = said.get("word_embedding_dimension", said.get("embedding_dimension", width))
    if width is not None and theirs != width:
        raise InputError(f"{at}: embeddings of {theirs} do not fit the model, which has {width}")
    return Pool(KNOWN[names[0]], normalize=len(kinds) > 2)


def plain(config: Transformer, family: Family, json: Mapping[str, Any]) -> tuple[Transformer, dict[str, Any]]:
    """The bare model's config and config.json beneath such a model, whose own config.json was this one."""
    name = architecture_of(family)
    bare = read_keys(family.heads[name].keys, json, CONFIG)
    return configs.replace(config, {"pool": bare.get("pool")}), {**json, "architectures": [name]}


def pooled(family: Family, config: Any, files: Mapping[str, str], where: Path, names: Iterable[str]) -> Transformer:
    """The config of a bare model with their pool.

    A dense layer of the bare model's own pool stays, if it is among the tensors of these names; nobody reads it.
    """
    if not isinstance(config, Transformer) or config.images is not None:
        raise InputError(f"{where / MODULES}: only sentences of a single model of tokens are read")
    pool = read_pool(files, where, config.embed_dim)
    rows = family.rows if isinstance(family.rows, tuple) else family.rows(config)
    rows = (*rows, *family.heads[architecture_of(family)].rows)
    own = tuple(row.name for row in rows if row.paths == ("pool/dense",))
    spare = any(name.endswith(own) for name in names)
    return configs.replace(config, {"pool": configs.replace(pool, {"spare": spare})})


def written(files: Mapping[str, str] | None, config: Any) -> dict[str, str]:
    """The files of a model that was read from such a directory: the same ones, where it pools as it did.

    {} where it was read from no such directory, or has become another model than one of embeddings.
    """
    pool = getattr(config, "pool", None)
    if not files or pool is None or config.head is not None or pool.activation != "none":
        return {}
    if read_pool(files, Path(), None) == configs.replace(pool, {"spare": False}):
        return dict(files)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(CHAIN.items())
    ]
    said = {f"{MODE}_{name}": pool.kind == kind for name, kind in KINDS.items()}
    said = {"word_embedding_dimension": config.embed_dim, **said}
    made = {MODULES: modules[: 2 + pool.normalize], f"1_Pooling/{CONFIG}": said}
    kept = {name: text for name, text in files.items() if name in OTHERS}
    return kept | {name: json.dumps(each, indent=2) for name, each in made.items()}


def _json(files: Mapping[str, str], name: str, where: Path) -> Any:
    if name not in files:
        raise InputError(f"{where / name} is missing, which {MODULES} names: download it again")
    try:
        return json.loads(files[name])
    except ValueError as error:
        raise InputError(f"{where / name} is not JSON ({error}): download it again") from error
