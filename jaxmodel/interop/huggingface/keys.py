"""What keys of config.json say in words of their own: activations, rotary positions, kinds of layers, heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxmodel.errors import InputError
from jaxmodel.interop.huggingface.table import (
    TRANSPOSED,
    Family,
    Group,
    Heads,
    Json,
    Overrides,
    Row,
    read_keys,
    write_keys,
)
from jaxmodel.models.configs import Transformer, Variant
from jaxmodel.models.parts import Head, Pool, Rope

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


def named(names: Mapping[str, str]) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """(read, write) of a value that goes by other names on disk."""
    first = {ours: theirs for theirs, ours in reversed(list(names.items()))}

    def read(name: str) -> str:
        if name not in names:
            raise ValueError(f"there are {', '.join(names)}")
        return names[name]

    return read, lambda ours: first.get(ours, ours)


# Rotary positions

_COMMON = {"factor": "factor", "original_max_position_embeddings": "original_length"}
_YARN = {"beta_fast": "beta_fast", "beta_slow": "beta_slow", "truncate": "truncate"}
_LONG = {"short_factor": "short_factors", "long_factor": "long_factors"}
_ROPES = {  # what a kind of scaling has on disk -> field of ours
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {**_COMMON, "low_freq_factor": "low_frequency", "high_freq_factor": "high_frequency"},
    "yarn": {**_COMMON, **_YARN, "attention_factor": "attention_factor"},
    "proportional": {"factor": "factor"},
    "longrope": {**_COMMON, **_LONG, "attention_factor": "attention_factor"},
}


def read_rope(
    said: Json, json: Json, fraction: float | None = None, interleaved: bool = False, theta: float = 1e4
) -> tuple[float, Rope]:
    """Base wavelength and scaling from an entry of `rope_parameters`, or from what came before those.

    Args:
      said: the entry.
      json: config.json.
      fraction: of a head that is turned, where neither says; None: all of it, whatever they say, as theirs does.
      interleaved: whether pairs are neighbours.
      theta: base wavelength, where neither says.

    Raises ValueError for a kind that is not known, and for what it lacks.
    """
    kind = said.get("rope_type", said.get("type", "default"))
    if kind not in _ROPES:
        raise ValueError(f"rope_type {kind}: there are {', '.join(_ROPES)}")
    needed = ("factor",) * (kind not in ("default", "proportional"))
    needed = ("short_factor", "long_factor") if kind == "longrope" else needed
    if missing := [name for name in needed if said.get(name) is None]:
        raise ValueError(f"rope_type {kind} lacks {missing[0]}")
    names = {theirs: ours for theirs, ours in _ROPES[kind].items() if said.get(theirs) is not None}
    values: dict[str, Any] = {ours: said[theirs] for theirs, ours in names.items()}
    length = json.get("max_position_embeddings")
    if kind == "dynamic":
        values["original_length"] = length
    if kind == "longrope":
        values.setdefault("original_length", json.get("original_max_position_embeddings", length))
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        if said.get("factor") is None and length:
            values["factor"] = length / values["original_length"]
    if kind == "yarn" and "attention_factor" not in values and said.get("mscale") and said.get("mscale_all_dim"):
        values["attention_factor"] = sharper(values["factor"], said["mscale"]) / sharper(
            values["factor"], said["mscale_all_dim"]
        )
    turned = 1.0
    if fraction is not None or kind == "proportional":
        turned = json.get("partial_rotary_factor", 1.0 if fraction is None else fraction)
        turned = float(said.get("partial_rotary_factor", turned))
    scaling = "none" if kind == "default" else kind
    theta = said.get("rope_theta", json.get("rope_theta", theta))
    return float(theta), Rope(scaling=scaling, fraction=turned, interleaved=interleaved, **values)


def sharper(factor: float, scale: float) -> float:
    """As yarn sharpens attention (arXiv:2309.00071), scaled."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def write_rope(theta: float, rope: Rope, part: bool = False) -> dict[str, Any]:
    """An entry of `rope_parameters`, which says what part of a head is turned where `part` is."""
    kind = "default" if rope.scaling == "none" else rope.scaling
    values = {theirs: getattr(rope, ours) for theirs, ours in _ROPES[kind].items()}
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}
    said = {"partial_rotary_factor": rope.fraction} if part or kind == "proportional" else {}
    return {"rope_theta": theta, "rope_type": kind, **values, **said}


def _said(json: Json) -> dict[str, Any]:
    """`rope_parameters`, or `rope_scaling` as older configs have it."""
    return dict(json.get("rope_parameters") or json.get("rope_scaling") or {})


