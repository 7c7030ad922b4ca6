"""What a run tells: the lines of metrics.jsonl, the progress line, the picture."""

import builtins
import io
import json
import math

import pytest

from jaxmodel.report import MetricsFile, Progress, curve, peak_flops, plot_losses, read_metrics


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_for_each_logged_step(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    file = MetricsFile(path)
    file(7, "train", {"loss": 1.5, "grad_norm": math.inf})
    assert path.read_text() == '{"step": 7, "split": "train", "loss": 1.5, "grad_norm": null}\n'  # flushed
    file(7, "eval", {"loss": 1.25})
    file.close()
    assert (
        read_metrics(path)
        == lines(path)
        == [{"step": 7, "split": "train", "loss": 1.5, "grad_norm": None}, {"step": 7, "split": "eval", "loss": 1.25}]
    )


def test_resumed_lines_beyond_the_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in (1, 2, 3, 4):
        file(step, "train", {"loss": float(step)})
    file.close()
    with path.open("a") as broken:
        broken.write('{"step": 2, "spl')  # killed in the middle of a line
    file = MetricsFile(path, step=2)
    file(3, "train", {"loss": 30.0})
    file.close()
    assert [(line["step"], line["loss"]) for line in lines(path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_starts_a_new_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("what an old run left\n")
    MetricsFile(path).close()
    assert path.read_text() == "" and read_metrics(path) == []
    assert read_metrics(tmp_path / "none.jsonl") == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def watched(stream, **more):
    """A progress line whose clock shows 0, 1, 2, … seconds, one more at every look."""
    seconds = iter(range(100))
    return Progress(100, stream=stream, clock=lambda: float(next(seconds)), **more)


def test_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    progress = watched(stream, flops_per_token=1e9, peak=1e13)
    progress(1, "train", {"loss": 2.0, "tokens": 500.0})
    progress(11, "train", {"loss": 1.5, "tokens": 500.0})
    progress(11, "eval", {"accuracy": 0.5, "loss": 1.25})
    progress.close()
    # Ten steps in one second: 5000 tokens/s at 1 GFLOP each are half of the peak.
    assert stream.getvalue().splitlines() == [
        "step 1/100  loss 2.0000",
        "step 11/100  loss 1.5000  5k tokens/s  MFU 50.0%  ETA 0:09",
        "step 11/100  eval: loss 1.25  accuracy 0.5",
    ]


def test_a_terminal_rewrites_one_line():
    stream = Terminal()
    progress = watched(stream)
    progress(1, "train", {"loss": 2.0})
    progress(2, "train", {"loss": 1.0})
    progress(2, "eval", {"loss": 1.0})
    progress(3, "train", {"loss": 1.0})
    progress.close()
    progress.close()
    assert stream.getvalue() == (
        "\r\x1b[Kstep 1/100  loss 2.0000\r\x1b[Kstep 2/100  loss 1.0000  ETA 1:38"
        "\r\x1b[Kstep 2/100  eval: loss 1\n\r\x1b[Kstep 3/100  loss 1.0000  ETA 1:37\n"
    )


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Radeon", None),
    ],
)
def test_peaks(kind, peak):
    assert peak_flops(kind) == peak


def test_the_picture(tmp_path):
    path, image = tmp_path / "metrics.jsonl", tmp_path / "loss.png"
    file = MetricsFile(path)
    for step in (1, 2):
        file(step, "train", {"loss": 1.0 / step})
    file(2, "eval", {"loss": math.nan})
    file.close()
    assert plot_losses(path, image) == f"loss curve: {image}"
    assert image.read_bytes()[:4] == b"\x89PNG"
    empty = tmp_path / "empty.png"
    plot_losses(tmp_path / "none.jsonl", empty)
    assert empty.stat().st_size < image.stat().st_size


def test_of_a_step_that_was_made_again_the_last_loss_is_drawn(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    for step, split, loss in ((1, "train", 4.0), (2, "train", 3.0), (2, "eval", 9.0), (3, "train", math.nan)):
        file(step, split, {"loss": loss})
    file(1, "rollback", {"from": 3.0})
    file(2, "train", {"loss": 2.0})
    file.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert curve(lines, "train") == [(1, 4.0), (2, 2.0)] and curve(lines, "eval") == [(2, 9.0)]


def test_without_matplotlib_there_is_a_line_and_no_picture(tmp_path, monkeypatch):
    found = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "matplotlib":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    line = plot_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert "matplotlib is not installed" in line and "jaxmodel[plot]" in line and "\n" not in line
    assert not (tmp_path / "loss.png").exists()
