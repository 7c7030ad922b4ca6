"""Configs: written down and read back, overridden, compared, parsed; options and their cross-checks."""

import dataclasses
import json
import subprocess
import sys
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmodel import config, options
from jaxmodel.config import MISSING, FieldInfo, field, register
from jaxmodel.errors import InputError


@register
@dataclasses.dataclass(frozen=True)
class Window:
    size: int = field(128, "tokens seen", low=1)
    kind: str = field("local", "which", choices=("local", "global"))


@register
@dataclasses.dataclass(frozen=True)
class Experts:
    count: int = field(help="how many", low=2)
    scale: float = field(1.0, "of their outputs", low=0.0, high=2.0)


@register
@dataclasses.dataclass(frozen=True)
class Net:
    layers: int = field(2, "how many", low=1)
    window: Window = field(Window(), "attention window")
    experts: Experts | None = field(None, "mixture of experts")
    rate: float | None = field(None, "dropout", low=0.0, high=1.0)
    names: tuple[str, ...] = field(("a", "b"), "names", choices=("a", "b", "c"))
    sizes: tuple[int, ...] = field((), "sizes", low=1)
    tied: bool = field(False, "whether tied")
    label: str = field("net", "a name")
    table: tuple[tuple[str, object], ...] = field((), "structured", flag=False)
    windows: tuple[Window, ...] = field((), "configs in a tuple", flag=False)


nets = st.builds(
    Net,
    layers=st.integers(1, 99),
    window=st.builds(Window, size=st.integers(1, 9), kind=st.sampled_from(["local", "global"])),
    experts=st.none() | st.builds(Experts, count=st.integers(2, 9), scale=st.floats(0, 2)),
    rate=st.none() | st.floats(0, 1),
    names=st.lists(st.sampled_from("abc"), max_size=3).map(tuple),
    sizes=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    tied=st.booleans(),
    label=st.text("xyz_-", min_size=1, max_size=5),
    table=st.sampled_from([(), (("window.size", 3), ("tied", True)), (("x", (1, 2)),)]),
    windows=st.lists(st.builds(Window), max_size=2).map(tuple),
)


@given(nets)
def test_a_config_survives_json(net):
    text = json.dumps(config.to_dict(net), allow_nan=False)
    assert config.from_dict(json.loads(text)) == net


@given(nets)
def test_every_plain_value_survives_its_text(net):
    for name, value, info in config.leaves(net):
        if info.flag:
            assert config.parse(config.to_text(value), info, name) == value


@given(nets, nets)
def test_the_leaves_of_one_laid_over_another_give_the_first(a, b):
    overrides = {name: value for name, value, info in config.leaves(a) if info.flag}
    rest = {"table": a.table, "windows": a.windows}
    assert config.replace(b, overrides | rest) == a
    assert config.create(Net, overrides | rest) == a


def test_what_is_written_names_its_types():
    written = config.to_dict(Net(experts=Experts(4)))
    assert written["type"] == "Net"
    assert written["experts"] == {"type": "Experts", "count": 4, "scale": 1.0}
    assert written["names"] == ["a", "b"]


def test_a_field_that_an_older_version_did_not_write_takes_its_default():
    assert config.from_dict({"type": "Net", "layers": 3}) == Net(layers=3)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"type": "Nett"}, "unknown config type Nett: did you mean Net?"),
        ({"layers": 3}, "unknown config type None"),
        ({"type": "Net", "layer": 3}, "unknown field Net.layer: did you mean Net.layers?"),
        ({"type": "Net", "zzz": 3}, "unknown field Net.zzz: choose from layers, window"),
        ({"type": "Net", "layers": "3"}, "Net.layers=3: must be a whole number of at least 1"),
        ({"type": "Net", "layers": True}, "Net.layers=true: must be a whole number"),
        ({"type": "Net", "layers": 0}, "Net.layers=0: must be a whole number of at least 1"),
        ({"type": "Net", "rate": 1.5}, "Net.rate=1.5: must be a number from 0 to 1, or none"),
        ({"type": "Net", "rate": float("nan")}, "Net.rate=nan: must be a number from 0 to 1"),
        ({"type": "Net", "names": ["a", "d"]}, "Net.names=a,d: must be one of a, b, c, or several"),
        ({"type": "Net", "window": {"type": "Experts", "count": 2}}, "Net.window=Experts: must be given"),
        ({"type": "Experts"}, "Experts.count is missing: how many"),
    ],
)
def test_a_written_config_that_does_not_fit_is_refused(data, words):
    with pytest.raises(InputError, match="^" + words.replace("?", r"\?")):
        config.from_dict(data)


def test_overrides_reach_nested_fields_and_leave_the_rest():
    net = config.replace(Net(rate=0.5), {"window.size": 4, "layers": 3, "rate": 1})
    assert net == Net(layers=3, window=Window(size=4), rate=1.0)
    assert isinstance(net.rate, float)