def rotary(scaling: Json = {}, **usual: Any) -> Group:  # noqa: B006  # it is not changed
    """Rotary positions alike in all layers, and how long a text may be: `max_position_embeddings`.

    Args:
      scaling: `rope_parameters` where config.json has none.
      **usual: of the family, as `read_rope` takes it.
    """

    def read(json: Json) -> Overrides:
        base, rope = read_rope(_said(json) or scaling, json, **usual)
        length = json["max_position_embeddings"]
        if rope.scaling == "dynamic":  # made to go on beyond what it was trained for
            length = math.ceil(length * rope.factor)
        return {"attention.rope_theta": base, "attention.rope": rope, "max_length": length}

    def write(config: Transformer) -> dict[str, Any]:
        a = config.attention
        length = a.rope.original_length if a.rope.scaling == "dynamic" else config.max_length
        return {
            "rope_parameters": write_rope(a.rope_theta, a.rope, "fraction" in usual),
            "max_position_embeddings": length,
        }

    return Group(read, write)


# Kinds of layers


def layers(config: Transformer) -> list[Transformer]:
    """Each layer's variant, in order."""
    return [config.variant(kind) for pattern, repeats in config.segments for _ in range(repeats) for kind in pattern]


def patterned(kinds: Sequence[str], variants: Mapping[str, Overrides]) -> Overrides:
    """The shortest pattern that layers of these kinds repeat; what all have in common needs none.

    >>> patterned(["a", "b", "a"], {"a": {}, "b": {"attention.window": 8}})["pattern"]
    ('a', 'b')
    """
    if len(set(kinds)) == 1:
        return dict(variants[kinds[0]])
    period = next(n for n in range(1, len(kinds) + 1) if all(k == kinds[i % n] for i, k in enumerate(kinds)))
    used = dict.fromkeys(kinds)
    return {
        "pattern": tuple(kinds[:period]),
        "variants": tuple(Variant(name, tuple(variants[name].items())) for name in used),
    }


def layer_types(
    types: Callable[[Json], Sequence[str]], window: str = "sliding_window", usual: int | None = None
) -> Group:
    """`layer_types`: full_attention, or sliding_attention with a window.

    Args:
      types: config.json -> what they are where it does not say.
      window: the key that says how many tokens a sliding layer sees.
      usual: that number, where it does not say or no layer slides.
    """

    def read(json: Json) -> Overrides:
        kinds = json.get("layer_types") or types(json)
        known = {"full_attention": "global", "sliding_attention": "local"}
        for kind in kinds:
            if kind not in known:
                raise InputError(f"layer_types: {kind} is not supported: there are {', '.join(known)}")
        variants: dict[str, Overrides] = {"global": {}, "local": {"attention.window": json.get(window, usual)}}
        return patterned([known[kind] for kind in kinds], variants)

    def write(config: Transformer) -> dict[str, Any]:
        windows = [layer.attention.window for layer in layers(config)]
        kinds = ["sliding_attention" if each else "full_attention" for each in windows]
        return {"layer_types": kinds, window: next(filter(None, windows), usual)}

    return Group(read, write)


