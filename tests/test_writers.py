"""Writers hand on what hooks are told, each in its package's own words; a package that lacks is one line."""

import math
import sys
import types
from typing import ClassVar

import pytest

from jaxmodel.errors import InputError
from jaxmodel.writers import WRITERS, make_writer


class Tracked:
    """What wandb and trackio offer, remembered."""

    def __init__(self):
        self.calls = []

    def init(self, **how):
        self.calls.append(("init", how))
        return self

    def log(self, numbers, step):
        self.calls.append(("log", numbers, step))

    def finish(self):
        self.calls.append(("finish",))


class Summary:
    """What tensorboardX offers, remembered."""

    calls: ClassVar[list] = []

    def __init__(self, folder):
        Summary.calls = [("open", folder)]

    def add_scalar(self, name, value, step):
        Summary.calls.append((name, value, step))

    def close(self):
        Summary.calls.append(("close",))


def use(writer):
    writer(3, "train", {"loss": 2.0, "accuracy": math.nan})
    writer(4, "eval", {"loss": math.inf})
    writer.close()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers(name, monkeypatch, tmp_path):
    tracked = Tracked()
    monkeypatch.setitem(sys.modules, name, tracked)
    use(make_writer(name, tmp_path / "mine", {"seed": 1}))
    begun = ("init", {"project": "jaxmodel", "name": "mine", "config": {"seed": 1}})
    assert tracked.calls == [begun, ("log", {"train/loss": 2.0}, 3), ("finish",)]


def test_tensorboard(monkeypatch, tmp_path):
    module = types.ModuleType("tensorboardX")
    monkeypatch.setattr(module, "SummaryWriter", Summary, raising=False)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    use(make_writer("tensorboard", tmp_path, {}))
    assert Summary.calls == [("open", str(tmp_path / "tensorboard")), ("train/loss", 2.0, 3), ("close",)]


@pytest.mark.parametrize("name", WRITERS)
def test_a_package_that_lacks_is_one_line(name, monkeypatch, tmp_path):
    package = WRITERS[name][0]
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(InputError, match=f"train.writers={name} needs the package {package}: pip install {package}"):
        make_writer(name, tmp_path, {})


def test_an_unknown_writer_is_said_so(tmp_path):
    with pytest.raises(InputError, match=r"train.writers=tensorbord: did you mean tensorboard\?"):
        make_writer("tensorbord", tmp_path, {})
