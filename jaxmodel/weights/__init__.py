"""A weight is a value that knows how to multiply: layouts, leaf types, and transformations of whole trees."""

from jaxmodel.weights.convolution import convolve
from jaxmodel.weights.layout import (
    Layout,
    frozen,
    map_weights,
    map_weights_with_path,
    matching,
    parse,
    path_name,
    stacked,
    trained,
    unstacked,
)
from jaxmodel.weights.leaves import LEAVES, Leaf, LowRank, Observed, Quantized, dense, grouped, is_leaf, matmul, take
from jaxmodel.weights.streamed import Contraction, Streamed, contract, streamed_matmul
from jaxmodel.weights.transforms import densify, lora, merge, observe, quantize, stream
from jaxmodel.weights.trees import abstract, cast, decays, describe, join, num_bytes, num_params, partition

__all__ = [
    "LEAVES",
    "Contraction",
    "Layout",
    "Leaf",
    "LowRank",
    "Observed",
    "Quantized",
    "Streamed",
    "abstract",
    "cast",
    "contract",
    "convolve",
    "decays",
    "dense",
    "densify",
    "describe",
    "frozen",
    "grouped",
    "is_leaf",
    "join",
    "lora",
    "map_weights",
    "map_weights_with_path",
    "matching",
    "matmul",
    "merge",
    "num_bytes",
    "num_params",
    "observe",
    "parse",
    "partition",
    "path_name",
    "quantize",
    "stacked",
    "stream",
    "streamed_matmul",
    "take",
    "trained",
    "unstacked",
]
