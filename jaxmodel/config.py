"""Configs: frozen dataclasses that can be written down, read back, overridden by dotted path and compared."""

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from jaxmodel.errors import InputError

C = TypeVar("C")
MISSING = dataclasses.MISSING
_REGISTRY: dict[str, type] = {}


@dataclasses.dataclass(frozen=True)
class FieldInfo:
    """What is known of one field: its type, default (`MISSING` where required), help and allowed values."""

    type: Any
    default: Any = dataclasses.field(default_factory=lambda: MISSING)  # `= MISSING` would mean no default
    help: str = ""
    choices: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None
    flag: bool = True


def field(
    default: Any = MISSING,
    help: str = "",
    *,
    choices: Iterable[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    flag: bool = True,
) -> Any:
    """A dataclass field that explains itself.

    Args:
        default: the default; without one (or with `...`) the field is required.
        help: one sentence, shown by `--help`.
        choices: the values allowed; in a tuple, those allowed for each element.
        low: the least number allowed; in a tuple, for each element.
        high: the greatest number allowed.
        flag: False for structured values that no flag can spell.
    """
    assert help, "a field without help cannot be used from the command line"
    metadata = {"help": help, "low": low, "high": high, "flag": flag}
    metadata["choices"] = None if choices is None else tuple(choices)
    if default is ... or default is MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def register(config_type: type[C]) -> type[C]:
    """Make a frozen dataclass known by its class name, so that `from_dict` can build it."""
    assert is_config(config_type), f"{config_type.__name__} must be a frozen dataclass"
    known = _REGISTRY.setdefault(config_type.__name__, config_type)
    same = (known.__module__, known.__qualname__) == (config_type.__module__, config_type.__qualname__)
    assert same, f"{config_type.__name__} is already registered by {known.__module__}"
    _REGISTRY[config_type.__name__] = config_type
    return config_type


@typing.dataclass_transform(frozen_default=True)
class Config:
    """What makes a subclass, a class of annotated fields, a frozen dataclass, and registers it."""

    def __init_subclass__(cls) -> None:
        register(dataclasses.dataclass(frozen=True)(cls))


def is_config(value: Any) -> bool:
    """Whether this is a frozen dataclass, or an instance of one."""
    return dataclasses.is_dataclass(value) and value.__dataclass_params__.frozen  # pyright: ignore


def closest(name: str, options: Iterable[str]) -> str | None:
    """The option that `name` was most likely meant to be, or None.

    >>> closest("learning_rat", ["learning_rate", "warmup"])
    'learning_rate'
    >>> closest("learning_rate", ["train.steps", "optimizer.learning_rate"])
    'optimizer.learning_rate'
    """
    import difflib

    options = list(options)
    ends = [option for option in options if option.endswith(f".{name}")]
    if len(ends) == 1:
        return ends[0]
    near = difflib.get_close_matches(name, options, n=1)
    return near[0] if near else None


def did_you_mean(name: str, options: Iterable[str], prefix: str = "") -> str:
    """The end of an error about an unknown name: the closest option, or all of them."""
    options = list(options)
    near = closest(name, options)
    return f"did you mean {prefix}{near}?" if near else f"choose from {', '.join(options)}"


# Types and values


@functools.cache
def fields(config_type: type) -> dict[str, FieldInfo]:
    """The fields of a config class, with their annotations resolved."""
    hints = typing.get_type_hints(config_type)
    found = {}
    for each in dataclasses.fields(config_type):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        found[each.name] = FieldInfo(type=hints[each.name], default=default, **each.metadata)
    return found


@functools.cache
def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type there is; None is `NoneType`, and a `Literal` is its words."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(each for member in typing.get_args(hint) for each in _options(member))
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else (hint,)


def _words(hint: Any) -> list[str]:
    """What may stand for a value: of `int | Literal["auto"]` that is auto."""
    return [option for option in _options(hint) if isinstance(option, str)]


def _nested(hint: Any) -> type | None:
    """The config class a field holds, or None if it holds a plain value."""
    return next((option for option in _options(hint) if isinstance(option, type) and is_config(option)), None)


def _element(hint: Any) -> Any:
    """What one element of a homogeneous tuple is, or the hint itself without None and words."""
    others = (option for option in _options(hint) if option is not type(None) and not isinstance(option, str))
    hint = next(others, hint)
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint


def _is_tuple(hint: Any) -> bool:
    return any(typing.get_origin(option) is tuple for option in _options(hint))


def allowed(info: FieldInfo) -> str:
    """What a field may be, in words.

    >>> allowed(FieldInfo(int | typing.Literal["auto"] | None, low=1))
    'a whole number of at least 1, or auto, or none'
    """
    element = _element(info.type)
    if info.choices is not None:
        words = "one of " + ", ".join(map(str, info.choices))
    elif _nested(info.type):
        words = "given by its own fields"
    else:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        words = names.get(element, getattr(element, "__name__", str(element)))
        if info.low is not None and info.high is not None:
            words += f" from {info.low:g} to {info.high:g}"
        elif info.low is not None:
            words += f" of at least {info.low:g}"
        elif info.high is not None:
            words += f" of at most {info.high:g}"
    if _is_tuple(info.type):
        words += ", or several with commas between"
    others = _words(info.type) + (["none"] if type(None) in _options(info.type) else [])
    return ", or ".join([words, *others])


def _fit(value: Any, hint: Any) -> Any:
    """The value as its hint wants it (int to float, list to tuple), or `MISSING` if it cannot be that."""
    if _options(hint) != (hint,):
        fits = (_fit(value, option) for option in _options(hint))
        return next((fit for fit in fits if fit is not MISSING), MISSING)
    if isinstance(hint, str):
        return value if value == hint else MISSING
    if typing.get_origin(hint) is tuple or hint is tuple:
        if not isinstance(value, tuple | list):
            return MISSING
        arguments = typing.get_args(hint) or (Any, ...)
        each = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(each) != len(value):
            return MISSING
        fit = tuple(map(_fit, value, each))
        return MISSING if any(element is MISSING for element in fit) else fit
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if number and math.isfinite(value) else MISSING
    if hint is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else MISSING
    if isinstance(hint, type) and hint is not Any:  # which is a type too
        return value if isinstance(value, hint) else MISSING
    return value  # Any, type variables: whatever it is


def _check(value: Any, info: FieldInfo, name: str) -> Any:
    """The value, fitted to its field; raises InputError if it is of another type or out of bounds."""
    fit = _fit(value, info.type)
    if fit is MISSING or not _within(fit, info):
        near = closest(str(value), [*map(str, info.choices or ()), *_words(info.type)])
        hint = f" (did you mean {near}?)" if near else ""
        raise InputError(f"{name}={to_text(value)}: must be {allowed(info)}{hint}")
    return fit


def _within(value: Any, info: FieldInfo) -> bool:
    elements = value if isinstance(value, tuple) else () if value is None else (value,)
    if info.choices is not None and any(element not in info.choices for element in elements):
        return False
    low = -math.inf if info.low is None else info.low
    high = math.inf if info.high is None else info.high
    numbers = (element for element in elements if isinstance(element, int | float))
    return all(low <= number <= high for number in numbers)


def validate(config: Any, prefix: str = "") -> None:
    """Check every field of a config, nested ones too; raises InputError naming the first that is wrong."""
    for name, info in fields(type(config)).items():
        value = _check(getattr(config, name), info, prefix + name)
        if is_config(value):
            validate(value, f"{prefix}{name}.")


def refuse(config: Any, message: str, prefix: str = "model.") -> NoReturn:
    """Raise InputError; `<path>` in the message is a field of the config with its value, as a flag says it.

    >>> refuse(FieldInfo(int, low=3), "<low> is too high: lower it", "data.")
    Traceback (most recent call last):
        ...
    jaxmodel.errors.InputError: data.low=3 is too high: lower it
    """

    def said(path: re.Match[str]) -> str:
        return f"{prefix}{path[1]}={to_text(functools.reduce(getattr, path[1].split('.'), config))}"

    raise InputError(re.sub(r"<([\w.]+)>", said, message))


# Written down and read back


def to_dict(config: Any) -> dict[str, Any]:
    """A config as JSON-able data: nested configs become dicts with a "type" key, tuples become lists."""
    assert is_config(config), f"{type(config).__name__} is not a config"
    return _encode(config)


def _encode(value: Any) -> Any:
    if is_config(value):
        name = type(value).__name__
        assert name in _REGISTRY, f"{name} needs @register to be written down"
        return {"type": name} | {each: _encode(getattr(value, each)) for each in fields(type(value))}
    if isinstance(value, tuple | list):
        return [_encode(element) for element in value]
    assert value is None or isinstance(value, bool | int | float | str), f"{value!r} cannot be written down"
    return value


def from_dict(data: Mapping[str, Any]) -> Any:
    """The config that `to_dict` wrote. Fields that are not mentioned take their defaults.

    Raises:
        InputError: an unknown type or field, a missing required field, or a value that does not fit.
    """
    return _decode(data)


def _decode(value: Any) -> Any:
    if isinstance(value, Mapping):
        values = {str(name): _decode(each) for name, each in value.items()}
        kind = str(values.pop("type", None))
        if kind not in _REGISTRY:
            raise InputError(f"unknown config type {kind}: {did_you_mean(kind, sorted(_REGISTRY))}")
        return _lay(_REGISTRY[kind], {}, values, f"{kind}.")
    if isinstance(value, list | tuple):
        return tuple(map(_decode, value))
    return value


# Overrides


def create(config_type: type[C], overrides: Mapping[str, Any], prefix: str = "") -> C:
    """The defaults of a config class, overridden by dotted path; raises InputError as `replace` does."""
    return _lay(config_type, {}, overrides, prefix)


def replace(config: C, overrides: Mapping[str, Any], prefix: str = "") -> C:
    """A config with some fields replaced, by dotted path: `{"attention.window": 512}`.

    A path into an optional config that is None creates it from its defaults first. Messages call the config
    itself `prefix` ("model.").

    Raises:
        InputError: an unknown path, a value of the wrong type or out of bounds, or `moe=none` beside `moe.x`.
    """
    base = {name: getattr(config, name) for name in fields(type(config))}
    return _lay(type(config), base, overrides, prefix)


def _lay(kind: type[C], base: Mapping[str, Any], overrides: Mapping[str, Any], prefix: str) -> C:
    """Build `kind` from its defaults, then `base`, then `overrides`; `prefix` is its place, for messages."""
    infos = fields(kind)
    values = {**{name: info.default for name, info in infos.items()}, **base}
    inner: dict[str, dict[str, Any]] = {}
    for path, value in overrides.items():
        head, dot, rest = path.partition(".")
        if head not in infos:
            raise InputError(f"unknown field {prefix}{head}: {did_you_mean(head, infos, prefix)}")
        if dot:
            inner.setdefault(head, {})[rest] = value
        else:
            values[head] = _check(value, infos[head], prefix + head)
    for head, paths in inner.items():
        name, value, nested = prefix + head, values[head], _nested(infos[head].type)
        first = f"{name}.{next(iter(paths))}"
        if head in overrides and value is None:
            raise InputError(f"{name}=none and {first} contradict each other: give only one of them")
        if is_config(value):
            values[head] = replace(value, paths, f"{name}.")
        elif nested is not None:
            values[head] = _lay(nested, {}, paths, f"{name}.")
        else:
            raise InputError(f"{name} is {allowed(infos[head])} and has no fields: {first} cannot be set")
    for head, value in values.items():
        if value is MISSING:
            raise InputError(f"{prefix}{head} is missing: {infos[head].help or allowed(infos[head])}")
    return kind(**values)


# Flags and text


@functools.cache
def flatten(config: Any) -> Mapping[str, FieldInfo]:
    """Every field a flag can set, by dotted name; the defaults are those of the class, or of the instance.

    An optional nested config is listed itself too: it can be set to none. Required is a default of `MISSING`.
    """
    instance = not isinstance(config, type)
    found = {}
    for name, info in fields(type(config) if instance else config).items():
        if not info.flag:
            continue
        value = getattr(config, name) if instance else info.default
        nested = value if is_config(value) else _nested(info.type)
        if nested is None or type(None) in _options(info.type):
            found[name] = dataclasses.replace(info, default=value)
        if nested is not None:
            found |= {f"{name}.{rest}": each for rest, each in flatten(nested).items()}
    return found


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, FieldInfo]]:
    """Every plain value of a config with its dotted name, in the order of the fields."""
    for name, info in fields(type(config)).items():
        value = getattr(config, name)
        if is_config(value) and info.flag:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, info