def test_an_override_creates_an_optional_config_and_removes_it():
    net = config.replace(Net(), {"experts.count": 4})
    assert net.experts == Experts(4)
    assert config.replace(net, {"experts.scale": 2}).experts == Experts(4, 2.0)
    assert config.replace(net, {"experts": None}) == Net()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"window.siz": 4}, "unknown field window.siz: did you mean window.size?"),
        ({"layers.size": 4}, "layers is a whole number of at least 1 and has no fields: layers.size cannot"),
        ({"window.size": 0}, "window.size=0: must be a whole number of at least 1"),
        ({"window": None}, "window=none: must be given by its own fields"),
        ({"experts.scale": 1.0}, "experts.count is missing: how many"),
        ({"experts": None, "experts.count": 4}, "experts=none and experts.count contradict each other"),
    ],
)
def test_overrides_that_do_not_fit_are_refused(overrides, words):
    with pytest.raises(InputError, match="^" + words.replace("?", r"\?")):
        config.replace(Net(), overrides)


def test_differences_are_told_in_the_words_of_the_caller():
    a = Net(experts=Experts(4), rate=0.1, window=Window(4))
    b = Net(layers=3, rate=0.1, names=("a",), window=Window(8))
    assert config.difference(a, b, ("in the checkpoint", "asked for"), "model") == [
        "model.layers: 2 in the checkpoint, 3 asked for",
        "model.window.size: 4 in the checkpoint, 8 asked for",
        "model.experts: Experts in the checkpoint, none asked for",
        "model.names: a,b in the checkpoint, a asked for",
    ]
    assert config.difference(a, Window(), ("here", "there"), "model") == ["model: Net here, Window there"]
    assert config.difference(a, a, ("here", "there")) == []


def test_flatten_lists_what_flags_can_set_with_the_defaults_of_class_or_instance():
    of_class = config.flatten(Net)
    assert list(of_class)[:5] == ["layers", "window.size", "window.kind", "experts", "experts.count"]
    assert "table" not in of_class and "windows" not in of_class
    assert of_class["experts.count"] == FieldInfo(int, MISSING, "how many", low=2)
    assert of_class["window.kind"].choices == ("local", "global")
    of_instance = config.flatten(Net(layers=7, window=Window(9), experts=Experts(3)))
    assert [of_instance[name].default for name in ("layers", "window.size", "experts.count")] == [7, 9, 3]


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, "-3", -3),
        (float, "1e-3", 0.001),
        (float | None, "none", None),
        (float | None, "2", 2.0),
        (bool, "TRUE", True),
        (bool, "0", False),
        (str, "none", "none"),
        (str | None, "None", None),
        (tuple[int, ...], "1, 2,3", (1, 2, 3)),
        (tuple[str, ...], "", ()),
        (tuple[str, ...] | None, "none", None),
        (tuple[float, ...], "1,2.5", (1.0, 2.5)),
    ],
)
def test_parse(hint, text, value):
    parsed = config.parse(text, FieldInfo(hint))
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("info", "text", "words"),
    [
        (FieldInfo(int), "3.5", "--x=3.5: must be a whole number"),
        (FieldInfo(int), "none", "--x=none: must be a whole number"),
        (FieldInfo(float, high=1), "inf", "--x=inf: must be a number of at most 1"),
        (FieldInfo(bool), "maybe", "--x=maybe: must be true or false"),
        (FieldInfo(tuple[int, ...], low=1), "1,b", "--x=1,b: must be a whole number of at least 1, or several"),
        (FieldInfo(str, choices=("adamw", "sgd")), "adam", r"one of adamw, sgd \(did you mean adamw\?\)"),
    ],
)
def test_parse_says_what_is_allowed(info, text, words):
    with pytest.raises(InputError, match=words):
        config.parse(text, info, "--x")


def test_two_classes_of_one_name_are_refused():
    other = dataclasses.make_dataclass("Net", ["x"], frozen=True)
    other.__module__ = "elsewhere"
    with pytest.raises(AssertionError, match=r"Net is already registered by .*test_config"):
        register(other)
    with pytest.raises(AssertionError, match="must be a frozen dataclass"):
        register(dataclasses.make_dataclass("Thawed", ["x"]))


