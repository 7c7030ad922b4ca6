"""Networks that are no transformers, as frozen dataclasses: no jax here, so that `--help` is quick."""

from collections.abc import Iterator
from typing import ClassVar

from jaxmodel.config import field
from jaxmodel.models.base import Buildable, Inputs
from jaxmodel.models.parts import UNGATED, ConvStem, Execution


class Perceptron(Buildable):
    """A multi-layer perceptron over features and categories, each column of categories through an embedding."""

    num_features: int | None = field(None, help="numeric features; none: by the data", low=0)
    categories: tuple[int, ...] | None = field(None, help="ids in each column of categories; none: by the data", low=1)
    num_outputs: int | None = field(None, help="outputs: classes, or 1; none: by the data", low=1)
    category_dim: int | None = field(None, help="width of an embedding (default: half its ids, 50 at most)", low=1)
    hidden: tuple[int, ...] = field((64,), help="widths of the hidden layers; none at all: a linear model", low=1)
    activation: str = field("relu", help="non-linearity", choices=UNGATED)
    norm: str = field("none", help="normalisation before each non-linearity", choices=("none", "batch", "layer"))
    dropout: float = field(0.0, help="dropped fraction of each hidden layer", low=0.0, high=0.99)
    momentum: float = field(0.9, help="of the running statistics of batch norm", low=0.0, high=1.0)
    epsilon: float = field(1e-5, help="added to the variance in a norm", low=0.0)
    execution: Execution = field(Execution(), help="how it runs")

    module = "perceptron"
    reads: ClassVar = ("features", "categories")
    by_data: ClassVar = {name: name for name in ("num_features", "categories", "num_outputs")}
    count_batches: ClassVar = False

    @property
    def inputs(self) -> Inputs:
        """What a batch may hold: dtype and dims by name, a dim that is a word being free."""
        columns = {"features": ("float32", self.num_features), "categories": ("int32", len(self.categories or ()))}
        return {name: (dtype, ("batch", count)) for name, (dtype, count) in columns.items() if count}

    def _wrong(self) -> Iterator[str]:
        if self.num_features == 0 and self.categories == ():
            yield "<num_features> and no model.categories: the model would read nothing"


class ConvNet(Buildable):
    """A residual convolutional network: ResNet (arXiv:1512.03385), ConvNeXt (arXiv:2201.03545) and small ones.

    Blocks are two convolutions (`basic`); narrow, spatial and wide ones (`bottleneck`); or one for each channel, then
    four times as wide and back (`inverted`). `inverted` ones alone write to what runs through them: no non-linearity is
    on it, and between stages a norm and a convolution halve its size. In the others, the first block of a stage does.
    """

    num_classes: int | None = field(None, help="outputs: classes, or 1; 0: no head; none: by the data", low=0)
    channels: int | None = field(None, help="channels of the images; none: by the data", low=1)
    widths: tuple[int, ...] = field((16, 32, 64), help="channels of each stage; each later stage halves the size")
    blocks: int = field(1, help="residual blocks in a stage", low=1)
    depths: tuple[int, ...] | None = field(None, help="residual blocks of each stage (default: blocks in all)", low=1)
    stem: ConvStem = field(ConvStem(), help="what comes before the stages")
    block: str = field("basic", help="what a block is made of", choices=("basic", "bottleneck", "inverted"))
    kernel: int = field(3, help="height and width of the windows of a block, odd", low=1)
    first_stride: int = field(1, help="stride of the first stage", low=1, high=2)
    stride_early: bool = field(False, help="a bottleneck strides in its first, narrow convolution")
    norm: str = field("batch", help="normalisation", choices=("batch", "layer"))
    activation: str = field("relu", help="non-linearity", choices=UNGATED)
    bias: bool = field(False, help="biases on convolutions")
    layer_scale: float | None = field(None, help="initial scale of what a block adds (arXiv:2103.17239)", low=0.0)
    pool_epsilon: float | None = field(None, help="layer norm of the pooled features, by this epsilon", low=0.0)
    dropout: float = field(0.0, help="dropped fraction of the pooled features", low=0.0, high=0.99)
    momentum: float = field(0.9, help="of the running batch statistics", low=0.0, high=1.0)
    count_batches: bool = field(False, help="batch norm counts the batches that it was trained on, as torch's does")
    epsilon: float = field(1e-5, help="added to the variance", low=0.0)
    execution: Execution = field(Execution(), help="how it runs")

    module = "convnet"
    reads: ClassVar = ("images",)
    by_data: ClassVar = {"num_classes": "num_outputs", "channels": "channels"}

    @property
    def inputs(self) -> Inputs:
        """What a batch may hold: dtype and dims by name, a dim that is a word being free."""
        return {"images": ("float32", ("batch", "height", "width", self.channels or "channels"))}

    @property
    def stages(self) -> tuple[tuple[int, int, int], ...]:
        """(width, blocks, stride) of each."""
        depths = self.depths or (self.blocks,) * len(self.widths)
        return tuple(zip(self.widths, depths, (self.first_stride, *(2 for _ in depths[1:])), strict=True))

    @property
    def convolutions(self) -> tuple[tuple[str, int, float], ...]:
        """Of a block, in order: name, size of its windows, width over that of the stage."""
        return {
            "basic": (("first", self.kernel, 1.0), ("second", self.kernel, 1.0)),
            "bottleneck": (("first", 1, 0.25), ("second", self.kernel, 0.25), ("third", 1, 1.0)),
            "inverted": (("first", self.kernel, 1.0), ("second", 1, 4.0), ("third", 1, 1.0)),
        }[self.block]

    def _wrong(self) -> Iterator[str]:
        if not self.widths or min(self.widths) < 1:
            yield f"model.widths={self.widths}: give one positive width a stage, as in 16,32,64"
        if self.depths is not None and len(self.depths) != len(self.widths):
            yield "<depths> beside <widths>: give a depth for each stage, or model.depths=none"
        if self.kernel % 2 == 0:
            yield "<kernel>: windows of a block have a centre, give an odd size"