def rotary_by_layer(
    every: int, theta: float, local_theta: float | None = None, of_global: Callable[[Json], Overrides] = lambda json: {}
) -> Group:
    """`layer_types`, and an entry of `rope_parameters` for each of them; how long a text may be.

    Args:
      every: the last of so many layers is global where config.json does not say.
      theta: base wavelength of global layers, and of local ones unless they have one of their own.
      local_theta: that.
      of_global: config.json -> what else sets global layers apart.
    """

    def read(json: Json) -> Overrides:
        kinds = json.get("layer_types")
        if not kinds:
            period = json.get("sliding_window_pattern", json.get("_sliding_window_pattern", every))
            count = json["num_hidden_layers"]
            kinds = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(count)]
        said = dict(json.get("rope_parameters") or {})
        if "full_attention" not in said:
            base = json.get("rope_theta", theta)
            local = json.get("rope_local_base_freq", local_theta or base)
            said = {
                "full_attention": {"rope_theta": base, **(json.get("rope_scaling") or {}), **said},
                "sliding_attention": {"rope_theta": local},
            }
        ropes = {kind: read_rope(entry, json) for kind, entry in said.items()}
        variants = {
            name: {"attention.rope_theta": ropes[kind][0], "attention.rope": ropes[kind][1]}
            for name, kind in (("local", "sliding_attention"), ("global", "full_attention"))
        }
        variants["local"] = {"attention.window": json.get("sliding_window", 4096), **variants["local"]}
        variants["global"] |= of_global(json)
        names = {"sliding_attention": "local", "full_attention": "global"}
        found = patterned([names[kind] for kind in kinds], variants)
        return {**found, "max_length": json["max_position_embeddings"]}

    def write(config: Transformer) -> dict[str, Any]:
        each = [layer.attention for layer in layers(config)]
        kinds = ["sliding_attention" if a.window else "full_attention" for a in each]
        ropes = {kind: write_rope(a.rope_theta, a.rope) for kind, a in zip(kinds, each, strict=True)}
        plain = {"rope_theta": local_theta or theta, "rope_type": "default"}
        return {
            "layer_types": kinds,
            "sliding_window": next((a.window for a in each if a.window), 4096),
            "rope_parameters": {"sliding_attention": plain, "full_attention": plain, **ropes},
            "max_position_embeddings": config.max_length,
        }

    return Group(read, write)


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
        old = json.get(f"{key}_dict")  # in the first configs, and then it counts
        said = {**(usual or {}), **(json.get(key) or {}), **(old or {})}
        if said.get("model_type", family.name) != family.name:
            raise ValueError(f"{key} of model_type {said['model_type']} is not supported: only {family.name} is")
        return {f"{field}.{path}": value for path, value in read_keys(family.keys, said, key).items()}

    def write(config: Any) -> dict[str, Any]:
        return {key: {"model_type": family.name, **write_keys(family.keys, getattr(config, field))}}

    return Group(read, write)


# Heads


def labels(json: Json) -> int:
    """How many classes a config.json names; 2 where it names none."""
    return len(json.get("id2label") or ()) or int(json.get("num_labels") or 2)


def named_labels(count: int) -> dict[str, Any]:
    """Keys that give so many classes their usual names."""
    names = {str(i): f"LABEL_{i}" for i in range(count)}
    return {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}


def classes(config: Transformer) -> dict[str, Any]:
    """The same of a head's."""
    return named_labels(config.num_outputs)


def body(pool: Pool | None = None, rows: tuple[Row, ...] = ()) -> Heads:
    """The bare model, perhaps with a pool."""

    def write(config: Transformer) -> dict[str, Any] | None:
        return {} if config.head is None and config.pool == pool else None

    return Heads(lambda json: {"head": None, "pool": pool, "tied": False}, rows, write, base=True)


def causal(name: str = "lm_head") -> Heads:
    """One logit a token of the vocabulary, by a layer called `name` or the embedding table."""

    def write(config: Transformer) -> dict[str, Any] | None:
        usual = config.head is not None and config.pool is None and config.head.outputs is None
        return {} if usual else None

    rows = Row(f"{name}.weight", "head/logits", TRANSPOSED), Row(f"{name}.bias", "head/bias")
    return Heads(lambda json: {}, rows, write)


def headed(
    head: Callable[[Json], Head],
    logits: str,
    said: Callable[[Any], dict[str, Any]] = lambda config: {},
    pool: Callable[[Json], Pool | None] = lambda json: None,
    more: tuple[Row, ...] = (),
    **overrides: Any,
) -> Heads:
    """Logits by a layer called `logits`; a config is of them where it is read again as it was.

    Args:
      head: config.json -> the head.
      logits: name of that layer.
      said: our config -> keys of config.json.
      pool: config.json -> the pool.
      more: tensors beside.
      **overrides: of our config, as all of them have it.
    """
    rows = Row(f"{logits}.weight", "head/logits", TRANSPOSED), Row(f"{logits}.bias", "head/bias")
    return Heads(
        lambda json: {"head": head(json), "pool": pool(json), **overrides},
        (*rows, *more),
        lambda config: said(config) if config.head else None,
    )


def classifier(name: str, pool: Pool | None, bias: bool = True, more: tuple[Row, ...] = ()) -> Heads:
    """Logits of classes by a layer called `name`: of each token, or of a pooled one."""

    def head(json: Json) -> Head:
        return Head(outputs=labels(json), bias=bias)

    return headed(head, name, classes, lambda json: pool, more, tied=False)


def decoder_heads(name: str) -> dict[str, Heads]:
    """The architectures of a family of decoders: "Llama"."""
    return {
        f"{name}ForCausalLM": causal(),
        f"{name}Model": body(),
        f"{name}ForSequenceClassification": classifier("score", Pool("last"), bias=False),
        f"{name}ForTokenClassification": classifier("score", None),
    }
