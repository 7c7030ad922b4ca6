"""What configs of models have in common: they are checked and built, and leave sizes to the data."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from jaxmodel.config import Config, refuse, to_text, validate
from jaxmodel.errors import InputError

if TYPE_CHECKING:
    from jaxmodel.model import Model
    from jaxmodel.sharding import Partitioning

Inputs = dict[str, tuple[str, tuple[int | str, ...]]]
# What data may hold, and a preset that reads it.
READERS = {"tokens": "tiny", "features": "mlp", "categories": "mlp", "images": "resnet-tiny"}


class Buildable(Config):
    """A model's config."""

    module: ClassVar[str]  # beside this one, whose `build` builds it
    submodels: ClassVar[tuple[str, ...]] = ()  # fields that are models themselves
    by_data: ClassVar[Mapping[str, str]] = {}  # sizes that the data may tell: field -> fact

    def _wrong(self) -> Iterator[str]:
        """What of it does not fit together, naming both fields and both fixes as `refuse` takes it."""
        yield from ()

    def check(self) -> None:
        """InputError when a field is out of bounds, or two of them do not fit together."""
        validate(self, "model.")
        for name in self.submodels:
            getattr(self, name).check()
        for message in self._wrong():
            refuse(self, message)

    def fitted(self, facts: Mapping[str, Any]) -> Self:
        """This config with the sizes of the data; InputError where it has others, or does not hold them."""
        return fit_sizes(self, facts, **self.by_data)

    def build(self, partitioning: Partitioning | None = None) -> Model:
        """The model as pure functions, with activation constraints when it is bound to a mesh.

        Built twice, it is the same functions: what is compiled for one is compiled for both.
        """
        self.check()
        try:
            hash(self)
        except TypeError:  # a list stands where a tuple is meant, which `check` lets pass: nothing to be remembered by
            return _build(self, partitioning)
        return _built(self, partitioning)


def _build(config: Buildable, partitioning: Partitioning | None) -> Model:
    return importlib.import_module(f"jaxmodel.models.{config.module}").build(config, partitioning)


_built = functools.lru_cache(maxsize=16)(_build)  # few: while functions are kept, so is what was compiled for them


def fit_sizes(config: Any, facts: Mapping[str, Any], place: str = "model.", **sizes: str) -> Any:
    """A config with the sizes that were left to the data.

    Args:
      config: a model's, or a part of one; where it has a size, the data must have the same.
      facts: of the data; `inputs` are the names of the arrays in its batches.
      place: of the config, as in "model.head.".
      **sizes: which fact a field is, as in `num_classes="num_outputs"`.

    Raises:
      InputError: the data are not what the model reads, or of another size than it was told.
    """
    reads = getattr(config, "reads", facts["inputs"])
    for name in facts["inputs"]:
        if name not in reads:
            other = f"choose one that reads {name}, as in --model={READERS[name]}"
            raise InputError(f"the data are {name}, and --model reads {' and '.join(reads)}: {other}")
    found = {name: facts[fact] for name, fact in sizes.items()}
    for name, value in found.items():
        if getattr(config, name) not in (None, value):
            end = f"the data have {to_text(value)}: leave --{place}{name} out, or give other data"
            refuse(config, f"--<{name}>, and {end}", place)
    return dataclasses.replace(config, **found)
