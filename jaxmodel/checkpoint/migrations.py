"""How checkpoints of older schemas are read: a table from each version to the next."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

SCHEMA = 2


def _same(value: Any) -> Any:
    return value


class Migration(NamedTuple):
    """From one schema to the next.

    Attributes:
      path: the path of an array ("params/stack/0/block/mlp/up") in the older schema -> in the newer one.
      record: what model.json held -> what it would hold now, paths apart; may change its argument.
    """

    path: Callable[[str], str] = _same
    record: Callable[[dict[str, Any]], dict[str, Any]] = _same


def _attn_to_attention(path: str) -> str:
    """Schema 1 called a block's attention "attn"."""
    return re.sub(r"((?:^|/)stack/\d+/[^/]+)/attn(?=/)", r"\1/attention", path)


MIGRATIONS: dict[int, Migration] = {1: Migration(path=_attn_to_attention)}


def migrate(data: dict[str, Any], schema: int) -> tuple[dict[str, Any], Callable[[str], str]]:
    """What model.json would hold today, and today's path of an array, for a checkpoint of an older schema."""
    migrations = [MIGRATIONS[version] for version in range(schema, SCHEMA)]

    def path(name: str) -> str:
        for migration in migrations:
            name = migration.path(name)
        return name

    for migration in migrations:
        data = migration.record(data)
    return data, path
