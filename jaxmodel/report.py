"""What a run tells: metrics.jsonl for machines, a progress line and a loss curve for people."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

# Peak dense bfloat16 FLOP/s of one JAX device, by a part of its `device_kind` (the first match wins); from
# the makers' data sheets. A TPU v2, v3 or 7x chip is two devices.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("TPU v2", 23e12),
    ("TPU v3", 61e12),
    ("TPU v4 lite", 137e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
    ("TPU7x", 1154e12),
    ("A100", 312e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("B200", 2250e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of a device, where it is known.

    >>> peak_flops("NVIDIA H100 80GB HBM3")
    989000000000000.0
    >>> peak_flops("cpu")
    """
    return next((peak for part, peak in PEAK_FLOPS if part in device_kind), None)


class MetricsFile:
    """metrics.jsonl, a hook of `train.fit`: `{"step": 7, "split": "train", "loss": …}` for each logged step.

    A number that is not finite is written as null. Opened by a run that resumes at `step`, it drops the lines
    beyond that step (they will be written again), and one that was cut off.
    """

    def __init__(self, path: Path | str, step: int = 0):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(self.path) if line["step"] <= step] if step else []
        new = self.path.with_name(self.path.name + ".new")
        new.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(new, self.path)
        self._file = self.path.open("a")

    def __call__(self, step: int, split: str, numbers: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write(json.dumps({"step": step, "split": split, **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; [] where there is none. A last line that was cut off is left out."""
    path = Path(path)
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


class Progress:
    """A line on how training goes: step, loss, tokens/s, ETA, and MFU where the device's peak is known.

    A hook of `train.fit`. On a terminal one line is rewritten; elsewhere each is a line of its own. Speed is
    over the steps since the last line, so that compilation and evaluation are not counted.
    """

    def __init__(
        self,
        steps: int,
        *,
        noun: str = "tokens",
        flops_per_token: float | None = None,
        peak: float | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`noun`: what the weight of a batch counts.

        `flops_per_token` of training, forward and backward; `peak` FLOP/s of all devices together.
        """
        self._steps, self._noun, self._flops, self._peak = steps, noun, flops_per_token, peak
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._since: tuple[int, float] | None = None  # a step, and when it was done
        self._open = False  # whether the cursor stands at the end of a line to be rewritten

    def __call__(self, step: int, split: str, numbers: Mapping[str, float]) -> None:
        if split == "train":
            self._write(self.line(step, numbers))
        else:
            names = sorted(numbers, key=lambda name: name != "loss")  # the loss first
            told = "  ".join(f"{name} {numbers[name]:.4g}" for name in names)
            self._write(f"step {step}/{self._steps}  {split}: {told}", stays=True)
        self._since = (step, self._clock())

    def line(self, step: int, numbers: Mapping[str, float]) -> str:
        """The line for one step."""
        parts = [f"step {step}/{self._steps}", f"loss {numbers['loss']:.4f}"]
        if self._since is not None and step > self._since[0]:
            seconds = max(self._clock() - self._since[1], 1e-9) / (step - self._since[0])
            if "tokens" in numbers:
                speed = numbers["tokens"] / seconds
                parts.append(f"{_short(speed)} {self._noun}/s")
                if self._flops is not None and self._peak is not None:
                    parts.append(f"MFU {100 * speed * self._flops / self._peak:.1f}%")
            parts.append(f"ETA {_duration(seconds * (self._steps - step))}")
        return "  ".join(parts)

    def close(self) -> None:
        """End the line that was being rewritten."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False

    def _write(self, line: str, stays: bool = False) -> None:
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[K{line}" + ("\n" if stays else ""))
            self._open = not stays
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def _short(number: float) -> str:
    """Three digits or so: 950, 12.3k, 4.56M.

    >>> _short(950), _short(12_345), _short(4_560_000)
    ('950', '12.3k', '4.56M')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _duration(3725.4), _duration(59.6)
    ('1:02:05', '1:00')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def plot_learning_rates(rates: Any, losses: Any, chosen: float, image: Path | str) -> str:
    """Draw the losses of a learning rate range test, as a PNG; returns one line for a person, as `plot_losses`."""
    figure, axes = _figure()
    if figure is None:
        return f"no {image}: {NO_PLOT}"
    axes.plot(rates, losses)
    axes.axvline(chosen, linestyle="--", color="gray", label=f"falls fastest: {chosen:.2g}")
    axes.set(xlabel="learning rate", ylabel="loss, smoothed", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    return _saved(figure, image, "learning rates")


NO_PLOT = "matplotlib is not installed (pip install 'jaxmodel[plot]')"


def _figure() -> tuple[Any, Any]:
    """A figure and its axes; (None, None) without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None, None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(7, 4.5))


def _saved(figure: Any, image: Path | str, what: str) -> str:
    from matplotlib import pyplot

    figure.savefig(image, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return f"{what}: {image}"


def curve(lines: Iterable[Mapping[str, Any]], split: str) -> list[tuple[int, float]]:
    """(step, loss) of a split, by step; of a step that was made again, after going back, the last."""
    found = {line["step"]: line["loss"] for line in lines if line["split"] == split and "loss" in line}
    return sorted((step, loss) for step, loss in found.items() if loss is not None)


def plot_losses(metrics: Path | str, image: Path | str) -> str:
    """Draw the train and eval losses of a metrics.jsonl against the step, as a PNG.

    Returns one line for a person: where the picture is, or that there is none because matplotlib is missing.
    """
    figure, axes = _figure()
    if figure is None:
        return f"no {image}: {NO_PLOT}"
    lines = read_metrics(metrics)
    for split, style in (("train", "-"), ("eval", "o-")):
        if points := curve(lines, split):
            axes.plot(*zip(*points, strict=True), style, label=split, markersize=4)
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()
    return _saved(figure, image, "loss curve")
