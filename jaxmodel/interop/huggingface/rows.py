"""The notation of rows, and what families have in common: heads of attention, a config whose sizes are to come."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from jaxmodel.interop.huggingface import table
from jaxmodel.interop.huggingface.table import Row
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import MLP, Attention, Norm

LAYER_NORM = Norm(kind="layer", bias=True)


def _heads(config: Transformer) -> int:
    return config.attention.num_heads


FORMS: dict[str, Any] = {  # of one tensor; or of a layer's weight and bias
    **{"copy": table.COPY, "transposed": table.TRANSPOSED, "flat": table.FLAT, "token": table.TOKEN},
    **{"batched": table.BATCHED, "count": table.COUNT, "patches": lambda config: table.windows(config.images.patch)},
    **{"linear": (table.TRANSPOSED, table.FLAT), "plain": (table.COPY, table.FLAT)},
    **{
        "columns": (table.COLUMNS, table.FLAT),
        "by_head": tuple(table.in_turn(form, _heads) for form in (table.TRANSPOSED, table.FLAT)),
    },
    "depthwise": (table.DEPTHWISE, table.COPY),
}


def transformer(**fields: Any) -> Transformer:
    """What a family has in common; sizes come from config.json."""
    sizes: dict[str, Any] = {"vocab_size": 1, "max_length": 1, "embed_dim": 1, "num_layers": 1}
    return Transformer(**{**sizes, "attention": Attention(num_heads=1), "mlp": MLP(dim=1), **fields})


def rows(text: str, **forms: Any) -> tuple[Row, ...]:
    """Rows from lines of three words: a form, a name on disk, a path of ours.

    (a|b) in the name and (x|y) in the path are two rows; of several such all combinations; () in the path is what
    stands in the name. x+y at the end of a path are arrays that one tensor holds. `norm` and forms that are pairs are
    of a module: its weight and its bias, which with us is path/scale and path/bias of a norm, path/kernel and path/bias
    where it says the first, and else path and path_bias. Of rows that share a path the last counts: a family's own
    stand after those that it shares.

    Args:
      text: the lines.
      **forms: further ones by name.

    >>> [(row.name, row.paths) for row in rows("norm ln_(1|2) stack/(attention|mlp)_norm")][::2]
    [('ln_1.weight', ('stack/attention_norm/scale',)), ('ln_2.weight', ('stack/mlp_norm/scale',))]
    """
    found = []
    for kind, whole, place in filter(None, map(str.split, text.splitlines())):
        for name, path in spelt(whole, place):
            folder, slash, last = path.rpartition("/")
            paths = tuple(f"{folder}{slash}{each}" for each in last.split("+"))
            if kind == "norm":
                found += [Row(f"{name}.weight", (f"{path}/scale",)), Row(f"{name}.bias", (f"{path}/bias",))]
            elif type(form := forms.get(kind) or FORMS[kind]) is tuple:
                found.append(Row(f"{name}.weight", paths, form[0]))
                biases = tuple(f"{each}_bias".replace("/kernel_bias", "/bias") for each in paths)
                found.append(Row(f"{name}.bias", biases, form[1]))
            else:
                found.append(Row(name, paths, form))
    last = {path: row for row in found for path in row.paths}
    return tuple(row for row in found if all(last[path] is row for path in row.paths))


def spelt(name: str, path: str) -> list[tuple[str, str]]:
    """Both, once for each alternative that they offer."""
    one, other = (re.search(r"\(([^)]*)\)", each) for each in (name, path))
    if one is None or other is None:
        assert one is other, f"{name} and {path} offer other alternatives"
        return [(name, path)]
    pairs = zip(one[1].split("|"), (other[1] or one[1]).split("|"), strict=True)
    return [each for a, b in pairs for each in spelt(name.replace(one[0], a, 1), path.replace(other[0], b, 1))]


def within(name: str, part: str, rows: tuple[Row, ...] | Callable[[Any], Any]) -> tuple[Row, ...]:
    """Rows of a submodel: its tensors' names begin with `name`, and its paths with that of the part."""
    assert isinstance(rows, tuple)
    return tuple(Row(name + row.name, tuple(f"{part}/{each}" for each in row.paths), row.form) for row in rows)