def parse(text: str, info: FieldInfo, name: str = "value") -> Any:
    """A value from its text; raises InputError that names what is allowed.

    >>> parse("local,global", FieldInfo(tuple[str, ...]))
    ('local', 'global')
    """
    if type(None) in _options(info.type) and text.lower() == "none":
        return None
    element, several = _element(info.type), _is_tuple(info.type)
    parts = tuple(_scalar(part.strip(), element) for part in text.split(",") if text) if several else ()
    return _check(parts if several else _scalar(text, element), info, name)


def _scalar(text: str, kind: Any) -> Any:
    """One element from its text, or the text unchanged if it is no such thing (`_check` then says so)."""
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    return text


def to_text(value: Any) -> str:
    """A value as a flag spells it, the inverse of `parse`; structured values as JSON."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if is_config(value):
        return type(value).__name__
    if isinstance(value, tuple | list):
        if all(isinstance(element, int | float | str) for element in value):
            return ",".join(map(to_text, value))
        return json.dumps(_encode(value))
    return str(value)


def difference(a: Any, b: Any, nouns: tuple[str, str], prefix: str = "") -> list[str]:
    """Where two configs differ, a line each: `model.num_layers: 4 in the checkpoint, 6 asked for`.

    Args:
        a: a config, or any value.
        b: what it is compared with.
        nouns: what follows a's and b's value: `("in the checkpoint", "asked for")`.
        prefix: the name of the whole, `"model"`.
    """
    if is_config(a) and type(a) is type(b):
        names = fields(type(a))
        dot = f"{prefix}." if prefix else ""
        pairs = ((f"{dot}{name}", getattr(a, name), getattr(b, name)) for name in names)
        return [line for name, x, y in pairs for line in difference(x, y, nouns, name)]
    if a == b:
        return []
    return [f"{prefix}: {to_text(a)} {nouns[0]}, {to_text(b)} {nouns[1]}"]
