"""The notation of rows, and what families have in common: heads of attention, a config whose sizes are to come."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxmodel.interop.huggingface.table import Form, Row
from jaxmodel.models.configs import Transformer
from jaxmodel.models.presets import configured

SIZES = "vocab_size=1 max_length=1 embed_dim=1 num_layers=1 attention.num_heads=1 mlp.dim=1"


def windows(size: int, dims: int = 2) -> Form:
    """A convolution: [out, in, size, size] on disk, [size * size * in, out] with us, or [size, size, out].

    Over one dim, [out, in, size] and [size * in, out].
    """
    return Form(
        lambda x: x.reshape(*(size,) * dims, -1, x.shape[-1]).transpose(-1, -2, *range(dims)),
        lambda x, shape: x.transpose(*range(2, dims + 2), 1, 0).reshape(shape),
    )


def in_turn(form: Form, groups: Callable[[Any], int]) -> Callable[[Any], Form]:
    """Of each group its part of every array, one after the other.

    Args:
      form: of one alone.
      groups: config -> how many there are.
    """
    return lambda config: form._replace(groups=groups(config))


COPY = Form()
TRANSPOSED = Form(lambda x: x.T, lambda x, shape: x.T)
FLAT = Form(lambda x: x.reshape(-1))  # biases of heads: [heads, head_dim] with us
FORMS: dict[str, Any] = {  # of one tensor; or of a layer's weight and bias
    **{"copy": COPY, "transposed": TRANSPOSED, "flat": FLAT, "count": Form(dtype=np.dtype(np.int64))},
    # [1, 1, D] on disk: a class token, or positions [1, T, D].
    **{"token": Form(lambda x: x.reshape(1, 1, -1)), "batched": Form(lambda x: x.reshape(1, *x.shape))},
    "experts": Form(lambda x: x.swapaxes(1, 2), lambda x, shape: x.swapaxes(1, 2), axis=1),  # [experts, out, in]
    # Stored [in, out], and then several lie side by side.
    **{"linear": (TRANSPOSED, FLAT), "plain": (COPY, FLAT), "columns": (Form(axis=1), FLAT)},
    "by_head": tuple(in_turn(form, lambda config: config.attention.num_heads) for form in (TRANSPOSED, FLAT)),
    **{"norm": (COPY, COPY), "patches": (lambda config: windows(config.images.patch), COPY)},
    # Of each channel by itself: [channels, 1, size] on disk, [size, channels] with us.
    "depthwise": (Form(lambda x: x.T[:, None], lambda x, shape: x[:, 0].T), COPY),
}


def base(words: str) -> Transformer:
    """What a family has in common, in words as those of presets; sizes come from config.json."""
    return configured(Transformer, f"{SIZES} {words}")


def rows(text: str, **forms: Any) -> tuple[Row, ...]:
    """Rows from lines of three words: a form, a name on disk, a path of ours.

    (a|b) in the name and (x|y) in the path are two rows; of several such all combinations; () in the path is what
    stands in the name. x+y at the end of a path are arrays that one tensor holds. Forms that are pairs are of a module:
    its weight and its bias, which with us is path/scale and path/bias of a norm, path/kernel and path/bias where it
    says the first, and else path and path_bias. Of rows that share a path the last counts: a family's own
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
            folder, slash, last = (f"{path}/scale" if kind == "norm" else path).rpartition("/")
            paths = tuple(f"{folder}{slash}{each}" for each in last.split("+"))
            if type(form := forms.get(kind) or FORMS[kind]) is tuple:
                biases = tuple(re.sub("/(kernel|scale)_bias$", "/bias", f"{each}_bias") for each in paths)
                found += [Row(f"{name}.weight", paths, form[0]), Row(f"{name}.bias", biases, form[1])]
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


def within(name: str, part: str, rows: Any) -> tuple[Row, ...]:
    """Rows of a submodel: its tensors' names begin with `name`, and its paths with that of the part."""
    return tuple(Row(name + row.name, tuple(f"{part}/{each}" for each in row.paths), row.form) for row in rows)
