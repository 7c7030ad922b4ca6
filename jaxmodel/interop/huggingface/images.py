"""Families of convolutional networks of images, as data."""

from typing import Any

from jaxmodel.interop.huggingface import keys as k
from jaxmodel.interop.huggingface.rows import COPY, rows, windows
from jaxmodel.interop.huggingface.table import Group, Heads, Json, Overrides, Row
from jaxmodel.models.plain import ConvNet
from jaxmodel.models.presets import configured


def _heads(name: str, layer: str) -> dict[str, Heads]:
    """The bare network, and classes by a layer of the pooled features."""
    classes = Heads(rows(f"linear {layer} classes"), (k.classes("num_classes"),))
    return {f"{name}ForImageClassification": classes, f"{name}Model": Heads(base=True)}


def _rows(text: str, config: ConvNet) -> tuple[Row, ...]:
    """Rows, once for each stage {s} and block {b} that they name; the form size_3 is of windows of 3 x 3."""
    sizes = {"stem": config.stem.size, "kernel": config.kernel}
    blocks = [(s, b) for s, (_, depth, _) in enumerate(config.stages) for b in range(depth)]
    lines = dict.fromkeys(line.format(s=s, b=b, **sizes) for s, b in blocks for line in text.splitlines())
    return rows("\n".join(lines), **{f"size_{size}": (windows(size), COPY) for size in {1, 2, *sizes.values()}})


# A block on disk, and with us.
_THEIRS, _OURS = "encoder.stages.{s}.layers.{b}", "stage{s}_{b}"
_NORMED = """
    size_{size} {name}.convolution                       {path}/kernel
    norm        {name}.normalization                     {path}_norm
    copy        {name}.normalization.running_(mean|var)  state/{path}_norm/(mean|variance)
    count       {name}.normalization.num_batches_tracked state/{path}_norm/count
"""


def _resnet_rows(config: ConvNet) -> tuple[Row, ...]:
    each = [("embedder.embedder", "stem", config.stem.size), (f"{_THEIRS}.shortcut", f"{_OURS}_skip", 1)]
    each += [(f"{_THEIRS}.layer.{i}", f"{_OURS}_{part}", n) for i, (part, n, _) in enumerate(config.convolutions)]
    return _rows("".join(_NORMED.format(name=name, path=path, size=size) for name, path, size in each), config)


RESNET = k.family(
    "resnet",
    # Theirs reads hidden_act in some places, and has relu in others.
    """num_channels:channels=3 hidden_sizes:widths=[256,512,1024,2048]~list depths=[3,4,6,3]~list hidden_act==relu
    layer_type:block=bottleneck~basic>basic,bottleneck>bottleneck embedding_size:stem.width=64
    downsample_in_bottleneck:stride_early=false downsample_in_first_stage:first_stride=false~false>1,true>2""",
    base=configured(ConvNet, "num_classes=0 stem(size=7 stride=2 pool) count_batches"),
    rows=_resnet_rows,
    heads=_heads("ResNet", "classifier.1"),
)
_CONVNEXT_ROWS = f"""
    size_{{stem}}   embeddings.patch_embeddings                     stem/kernel
    norm            embeddings.layernorm                            stem_norm
    norm            encoder.stages.{{s}}.downsampling_layer.0       stage{{s}}_down_norm
    size_2          encoder.stages.{{s}}.downsampling_layer.1       stage{{s}}_down/kernel
    size_{{kernel}} {_THEIRS}.dwconv                {_OURS}_first/kernel
    norm            {_THEIRS}.layernorm             {_OURS}_first_norm
    linear          {_THEIRS}.pwconv(1|2)           {_OURS}_(second|third)/kernel
    copy            {_THEIRS}.layer_scale_parameter {_OURS}_scale
    norm            layernorm                                       pool_norm
"""


def _read_convnext(json: Json) -> Overrides:
    """The initial value of a scale, which at 0 says that there is none."""
    if json.get("num_stages", 4) != len(json.get("depths", "0123")):
        raise ValueError("num_stages must be the number of depths")
    return {"layer_scale": json.get("layer_scale_init_value", 1e-6) or None}


def _write_convnext(config: ConvNet) -> dict[str, Any]:
    return {"num_stages": len(config.widths), "layer_scale_init_value": config.layer_scale or 0.0}


CONVNEXT = k.family(
    "convnext",
    """num_channels:channels=3 hidden_sizes:widths=[96,192,384,768]~list depths=[3,3,9,3]~list
    hidden_act:activation=gelu~plain layer_norm_eps:pool_epsilon=1e-12 patch_size:stem.size,stem.stride=4~int""",
    Group(_read_convnext, _write_convnext),
    base=configured(ConvNet, "num_classes=0 block=inverted kernel=7 norm=layer epsilon=1e-6 bias activation=gelu"),
    rows=lambda config: _rows(_CONVNEXT_ROWS, config),
    heads=_heads("ConvNext", "classifier"),
)
