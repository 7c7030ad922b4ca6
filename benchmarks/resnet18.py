"""Images a second of a training step of ResNet-18 at 64 x 64: ours, or the same network in eager torch."""

import sys

from benchmarks.duel import Contender, serve, start
from benchmarks.train_step import our_step, their_step

WIDTHS, BLOCKS, CLASSES, SIZE, BATCH = (64, 128, 256, 512), 2, 200, 64, 32


def ours() -> Contender:
    """`ConvNet` with ResNet-18's stages; its stem is 3 x 3 of stride 1, as always at such a size."""
    import numpy as np

    from jaxmodel import tasks
    from jaxmodel.models.plain import ConvNet

    model = ConvNet(num_classes=CLASSES, channels=3, widths=WIDTHS, blocks=BLOCKS).build()
    rng = np.random.default_rng(0)
    images = rng.standard_normal((BATCH, SIZE, SIZE, 3), np.float32)
    batch = {"images": images, "targets": rng.integers(0, CLASSES, BATCH, np.int32)}
    return our_step(model, tasks.classification(model), batch, BATCH)


def theirs() -> Contender:
    """Eager, channels first, with the same stem, so that both do the same products."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    def conv(inputs: int, width: int, size: int, stride: int) -> nn.Sequential:
        layer = nn.Conv2d(inputs, width, size, stride, padding=size // 2, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(width))

    class Block(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int):
            super().__init__()
            self.first, self.second = conv(inputs, width, 3, stride), conv(width, width, 3, 1)
            same = stride == 1 and inputs == width
            self.skip = nn.Identity() if same else conv(inputs, width, 1, stride)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.skip(x) + self.second(torch.relu(self.first(x))))

    torch.manual_seed(0)
    layers: list[nn.Module] = [conv(3, WIDTHS[0], 3, 1), nn.ReLU()]
    inputs = WIDTHS[0]
    for stage, width in enumerate(WIDTHS):
        for block in range(BLOCKS):
            layers.append(Block(inputs, width, 2 if stage and not block else 1))
            inputs = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))
    images, targets = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(0, CLASSES, (BATCH,))
    name = f"torch {torch.__version__}, eager"
    return their_step(model, lambda: nn.functional.cross_entropy(model(images), targets), BATCH, name)


if __name__ == "__main__":
    start(sys.argv[1])
    serve({"ours": ours, "theirs": theirs}[sys.argv[1]]())