SECTIONS = (options.Data, options.Optimizer, options.Train, options.Mesh, options.Checkpoint)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_sound_by_default_and_explains_itself(section):
    section().check()
    assert config.from_dict(config.to_dict(section())) == section()
    assert len(dataclasses.fields(section)) <= 25
    assert all(info.help for info in config.flatten(section).values())


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda: options.Optimizer(warmup=9).check(steps=9), ["optimizer.warmup=9", "train.steps=9", "lower", "raise"]),
        (lambda: options.Optimizer(beta2=1.0).check(), ["optimizer.beta2=1", "below 1"]),
        (lambda: options.Optimizer(clip_norm=0.0).check(), ["optimizer.clip_norm=0", "none"]),
        (lambda: options.Optimizer(name="adamww").check(), ["optimizer.name=adamww", "did you mean adamw?"]),
        (lambda: options.Train(batch_size=6, accumulate=4).check(), ["train.batch_size=6", "train.accumulate=4"]),
        (lambda: options.Train(steps=0).check(), ["train.steps=0", "at least 1"]),
        (lambda: options.Train(steps=9, epochs=2).check(), ["train.steps=9 and train.epochs=2", "leave one"]),
        (lambda: options.Train(epochs=0).check(), ["train.epochs=0", "above 0"]),
        (lambda: options.Train(min_delta=0.1).check(), ["train.min_delta=0.1 needs", "train.monitor"]),
        (lambda: options.Train(mode="max").check(), ["train.mode=max needs", "train.monitor"]),
        (
            lambda: options.Train(patience=2, monitor="loss").check(),
            ["train.patience=2 counts evaluations", "set train.eval_every"],
        ),
        (
            lambda: options.Train(profile=(10, 13), steps=12).check(),
            ["train.profile=10,13 ends after train.steps=12", "lower"],
        ),
        (lambda: options.Train(profile=(13, 10)).check(), ["train.profile=13,10", "first and the last"]),
        (lambda: options.Mesh(data=0).check(), ["mesh.data=0", "-1"]),
        (lambda: options.Mesh(fsdp=-1).check(), ["mesh.fsdp=-1", "at least 1"]),
        (lambda: options.Data(vocab_size=99).check(), ["data.vocab_size=99", "at least 257"]),
        (
            lambda: options.Data(eval_path=("a.csv", "b.csv"), heldout=0.1).check(),
            ["data.eval_path=a.csv,b.csv and data.heldout=0.1", "leave one out"],
        ),
        (
            lambda: options.Data(kind="text", categorical=("a", "b")).check(),
            ["data.kind=text and data.categorical=a,b contradict", "leave one of them out"],
        ),
        (
            lambda: options.Data(label="y", ignore=("id", "y")).check(),
            ["data.ignore=id,y leaves out data.label=y", "change"],
        ),
        (
            lambda: options.Data(ignore=("a", "b"), categorical=("b",)).check(),
            ["data.categorical and data.ignore both name b", "take it out"],
        ),
        (lambda: options.Data(image_shape=(8,)).check(), ["data.image_shape=8", "height,width,channels"]),
        (lambda: options.Data(image_shape=(8, 0)).check(), ["data.image_shape=8,0", "at least 1"]),
        (
            lambda: options.Data(image_shape=(8, 8), categorical=("a",)).check(),
            ["data.image_shape=8,8", "data.categorical=a", "leave one out"],
        ),
        (
            lambda: options.Data(augment=("flip",)).check(),
            ["data.augment=flip", "set data.image_shape", "leave it out"],
        ),
        (lambda: options.Data(augment=("flop",)).check(), ["data.augment=flop", "shift, flip"]),
        (lambda: options.Data(scaling="max").check(), ["data.scaling=max", "standard, minmax, robust"]),
        (lambda: options.Data(heldout=0.6).check(), ["data.heldout=0.6", "from 0 to 0.5"]),
        (lambda: options.Checkpoint(keep=0).check(), ["checkpoint.keep=0", "at least 1"]),
    ],
)
def test_combinations_that_cannot_work_name_the_fields_and_the_fix(check, words):
    with pytest.raises(InputError) as error:
        check()
    for word in words:
        assert word in str(error.value)


def test_sections_that_go_together_pass():
    options.Data(eval_path=("a.csv",), heldout=0.0).check()
    options.Data(image_shape=(8, 8, 3), augment=("shift", "cutout"), categorical=("label",)).check()


def test_a_warmup_shorter_than_the_run_is_fine():
    options.Optimizer(warmup=8).check(steps=9)


def test_configs_load_without_jax():
    code = "import sys, jaxmodel.options; print(sorted({'jax', 'numpy', 'absl'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_word_may_stand_for_a_number():
    info = FieldInfo(int | Literal["auto"] | None, low=2)
    assert [config.parse(text, info) for text in ("3", "auto", "none")] == [3, "auto", None]
    for text in ("1", "atuo", "3.5", ""):
        with pytest.raises(InputError, match="must be a whole number of at least 2, or auto, or none"):
            config.parse(text, info, "size")

    @register
    @dataclasses.dataclass(frozen=True)
    class Sized:
        size: int | Literal["auto"] = field(4, "how many", low=1)

    for size in (3, "auto"):
        assert config.from_dict(json.loads(json.dumps(config.to_dict(Sized(size))))) == Sized(size)
        assert config.replace(Sized(), {"size": size}) == Sized(size)
    assert config.to_text("auto") == "auto" and config.flatten(Sized)["size"].default == 4
    with pytest.raises(InputError, match="size=automatic: must be a whole number of at least 1, or auto"):
        config.create(Sized, {"size": "automatic"})
