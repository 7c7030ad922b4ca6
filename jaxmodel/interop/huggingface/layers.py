"""What keys of config.json say of layers: rotary positions, windows, kinds that take turns."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxmodel.interop.huggingface.keys import implied, keys
from jaxmodel.interop.huggingface.table import Group, Json, Keys, Overrides, blocks, read_keys, write_keys
from jaxmodel.models.configs import Transformer, Variant
from jaxmodel.models.parts import Attention, Rope

Reads = Callable[[Json], Overrides]
Kinds = Callable[[Json], Sequence[str]]  # config.json -> what `layer_types` would say
NOTHING = Group().read

# Rotary positions

_TRAINED = "original_max_position_embeddings"
_LENGTH = f"{_TRAINED}:original_length=null"
_ROPES: dict[str, str | Keys] = {  # keys of a kind of scaling
    **{"default": "", "linear": "factor"},
    "dynamic": keys("factor", implied("original_length", lambda said: said.get("max_position_embeddings"))),
    "llama3": f"factor {_LENGTH} low_freq_factor:low_frequency=1.0 high_freq_factor:high_frequency=4.0",
    "yarn": f"factor {_LENGTH} beta_fast=32.0 beta_slow=1.0 truncate=true attention_factor=null",
    "proportional": "factor=1.0 partial_rotary_factor:fraction=1.0",
    "longrope": f"factor=1.0 {_LENGTH} (short|long)_factor:(short|long)_factors~list attention_factor=null",
}


def _of_rope(kind: str, fraction: float | None) -> Keys:
    """Keys of an entry; what part of a head is turned is among them where a family says it."""
    return keys(_ROPES[kind], "" if fraction is None else f"partial_rotary_factor:fraction={fraction}")


def read_rope(
    said: Json, json: Json, fraction: float | None = None, interleaved: bool = False, theta: float = 1e4
) -> Overrides:
    """Base wavelength and scaling from an entry of `rope_parameters`, or from what came before those.

    Args:
      said: the entry.
      json: config.json.
      fraction: of a head that is turned, where neither says; None: all of it, whatever they say, as theirs does.
      interleaved: whether pairs are neighbours.
      theta: base wavelength, where neither says.

    Raises ValueError for a kind that is not known, and for what it lacks.
    """
    kind = said.get("rope_type") or said.get("type") or "default"
    if kind not in _ROPES:
        raise ValueError(f"rope_type {kind}: there are {', '.join(_ROPES)}")
    said = {**json, **{name: value for name, value in said.items() if value is not None}}
    if kind == "longrope" and (length := said.get("max_position_embeddings")):
        said[_TRAINED] = said.get(_TRAINED) or length
        said.setdefault("factor", length / said[_TRAINED])
    if kind == "yarn" and (scale := said.get("mscale")) and (all_dims := said.get("mscale_all_dim")):
        said.setdefault("attention_factor", sharper(said["factor"], scale) / sharper(said["factor"], all_dims))
    values = read_keys(_of_rope(kind, fraction), said, f"rope_type {kind}")
    rope = Rope(scaling="none" if kind == "default" else kind, interleaved=interleaved, **values)
    return {"attention.rope_theta": float(said.get("rope_theta", theta)), "attention.rope": rope}


def sharper(factor: float, scale: float) -> float:
    """As yarn sharpens attention (arXiv:2309.00071), scaled."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def write_rope(attention: Attention, fraction: float | None = None) -> dict[str, Any]:
    """An entry of `rope_parameters`; `fraction` as `read_rope` takes it."""
    kind = "default" if attention.rope.scaling == "none" else attention.rope.scaling
    values = write_keys(_of_rope(kind, fraction), attention.rope)
    said = {name: value for name, value in values.items() if value is not None}
    return {"rope_theta": attention.rope_theta, "rope_type": kind, **said}


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
        found = read_rope(_said(json) or scaling, json, **usual)
        length, rope = json["max_position_embeddings"], found["attention.rope"]
        if rope.scaling == "dynamic":  # made to go on beyond what it was trained for
            length = math.ceil(length * rope.factor)
        return {**found, "max_length": length}

    def write(config: Transformer) -> dict[str, Any]:
        a = config.attention
        length = a.rope.original_length if a.rope.scaling == "dynamic" else config.max_length
        return {"rope_parameters": write_rope(a, usual.get("fraction")), "max_position_embeddings": length}

    return Group(read, write, field="attention.rope")


# Kinds of layers


def patterned(kinds: Sequence[str], variants: Mapping[str, Overrides], first: Sequence[str] = ()) -> Overrides:
    """The shortest pattern that layers of these kinds repeat, behind the first; what all have in common needs none.

    >>> patterned(["a", "b", "a"], {"a": {}, "b": {"attention.window": 8}})["pattern"]
    ('a', 'b')
    """
    if len({*first, *kinds}) == 1:
        return dict(variants[kinds[0]])
    period = next(n for n in range(1, len(kinds) + 1) if all(k == kinds[i % n] for i, k in enumerate(kinds)))
    made = tuple(Variant(name, tuple(variants[name].items())) for name in dict.fromkeys((*first, *kinds)))
    return {"first": tuple(first), "pattern": tuple(kinds[:period]), "variants": made}


