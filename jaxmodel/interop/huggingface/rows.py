"""What families have in common: layers, norms and heads as rows, and a config whose sizes are still to come."""

from __future__ import annotations

from typing import Any

from jaxmodel.interop.huggingface.table import COPY, FLAT, TRANSPOSED, Family, Form, Row
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import MLP, Attention, Norm

LAYER_NORM = Norm(kind="layer", bias=True)


def transformer(**fields: Any) -> Transformer:
    """What a family has in common; sizes come from config.json."""
    sizes: dict[str, Any] = {"vocab_size": 1, "max_length": 1, "embed_dim": 1, "num_layers": 1}
    parts = {"attention": Attention(num_heads=1), "mlp": MLP(dim=1)}
    return Transformer(**{**sizes, **parts, **fields})


def linear(name: str, path: str, form: Form = TRANSPOSED, bias: Form = COPY) -> tuple[Row, ...]:
    """A layer's weight, [out, in] on disk, and its bias."""
    return Row(f"{name}.weight", path, form), Row(f"{name}.bias", f"{path}_bias", bias)


def norm(name: str, path: str) -> tuple[Row, ...]:
    """A norm's scale, and its bias if it has one."""
    return Row(f"{name}.weight", f"{path}/scale"), Row(f"{name}.bias", f"{path}/bias")


def heads_of(prefix: str, query: str, key: str, value: str) -> tuple[Row, ...]:
    """Projections to queries, keys and values."""
    names = {"query": query, "key": key, "value": value}
    return tuple(
        row for ours, name in names.items() for row in linear(f"{prefix}.{name}", f"stack/attention/{ours}", bias=FLAT)
    )


def within(name: str, part: str, family: Family) -> tuple[Row, ...]:
    """A family's rows of a submodel: its tensors' names begin with `name`, and its paths with that of the part."""
    assert isinstance(family.rows, tuple)

    def inside(paths: tuple[str, ...] | str) -> tuple[str, ...]:
        return tuple(f"{part}/{path}" for path in ((paths,) if isinstance(paths, str) else paths))

    return tuple(Row(name + row.name, inside(row.paths), row.form) for row in family.rows)
