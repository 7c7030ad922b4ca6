"""Models of images and text together, as frozen dataclasses: no jax here, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from jaxmodel import config as _config
from jaxmodel.config import field, register
from jaxmodel.errors import InputError
from jaxmodel.models.configs import Inputs, Transformer
from jaxmodel.models.parts import MLP

if TYPE_CHECKING:
    from jaxmodel.model import Model
    from jaxmodel.sharding import Partitioning


def _of_text(name: str) -> Any:
    return property(lambda self: getattr(self.text, name), doc=f"`{name}` of the text's part.")


@dataclasses.dataclass(frozen=True)
class _Both:
    """What both have: a tower of images, and a transformer of texts."""

    image: Transformer = field(help="the tower of images")
    text: Transformer = field(help="what reads texts")

    submodels: ClassVar = ("image", "text")
    limits, vocab_size, tied = map(_of_text, ("limits", "vocab_size", "tied"))

    @property
    def inputs(self) -> Inputs:
        """What a batch may hold: dtype and dims by name, a dim that is a word being free."""
        text = {name: each for name, each in self.text.inputs.items() if name != "vectors"}
        return {**text, **self.image.inputs}

    def fitted(self, facts: Mapping[str, Any]) -> Self:
        """This config; InputError where the text is not for it."""
        return dataclasses.replace(self, text=self.text.fitted(facts))

    def check(self) -> None:
        """InputError when a part is not as it must be."""
        _config.validate(self, "model.")
        self.image.check()
        self.text.check()
        if self.image.images is None or self.text.images is not None:
            raise InputError(
                "model.image must read images and model.text tokens: set image.images, and text.images=none"
            )


@register
@dataclasses.dataclass(frozen=True)
class Towers(_Both):
    """Two transformers that bring images and texts to one space: CLIP (arXiv:2103.00020), SigLIP (arXiv:2303.15343)."""

    logit_scale: float = field(2.6592, help="initial logarithm of what similarities are multiplied by")
    logit_bias: bool = field(False, help="a learned bias on the logits, which starts at -10 (arXiv:2303.15343)")

    reads: ClassVar = ("images", "tokens")
    causal: ClassVar = False  # a tower continues no text
    pairwise: ClassVar = ("logits",)  # of every image with every text

    def check(self) -> None:
        """InputError when a tower is not as it must be, or they do not meet."""
        super().check()
        widths = [each.pool and (each.pool.dim or each.embed_dim) for each in (self.image, self.text)]
        if None in widths or self.image.head or self.text.head:
            raise InputError("model.image and model.text must have a pool, and no head: set it so")
        if widths[0] != widths[1]:
            raise InputError(
                f"images become vectors of {widths[0]} and texts of {widths[1]}: set model.image.pool.dim and "
                "model.text.pool.dim to one width"
            )

    def build(self, partitioning: Partitioning | None = None) -> Model:
        """The model as pure functions, with activation constraints when it is bound to a mesh."""
        from jaxmodel.models import towers

        return towers.build(self, partitioning)


@register
@dataclasses.dataclass(frozen=True)
class VisionLanguage(_Both):
    """A language model that reads what a tower sees of images, projected, among its tokens (arXiv:2310.03744)."""

    projector: MLP = field(help="from what the tower gives to vectors as wide as the text's")
    feature_layer: int = field(-2, help="block of the tower whose output is read; -1: the last, 1: the first")
    class_token: bool = field(False, help="read the class token too")

    reads: ClassVar = ("tokens",)  # a text may have no image
    causal = _of_text("causal")

    @property
    def image_token(self) -> int | None:
        """The id in whose places images stand."""
        return self.text.stem.image_token

    @property
    def num_vectors(self) -> int:
        """Tokens that an image takes."""
        assert self.image.images is not None
        return self.image.images.length - (self.image.images.class_token and not self.class_token)

    @property
    def tower(self) -> Transformer:
        """The part of the tower of images that runs."""
        layers = self.feature_layer % (self.image.num_layers + 1)
        return dataclasses.replace(self.image, num_layers=layers)

    def check(self) -> None:
        """InputError when a part is not as it must be, or they do not meet."""
        super().check()
        layers = self.image.num_layers
        if self.image.segments != ((("block",), layers),) or self.text.pool or self.image_token is None:
            raise InputError(
                "model.image must have blocks of one kind, and model.text no pool, but stem.image_token: set it so"
            )
        if not -layers <= self.feature_layer <= layers or not self.feature_layer:
            raise InputError(
                f"model.feature_layer={self.feature_layer}: the tower has {layers} blocks, give one of them, or count "
                "from the last, -1"
            )

    def build(self, partitioning: Partitioning | None = None) -> Model:
        """The model as pure functions, with activation constraints when it is bound to a mesh."""
        from jaxmodel.models import vision_language

        return vision_language.build(self, partitioning)