def _shared(kinds: Sequence[str], variants: Mapping[str, Overrides], json: Json) -> Overrides:
    """`patterned`, with last layers that reuse the keys and values of others, if config.json says how many."""
    if not (count := json.get("num_kv_shared_layers", 0)):
        return patterned(kinds, variants)
    own, twice = kinds[:-count], json.get("use_double_wide_mlp")
    wide = {"mlp.dim": 2 * json["intermediate_size"]} if twice else {}
    last = {name: i for i, name in enumerate(own)}
    kept = {f"{name}_kept": {**each, "attention.sharing": "keep"} for name, each in variants.items()}
    reused = {f"{name}_reused": {**each, **wide, "attention.sharing": "reuse"} for name, each in variants.items()}
    first = [f"{name}_kept" if last[name] == i else name for i, name in enumerate(own)]
    return patterned([f"{name}_reused" for name in kinds[-count:]], {**variants, **kept, **reused}, first)


def every(period: int, json: Json, last: str = "full_attention", others: str = "sliding_attention") -> list[str]:
    """Kinds of layers, of which the last of so many is another."""
    return [others if (i + 1) % period else last for i in range(json["num_hidden_layers"])]


def by_layer(kinds: Mapping[str, tuple[str, Reads]], usual: Kinds, of: Callable[[Transformer], str]) -> Group:
    """`layer_types`, by which layers differ.

    Args:
      kinds: on disk -> (variant with us, config.json -> its overrides).
      usual: config.json -> those of the layers, where `layer_types` is not there.
      of: a layer -> its kind on disk.
    """

    def read(json: Json) -> Overrides:
        found = json.get("layer_types") or usual(json)
        if unknown := [kind for kind in found if kind not in kinds]:
            raise ValueError(f"layer_types: {unknown[0]} is not supported: there are {', '.join(kinds)}")
        variants = {name: overrides(json) for kind, (name, overrides) in kinds.items() if kind in found}
        return _shared([kinds[kind][0] for kind in found], variants, json)

    return Group(read, lambda config: {"layer_types": [of(layer) for layer in blocks(config)]})


def slides(layer: Transformer) -> str:
    """Whether a layer has a window, as `layer_types` says it."""
    return "sliding_attention" if layer.attention.window else "full_attention"


def window_of(config: Transformer) -> int | None:
    """That of the first layer with one."""
    return next((layer.attention.window for layer in blocks(config) if layer.attention.window), None)


def switched(group: Group, key: str) -> Group:
    """Windows that `use_sliding_window` turns on; else that key counts as not given."""

    def read(json: Json) -> Overrides:
        return group.read(json if json.get("use_sliding_window") else {**json, key: None})

    def write(config: Transformer) -> dict[str, Any]:
        window = window_of(config)
        return {**group.write(config), "sliding_window": window, "use_sliding_window": window is not None}

    return Group(read, write)


def layer_types(types: Kinds, usual: int | None = None, full: Reads = NOTHING, local: Reads = NOTHING) -> Group:
    """`layer_types`: full_attention, or sliding_attention with a window.

    Args:
      types: config.json -> what they are where it does not say.
      usual: how many tokens a sliding layer sees, where `sliding_window` does not say or no layer slides.
      full: config.json -> what sets layers that see every token apart.
      local: what sets the others apart, beside their window.
    """

    def sliding(json: Json) -> Overrides:
        return {"attention.window": json.get("sliding_window", usual), **local(json)}

    kinds = by_layer({"full_attention": ("global", full), "sliding_attention": ("local", sliding)}, types, slides)
    return kinds._replace(write=lambda config: {**kinds.write(config), "sliding_window": window_of(config) or usual})


def rotary_by_layer(period: int, theta: float, local_theta: float | None = None, of_global: Reads = NOTHING) -> Keys:
    """`layer_types`, and an entry of `rope_parameters` for each of them; how long a text may be.

    Args:
      period: the last of so many layers is global where config.json does not say.
      theta: base wavelength of global layers, and of local ones unless they have one of their own.
      local_theta: that.
      of_global: config.json -> what else sets global layers apart.
    """

    def full(json: Json) -> Overrides:
        said = _said(json)
        return {**read_rope(said.get("full_attention", said), json, theta=theta), **of_global(json)}

    def local(json: Json) -> Overrides:
        base = json.get("rope_local_base_freq", local_theta or json.get("rope_theta", theta))
        return read_rope(_said(json).get("sliding_attention", {"rope_theta": base}), json)

    def usual(json: Json) -> list[str]:
        return every(json.get("sliding_window_pattern", json.get("_sliding_window_pattern", period)), json)

    def write(config: Transformer) -> dict[str, Any]:
        plain = {"rope_theta": local_theta or theta, "rope_type": "default"}
        ropes = {slides(layer): write_rope(layer.attention) for layer in blocks(config)}
        return {"rope_parameters": {"sliding_attention": plain, "full_attention": plain, **ropes}}

    ropes = Group(write=write, field="attention.rope")
    return keys(layer_types(usual, 4096, full, local), ropes, "max_position_embeddings:max_length")
