"""How checkpoints of older schemas are read: a table from each version to the next."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

SCHEMA = 3


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


def _stem_and_head(record: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 had no stem and no head in a transformer's config, and normalised queries and keys or did not."""
    return record | {"config": stem_and_head(record["config"])} if "config" in record else record


def stem_and_head(config: Any) -> Any:
    """A config as schema 2 wrote it, or a part of one -> as schema 3 does."""
    if isinstance(config, list):
        if len(config) == 2 and config[0] == "attention.qk_norm":  # an override in a variant
            return [config[0], _QK_NORM.get(config[1], config[1])]
        return [stem_and_head(each) for each in config]
    if not isinstance(config, dict):
        return config
    config = {name: stem_and_head(each) for name, each in config.items()}
    if config.get("type") == "Attention":
        config["qk_norm"] = _QK_NORM.get(config["qk_norm"], config["qk_norm"])
    if config.get("type") == "Transformer" and "embed_norm" in config:
        positions = "learned" if config.pop("learned_positions") else "none"
        config["stem"] = {"type": "Stem", "norm": config.pop("embed_norm"), "positions": positions}
        head = {"bias": config.pop("head_bias"), "softcap": config.pop("logit_softcap")}
        config["head"] = {"type": "Head", **head}
    return config


_QK_NORM = {True: "head", False: "none"}

MIGRATIONS: dict[int, Migration] = {1: Migration(path=_attn_to_attention), 2: Migration(record=_stem_and_head)}


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
