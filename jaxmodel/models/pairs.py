"""Models of two transformers, as frozen dataclasses: no jax here, so that `--help` is quick."""

import dataclasses
import operator
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from jaxmodel.config import field
from jaxmodel.models.base import Buildable, Inputs
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import MLP


def _of(part: str, *paths: str) -> Any:
    """Properties that are those of a part."""
    return [property(operator.attrgetter(f"{part}.{path}"), doc=f"`{path}` of the {part}.") for path in paths]


class EncoderDecoder(Buildable):
    """An encoder, whose hidden states the cross attention of a decoder's blocks looks at: T5, BART, Whisper.

    A batch holds what the encoder reads, with `mask`, and `decoder_tokens` with `decoder_mask`.
    """

    encoder: Transformer = field(help="reads the source; without a head")
    decoder: Transformer = field(help="writes the target; its blocks have cross attention")
    shared: bool = field(True, help="the decoder's embedding table is the encoder's")
    start_token: int | None = field(None, help="token that a target begins behind", low=0)

    module = "encoder_decoder"
    submodels: ClassVar = ("encoder", "decoder")
    causal, vocab_size, tied, num_outputs = _of("decoder", "causal", "vocab_size", "tied", "num_outputs")

    @property
    def reads(self) -> tuple[str, ...]:
        """What it cannot do without in a batch."""
        return (*self.encoder.reads, "decoder_tokens")

    @property
    def inputs(self) -> Inputs:
        """What a batch may hold: dtype and dims by name, a dim that is a word being free."""
        kept = (*self.encoder.reads, "mask", "types")
        dims = ("batch", "decoder_length")
        source = {name: each for name, each in self.encoder.inputs.items() if name in kept}
        return {**source, "decoder_tokens": ("int32", dims), "decoder_mask": ("bool", dims)}

    @property
    def limits(self) -> dict[str, int]:
        """The largest that free dims may be."""
        decoder = {f"decoder_{name}" if name == "length" else name: n for name, n in self.decoder.limits.items()}
        return decoder | {name: n for name, n in self.encoder.limits.items() if name != "capacity"}

    def flops_per_token(self, length: int) -> float:
        """As `Transformer.flops_per_token`, for a token of the source and one of the target."""
        return self.encoder.flops_per_token(length) + self.decoder.flops_per_token(length)

    def fitted(self, facts: Mapping[str, Any]) -> Self:
        """This config; InputError where it does not hold the data."""
        whole = super().fitted(facts)
        parts = {name: getattr(self, name).fitted({**facts, "inputs": ()}) for name in self.submodels}
        return dataclasses.replace(whole, **parts)

    def _wrong(self) -> Iterator[str]:
        if self.encoder.head is not None or self.encoder.pool is not None:
            yield "model.encoder has a head or a pool: set model.encoder.head=none and pool=none"
        if any(block.cross is None for block in self.decoder.kinds.values()):
            yield "model.decoder.cross=none: give its blocks cross attention, to see the encoder"
        one, two = ((part.vocab_size, part.stem.embed_dim or part.embed_dim) for part in (self.encoder, self.decoder))
        if self.shared and one != two:
            alike = "make model.encoder and model.decoder alike in vocab_size and embed_dim, or set model.shared=false"
            yield f"model.shared with embedding tables of {one} and {two}: {alike}"


class _Seeing(Buildable):
    """A tower of images, and a transformer of texts."""

    image: Transformer = field(help="the tower of images")
    text: Transformer = field(help="what reads texts")

    submodels: ClassVar = ("image", "text")
    limits, vocab_size, tied = _of("text", "limits", "vocab_size", "tied")

    @property
    def inputs(self) -> Inputs:
        """What a batch may hold: dtype and dims by name, a dim that is a word being free."""
        text = {name: each for name, each in self.text.inputs.items() if name != "vectors"}
        return {**text, **self.image.inputs}

    def fitted(self, facts: Mapping[str, Any]) -> Self:
        """This config; InputError where the text is not for it."""
        return dataclasses.replace(self, text=self.text.fitted(facts))

    def _wrong(self) -> Iterator[str]:
        if self.image.images is None or self.text.images is not None:
            yield "model.image must read images and model.text tokens: set image.images, and text.images=none"


class Towers(_Seeing):
    """Two transformers that bring images and texts to one space: CLIP (arXiv:2103.00020), SigLIP (arXiv:2303.15343)."""

    logit_scale: float = field(2.6592, help="initial logarithm of what similarities are multiplied by")
    logit_bias: bool = field(False, help="a learned bias on the logits, which starts at -10 (arXiv:2303.15343)")

    module = "towers"
    reads: ClassVar = ("images", "tokens")
    causal: ClassVar = False  # a tower continues no text
    pairwise: ClassVar = ("logits",)  # of every image with every text

    def _wrong(self) -> Iterator[str]:
        yield from super()._wrong()
        image, text = (each.pool and (each.pool.dim or each.embed_dim) for each in (self.image, self.text))
        if None in (image, text) or self.image.head or self.text.head:
            yield "model.image and model.text must have a pool, and no head: set it so"
        if image != text:
            end = "set model.image.pool.dim and model.text.pool.dim to one width"
            yield f"images become vectors of {image} and texts of {text}: {end}"


class VisionLanguage(_Seeing):
    """A language model that reads what a tower sees of images, projected, among its tokens (arXiv:2310.03744)."""

    projector: MLP = field(help="from what the tower gives to vectors as wide as the text's")
    feature_layer: int = field(-2, help="block of the tower whose output is read; -1: the last, 1: the first")
    class_token: bool = field(False, help="read the class token too")

    module = "vision_language"
    reads: ClassVar = ("tokens",)  # a text may have no image
    causal, image_token = _of("text", "causal", "stem.image_token")  # in whose places images stand

    @property
    def num_vectors(self) -> int:
        """Tokens that an image takes."""
        assert self.image.images is not None
        return self.image.images.length - (self.image.images.class_token and not self.class_token)

    @property
    def tower(self) -> Transformer:
        """The part of the tower of images that runs."""
        return dataclasses.replace(self.image, num_layers=self.feature_layer % (self.image.num_layers + 1))

    def _wrong(self) -> Iterator[str]:
        yield from super()._wrong()
        layers = self.image.num_layers
        if self.image.segments != ((("block",), layers),) or self.text.pool or self.image_token is None:
            yield "model.image must have blocks of one kind, and model.text no pool, but stem.image_token: set it so"
        if not -layers <= self.feature_layer <= layers or not self.feature_layer:
            yield f"<feature_layer>: the tower has {layers} blocks, give one of them, or count from the last, -1"
