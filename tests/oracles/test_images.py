"""Convolutional networks of images: resnet, convnext."""

import pytest

from tests.oracles.harness import Case, check, pictures, rows

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic", "num_labels": 5}
DEEP = {**RESNET, "embedding_size": 6, "hidden_sizes": [16, 32, 48], "depths": [2, 1, 2]}
BOTTLENECK = {**DEEP, "layer_type": "bottleneck"}
CONVNEXT = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 2, 2, 1], "num_labels": 5}
CLASSES = "ResNetForImageClassification", "ConvNextForImageClassification"

CASES = [
    Case("plain", "resnet", CLASSES[0], RESNET, gradients=True, trains=True),
    Case("bottleneck", "resnet", CLASSES[0], BOTTLENECK, gradients=True, trains=True),
    Case("three stages", "resnet", CLASSES[0], DEEP, gradients=True, trains=True),
    Case(
        "the first stage halves, grey",
        "resnet",
        CLASSES[0],
        {**BOTTLENECK, "downsample_in_first_stage": True, "num_channels": 1},
        gradients=True,
    ),
    Case(
        "strides in narrow convolutions",
        "resnet",
        CLASSES[0],
        {**BOTTLENECK, "downsample_in_bottleneck": True},
        gradients=True,
        trains=True,
    ),
    Case("bfloat16", "resnet", CLASSES[0], DEEP, dtype="bfloat16"),
    Case("no head", "resnet", "ResNetModel", DEEP),
    Case("no head, bottleneck", "resnet", "ResNetModel", {**BOTTLENECK, "hidden_sizes": [6, 20, 12]}),
    Case("plain", "convnext", CLASSES[1], CONVNEXT, gradients=True),
    Case(
        "odd patches, grey, relu",
        "convnext",
        CLASSES[1],
        {**CONVNEXT, "patch_size": 3, "num_channels": 1, "hidden_act": "relu"},
        gradients=True,
    ),
    Case("no scale", "convnext", CLASSES[1], {**CONVNEXT, "layer_scale_init_value": 0.0, "layer_norm_eps": 1e-5}),
    Case("bfloat16", "convnext", CLASSES[1], CONVNEXT, dtype="bfloat16"),
    Case(
        "no head, three stages",
        "convnext",
        "ConvNextModel",
        {**CONVNEXT, "hidden_sizes": [8, 16, 16], "depths": [1, 2, 1], "num_stages": 3},
    ),
]


@pytest.mark.parametrize("case", rows(CASES))
def test_images(case, tmp_path):
    # Of an odd size, and large enough that batch norm has several places in the last stage.
    check(case, pictures(39, case.options.get("num_channels", 3), rows=3), tmp_path)
