"""Sizes of a model that its data tell: how many features, classes, channels."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxmodel.config import to_text
from jaxmodel.errors import InputError

# What data may hold, and a preset that reads it.
READERS = {"tokens": "tiny", "features": "mlp", "categories": "mlp", "images": "resnet-tiny"}


def fit_sizes(config: Any, facts: Mapping[str, Any], place: str = "", **sizes: str) -> Any:
    """A config with the sizes that were left to the data.

    Args:
      config: a model's; where it has a size, the data must have the same.
      facts: of the data; `inputs` are the names of the arrays in its batches.
      place: of the config within the model's, as in "head."; then what it reads is not looked at.
      **sizes: which fact a field is, as in `num_classes="num_outputs"`.

    Raises:
      InputError: the data are not what the model reads, or of another size than it was told.
    """
    unread = [] if place else [name for name in facts["inputs"] if name not in config.reads]
    if unread:
        raise InputError(
            f"the data are {unread[0]}, and --model reads {' and '.join(config.reads)}: choose one that reads "
            f"{unread[0]}, as in --model={READERS[unread[0]]}"
        )
    found = {name: facts[fact] for name, fact in sizes.items()}
    for name, value in found.items():
        here = getattr(config, name)
        if here is not None and here != value:
            raise InputError(
                f"--model.{place}{name}={to_text(here)}, and the data have {to_text(value)}: "
                f"leave --model.{place}{name} out, or give other data"
            )
    return dataclasses.replace(config, **found)


def require_sizes(config: Any) -> None:
    """InputError, which names the flag, where a size is still left to the data: such a model cannot be built."""
    missing = [name for name in config.by_data if getattr(config, name) is None]
    if missing:
        raise InputError(f"model.{missing[0]} is not known: set it, or let the data tell, config.fitted(dataset.facts)")
