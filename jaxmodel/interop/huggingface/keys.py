"""Keys of config.json as words, and what they say of submodels and heads; `layers` has those of layers."""

import functools
from collections.abc import Callable, Iterator, Mapping
from json import loads
from typing import Any

from jaxmodel.interop.huggingface.rows import base, rows, spelt, within
from jaxmodel.interop.huggingface.table import Family, Group, Heads, Json, Keys, Overrides, read_keys, write_keys
from jaxmodel.models.parts import Head, Pool

REQUIRED = object()
Conversion = tuple[Callable[[Any], Any], Callable[[Any], Any]]  # read, write

# On disk -> ours; of several the first is written.
ACTIVATIONS = {
    **{"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"},
    **{"relu": "relu", "silu": "silu", "swish": "silu", "quick_gelu": "quick_gelu", "tanh": "tanh"},
    **{"relu2": "relu_squared", "mish": "mish", "sigmoid": "sigmoid", "leaky_relu": "leaky_relu"},
}
GATED = {
    **{"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"},
    **{"gelu_fast": "geglu", "gelu": "geglu_exact"},
}


def named(names: Mapping[Any, Any]) -> Conversion:
    """(read, write) of a value that goes by other names on disk."""
    first = {ours: theirs for theirs, ours in reversed(list(names.items()))}

    def read(name: Any) -> Any:
        if name not in names:
            raise ValueError(f"there are {', '.join(map(str, names))}")
        return names[name]

    return read, lambda ours: first.get(ours, ours)


read_activation, write_activation = named(ACTIVATIONS)
_CONVERTED: dict[str, Any] = {  # of `Conversion`s
    **{"": (lambda value: value,) * 2, "bool": (bool,) * 2, "int": (int,) * 2},
    "plain": (read_activation, write_activation),
    **{"list": (tuple, list), "inverse": (lambda number: 1 / number,) * 2, "or_one": (lambda number: number or 1, int)},
    "next": (lambda number: number + 1, lambda number: number - 1),
    # The first configs of Gemma say gelu, and mean its approximation.
    **{"gated": named(GATED), "first": named({**GATED, "gelu": "geglu"})},
}


def keys(*said: str | Group | Keys) -> tuple[Group, ...]:
    """Keys from words: key:field=default, key:field which must be there, key which is our field, key==value.

    The last must have that value, for another would be another computation. A default is JSON, or else text. Fields
    with commas between them are all that key's; (a|b) is as in `rows`; a|b are names of one key, both
    of which are written, and the first that is there is read; a conversion stands last:
    hidden_act:mlp.activation=gelu~plain; or what values are with us: cls>first,mean>mean. `encoder,decoder( … )`, with
    spaces within, are words about fields of both. Of words about one field the last count, as of rows: a family's own
    stand after those that it shares.

    Args:
      *said: the words, and keys that others have made.
    """
    found: list[Group] = []
    for each in said:
        found += _worded(each) if isinstance(each, str) else [each] if isinstance(each, Group) else each
    last = {each.field: each for each in found}
    return tuple(each for each in found if not each.field or last[each.field] is each)


def _worded(text: str) -> Iterator[Group]:
    places = [""]
    for word in text.split():
        key, fixed, value = word.partition("==")
        if fixed:
            yield _fixed(key, _value(value))
        elif word.endswith("(") or word == ")":
            places = [f"{each}." for each in word[:-1].split(",") if each] or [""]
        else:
            word, _, how = word.partition("~")
            names, optional, default = word.partition("=")
            key, _, fields = names.partition(":")
            pairs = (map(_value, each.split(">")) for each in how.split(","))
            mapped = ">" in how and named({theirs: ours for theirs, ours in pairs})
            given = _value(default) if optional else REQUIRED, mapped or _CONVERTED[how]
            said = [(name, each) for name, path in spelt(key, fields or key) for each in path.split(",")]
            yield from (_key(name, place + each, *given) for name, each in said for place in places)


def _fixed(key: str, value: Any) -> Group:
    def read(json: Json) -> Overrides:
        if json.get(key, value) != value:
            raise ValueError(f"{key}={json[key]!r} is not supported: only {key}={value!r} is")
        return {}

    return Group(read, lambda config: {key: value}, key)


def _key(key: str, field: str, default: Any, conversion: Conversion) -> Group:
    names = key.split("|")

    def read(json: Json) -> Overrides:
        if (value := next((json[name] for name in names if name in json), default)) is REQUIRED:
            raise KeyError(key)
        try:
            return {field: conversion[0](value)}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{key}={value!r} is not supported ({error})") from error

    def write(config: Any) -> dict[str, Any]:
        usual = None if default is REQUIRED else default  # it is not said, or of a part that is not there
        return dict.fromkeys(names, usual if (ours := _get(config, field)) is None else conversion[1](ours))

    return Group(read, write, key, field)


def _get(config: Any, path: str) -> Any:
    return functools.reduce(lambda part, name: getattr(part, name, None), path.split("."), config)


