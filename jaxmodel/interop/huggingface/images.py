"""Families of convolutional networks of images, as data."""

from __future__ import annotations

from typing import Any

from jaxmodel.interop.huggingface.keys import ACTIVATIONS, labels, named, named_labels
from jaxmodel.interop.huggingface.rows import norm
from jaxmodel.interop.huggingface.table import (
    COUNT,
    TRANSPOSED,
    Family,
    Fixed,
    Group,
    Heads,
    Json,
    Key,
    Overrides,
    Row,
    windows,
)
from jaxmodel.models.configs import ConvNet
from jaxmodel.models.parts import ConvStem


def _heads(name: str, layer: str) -> dict[str, Heads]:
    """The bare network, and classes by a layer of the pooled features."""

    def write_classes(config: ConvNet) -> dict[str, Any] | None:
        return named_labels(config.num_classes) if config.num_classes else None

    rows = Row(f"{layer}.weight", "classes", TRANSPOSED), Row(f"{layer}.bias", "classes_bias")
    return {
        f"{name}ForImageClassification": Heads(lambda json: {"num_classes": labels(json)}, rows, write_classes),
        f"{name}Model": Heads(
            lambda json: {"num_classes": 0}, (), lambda config: None if config.num_classes else {}, base=True
        ),
    }


def _conv(name: str, path: str, size: int) -> tuple[Row, ...]:
    """A convolution's kernel, and its bias if it has one."""
    return Row(f"{name}.weight", f"{path}/kernel", windows(size)), Row(f"{name}.bias", f"{path}/bias")


def _sizes(widths: tuple[int, ...], depths: tuple[int, ...]) -> tuple[Key, ...]:
    return (
        Key("num_channels", "channels", 3),
        Key("hidden_sizes", "widths", widths, tuple, list),
        Key("depths", "depths", depths, tuple, list),
    )


def _blocks(config: ConvNet) -> list[tuple[str, str]]:
    """Each block with us, and on disk."""
    return [
        (f"stage{stage}_{block}", f"encoder.stages.{stage}.layers.{block}")
        for stage, (_, depth, _) in enumerate(config.stages)
        for block in range(depth)
    ]


def _normed(name: str, path: str, size: int) -> tuple[Row, ...]:
    """A convolution and its batch norm."""
    statistics = {"running_mean": "mean", "running_var": "variance"}
    of, at = f"{name}.normalization", f"{path}_norm"
    return (
        *_conv(f"{name}.convolution", path, size),
        *norm(of, at),
        *(Row(f"{of}.{theirs}", f"state/{at}/{ours}") for theirs, ours in statistics.items()),
        Row(f"{of}.num_batches_tracked", f"state/{at}/count", COUNT),
    )


def _resnet_rows(config: ConvNet) -> tuple[Row, ...]:
    rows = _normed("embedder.embedder", "stem", config.stem.size)
    for ours, theirs in _blocks(config):
        rows += _normed(f"{theirs}.shortcut", f"{ours}_skip", 1)
        for i, (part, size, _) in enumerate(config.convolutions):
            rows += _normed(f"{theirs}.layer.{i}", f"{ours}_{part}", size)
    return rows


RESNET = Family(
    name="resnet",
    prefix="resnet.",
    base=ConvNet(num_classes=0, stem=ConvStem(size=7, stride=2, pool=True), count_batches=True),
    keys=(
        *_sizes((256, 512, 1024, 2048), (3, 4, 6, 3)),
        Key("embedding_size", "stem.width", 64),
        Key("layer_type", "block", "bottleneck", *named({name: name for name in ("basic", "bottleneck")})),
        Key("downsample_in_first_stage", "first_stride", False, lambda halves: 1 + halves, lambda n: n == 2),
        Key("downsample_in_bottleneck", "stride_early", False),
        Fixed("hidden_act", "relu"),  # theirs reads it in some places, and has relu in others
    ),
    rows=_resnet_rows,
    heads=_heads("ResNet", "classifier.1"),
)


def _convnext_rows(config: ConvNet) -> tuple[Row, ...]:
    rows = (
        *_conv("embeddings.patch_embeddings", "stem", config.stem.size),
        *norm("embeddings.layernorm", "stem_norm"),
        *norm("layernorm", "pool_norm"),
    )
    for stage in range(len(config.widths)):
        down = f"encoder.stages.{stage}.downsampling_layer"
        rows += (*norm(f"{down}.0", f"stage{stage}_down_norm"), *_conv(f"{down}.1", f"stage{stage}_down", 2))
    for ours, theirs in _blocks(config):
        rows += (
            *_conv(f"{theirs}.dwconv", f"{ours}_first", config.kernel),
            *norm(f"{theirs}.layernorm", f"{ours}_first_norm"),
            Row(f"{theirs}.layer_scale_parameter", f"{ours}_scale"),
        )
        for part, name in (("second", "pwconv1"), ("third", "pwconv2")):
            rows += (
                Row(f"{theirs}.{name}.weight", f"{ours}_{part}/kernel", TRANSPOSED),
                Row(f"{theirs}.{name}.bias", f"{ours}_{part}/bias"),
            )
    return rows


def _patch_stem() -> Group:
    """Windows side by side."""

    def read(json: Json) -> Overrides:
        size = json.get("patch_size", 4)
        if not isinstance(size, int) or json.get("num_stages", 4) != len(json.get("depths", "0123")):
            raise ValueError("patch_size must be one number, and num_stages that of depths")
        return {"stem.size": size, "stem.stride": size}

    return Group(read, lambda config: {"patch_size": config.stem.size, "num_stages": len(config.widths)})


def layer_scale(key: str, default: float) -> Group:
    """Its initial value, which at 0 says that there is none."""
    return Group(
        lambda json: {"layer_scale": json.get(key, default) or None}, lambda config: {key: config.layer_scale or 0.0}
    )


CONVNEXT = Family(
    name="convnext",
    prefix="convnext.",
    base=ConvNet(num_classes=0, block="inverted", kernel=7, norm="layer", epsilon=1e-6, bias=True, activation="gelu"),
    keys=(
        *_sizes((96, 192, 384, 768), (3, 3, 9, 3)),
        _patch_stem(),
        Key("hidden_act", "activation", "gelu", *named(ACTIVATIONS)),
        Key("layer_norm_eps", "pool_epsilon", 1e-12),
        layer_scale("layer_scale_init_value", 1e-6),
    ),
    rows=_convnext_rows,
    heads=_heads("ConvNext", "classifier"),
)