def _value(text: str) -> Any:
    try:
        return loads(text)
    except ValueError:
        return text


def without(keys: Keys, *names: str) -> Keys:
    """Keys but for these."""
    return tuple(each for each in keys if each.key not in names)


def implied(field: str, value: Callable[[Json], Any]) -> Group:
    """A field that follows from keys which are written by others."""
    return Group(lambda json: {field: value(json)})


# Models within models


def nested(key: str, field: str, family: Family, usual: Json | None = None) -> Group:
    """A submodel as a family has it, whose keys are in the object under `key`.

    Args:
      key: of config.json.
      field: of ours.
      family: whose keys they are.
      usual: what they are where the object does not say.
    """

    def read(json: Json) -> Overrides:
        # The last in the first configs, and then it counts.
        said = {**(usual or {}), **(json.get(key) or {}), **(json.get(f"{key}_dict") or {})}
        if said.get("model_type", family.name) != family.name:
            raise ValueError(f"{key} of model_type {said['model_type']} is not supported: only {family.name} is")
        return {f"{field}.{path}": value for path, value in read_keys(family.keys, said, key).items()}

    def write(config: Any) -> dict[str, Any]:
        return {key: {"model_type": family.name, **write_keys(family.keys, getattr(config, field))}}

    return Group(read, write)


def inside(part: str, heads: Heads, usual: Json = {}) -> Heads:  # noqa: B006  # it is not changed
    """Heads of a submodel; `usual` is what keys are where config.json does not say."""

    def read(json: Json) -> Overrides:
        found = read_keys(heads.keys, {**usual, **json}, part)
        return {f"{part}.{field}": value for field, value in found.items()}

    key = Group(read, lambda config: write_keys(heads.keys, getattr(config, part)))
    return heads._replace(rows=within("", part, heads.rows), keys=(key,))


# Heads


def classes(field: str) -> Group:
    """How many classes config.json names, 2 where it names none; they are written with their usual names."""

    def read(json: Json) -> Overrides:
        return {field: len(json.get("id2label") or ()) or int(json.get("num_labels") or 2)}

    def write(config: Any) -> dict[str, Any]:
        names = {str(i): f"LABEL_{i}" for i in range(_get(config, field) or 0)}
        return {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}

    return Group(read, write)


def whatever(**fields: Any) -> Group:
    """Fields of ours, whatever config.json says."""
    return Group(lambda json: fields)


def body(pool: Pool | None = None, more: str = "") -> Heads:
    """The bare model, perhaps with a pool, and rows of that."""
    return Heads(rows(more), (whatever(head=None, pool=pool, tied=False),), base=True)


def causal(name: str = "lm_head") -> Heads:
    """One logit a token of the vocabulary, by a layer called `name` or the embedding table."""
    return Heads(rows(f"transposed {name}.weight head/logits\ncopy {name}.bias head/bias"))


def headed(head: Head, logits: str, said: str | Keys = "", more: str = "", **fields: Any) -> Heads:
    """Logits by a layer called `logits`.

    Args:
      head: it, but for what keys say.
      logits: name of that layer.
      said: keys of config.json, that say something of the head.
      more: rows of tensors beside.
      **fields: of our config, as all of them have it.
    """
    return Heads((*causal(logits).rows, *rows(more)), keys(whatever(**{"head": head, "pool": None, **fields}), said))


def classifier(name: str, pool: Pool | None, said: str | Keys = "", more: str = "", bias: bool = True) -> Heads:
    """Logits of classes by a layer called `name`: of each token, or of a pooled one; the rest as in `headed`."""
    return headed(Head(bias=bias), name, keys(classes("head.outputs"), said), more, pool=pool, tied=False)


def decoder_heads(
    name: str, count: int = 4, body_name: str = "", logits: str = "lm_head", tokens: str = "score"
) -> dict[str, Heads]:
    """The first so many architectures of a family of decoders, "Llama".

    Args:
      name: before those of architectures.
      count: so many.
      body_name: what stands there in the name of the bare model, if it is another.
      logits: name of the layer of logits.
      tokens: that of the layer of a token's classes.
    """
    found = {
        f"{name}ForCausalLM": causal(logits),
        f"{body_name or name}Model": body(),
        f"{body_name or name}ForSequenceClassification": classifier("score", Pool("last"), bias=False),
        f"{body_name or name}ForTokenClassification": classifier(tokens, None),
    }
    return dict(list(found.items())[:count])


# Families


def family(said: str, *keyed: Any, text: str = "", **others: Any) -> Family:
    """A family from words.

    Args:
      said: its `model_type`, and words of its base: "bert norm.placement=post".
      *keyed: its keys, as `keys` takes them.
      text: that of its rows, as `rows` takes it.
      **others: fields of `Family`; before the names of its body stands its own, unless a prefix is among them.
    """
    name, _, words = said.partition(" ")
    given = {"prefix": f"{name}.", "base": base(words), "keys": keys(*keyed), "rows": rows(text)}
    return Family(name, **{**given, **others})
