"""Flags: two passes, one line for every mistake, exit codes, and the flag files of the recipes."""

import dataclasses
import errno
import subprocess
import sys
from pathlib import Path

import absl.flags
import pytest

from jaxmodel import options
from jaxmodel.config import field, register
from jaxmodel.errors import InputError, Retryable
from jaxmodel.models.presets import PRESETS
from recipes import train
from recipes._flags import FLAG_FILES, Command, Parsed, run

ROOT = Path(__file__).parents[2]
FILES = sorted(FLAG_FILES.glob("*.flags"))


@register
@dataclasses.dataclass(frozen=True)
class Heads:
    count: int = field(2, "how many", low=1)
    causal: bool = field(True, "no peeking")


@register
@dataclasses.dataclass(frozen=True)
class Toy:
    depth: int = field(2, "layers", low=1)
    heads: Heads = field(Heads(), "attention")
    extra: Heads | None = field(None, "more attention")
    kinds: tuple[str, ...] = field(("a",), "kinds of layer", choices=("a", "b"))
    table: tuple[tuple[str, int], ...] = field((), "structured", flag=False)

    def check(self):
        if self.depth % self.heads.count:
            raise InputError(f"model.depth={self.depth} and model.heads.count={self.heads.count} do not fit")


@register
@dataclasses.dataclass(frozen=True)
class Other:
    width: float = field(1.0, "how wide")


@dataclasses.dataclass(frozen=True)
class TrainFlags:
    workdir: str | None = field(None, "where the run is kept")
    data: options.Data = options.Data()
    optimizer: options.Optimizer = options.Optimizer()
    train: options.Train = options.Train()
    mesh: options.Mesh = options.Mesh()
    checkpoint: options.Checkpoint = options.Checkpoint()

    def check(self):
        self.optimizer.check(self.train.steps)


@dataclasses.dataclass(frozen=True)
class EvalFlags:
    checkpoint: str = field(help="anything that holds a model")
    prompt: str = field("", "how a text begins")


TOYS = {"toy": Toy(), "big-toy": Toy(depth=8, table=(("a", 1),)), "other": Other()}
TRAIN = Command("train", "Train a toy.", TrainFlags, model=True, presets=TOYS)
EVAL = Command("eval", "Evaluate a toy.", EvalFlags)


def parse(*args, command: Command = TRAIN) -> Parsed:
    return command.parse(["prog", *args])


def exit_of(main, *args):
    return run(main, TRAIN, ["prog", *args])


def test_nothing_said_gives_the_defaults():
    parsed = parse()
    assert parsed.flags == TrainFlags()
    assert (parsed.model_name, parsed.model, parsed.said) == (None, None, {})


def test_what_is_said_lies_over_the_defaults_and_the_preset():
    parsed = parse("--model=big-toy", "--train.steps=7", "--optimizer.clip_norm=none", "--model.heads.count", "4")
    assert parsed.flags.train == options.Train(steps=7)
    assert parsed.flags.optimizer.clip_norm is None
    assert parsed.model == dataclasses.replace(TOYS["big-toy"], heads=Heads(4))
    assert parsed.model_name == "big-toy"
    assert parsed.said == {"model": "big-toy", "train.steps": 7, "optimizer.clip_norm": None, "model.heads.count": 4}


def test_the_type_of_model_flags_is_that_of_the_preset():
    assert parse("--model.width=3", "--model=other").model == Other(3.0)
    with pytest.raises(InputError, match=r"unknown flag --model\.width"):
        parse("--model.width=3", "--model=toy")


@pytest.mark.parametrize(
    ("args", "causal"),
    [
        (["--nomodel.heads.causal"], False),
        (["--model.heads.causal"], True),
        (["--model.heads.causal=false"], False),
        (["--nomodel.heads.causal", "--model.heads.causal"], True),
    ],
)
def test_booleans(args, causal):
    assert parse("--model=toy", *args).model.heads.causal is causal


def test_an_optional_part_of_a_model_is_switched_on_by_its_fields():
    assert parse("--model=toy", "--model.extra.count=3").model.extra == Heads(3)
    assert parse("--model=toy", "--model.extra=none").model.extra is None


SOURCE = dataclasses.replace(TRAIN, source=("workdir", lambda path: Toy(depth=int(path))))


def test_without_a_name_the_model_is_what_the_source_flag_points_at(tmp_path):
    parsed = parse("--model.heads.count=3", "--workdir=6", "--model.kinds=b", command=SOURCE)
    assert parsed.model == Toy(depth=6, heads=Heads(3), kinds=("b",)) and parsed.model_name is None
    assert parse("--workdir=4", command=SOURCE).model == Toy(depth=4)
    assert parse("--workdir=4", "--model=other", command=SOURCE).model == Other()
    assert parse("--workdir=none", command=SOURCE).model is None
    file = tmp_path / "all.flags"
    file.write_text("\n".join(parsed.lines()))
    again = parse(f"--flagfile={file}", command=SOURCE)
    assert (again.flags, again.model, again.model_name) == (parsed.flags, parsed.model, None)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--workdir=5", "--model.depht=3"], "unknown flag --model.depht: did you mean --model.depth"),
        (["--workdir=5", "--model.depth=3"], "model.depth=3 and model.heads.count=2 do not fit"),
        (["--workdir=unread", "--train.stesp=3"], "unknown flag --train.stesp: did you mean --train.steps"),
        (["--model.depth=3"], "give --model too, one of toy, big-toy, other; or --workdir"),
    ],
)
def test_mistakes_about_a_model_that_is_pointed_at(args, words):
    with pytest.raises(InputError, match=words):
        parse(*args, command=SOURCE)


def test_the_model_may_be_named_in_a_nested_flag_file(tmp_path):
    inner, outer = tmp_path / "inner.flags", tmp_path / "outer.flags"
    inner.write_text("# the model\n--model=big-toy\n--train.steps=3\n")
    outer.write_text(f"--model.depth=4\n\n--flagfile={inner}\n--train.seed=5\n")
    parsed = parse(f"--flagfile={outer}", "--train.steps=9")
    assert (parsed.model.depth, parsed.flags.train.steps, parsed.flags.train.seed) == (4, 9, 5)
    assert parse("--train.steps=9", "--flagfile", str(outer)).flags.train.steps == 3  # the later one wins


ERRORS = [
    (["--optimizer.learning_rat=1"], "unknown flag --optimizer.learning_rat: did you mean --optimizer.learning_rate?"),
    (["--learning_rate=1"], "unknown flag --learning_rate: did you mean --optimizer.learning_rate?"),
    (["--zzz"], "unknown flag --zzz: see --help"),
    (["--modle=toy", "--model.depth=3"], "unknown flag --modle: did you mean --model?"),
    (["--model.depth=3"], "--model.depth changes a named model: give --model too, one of toy, big-toy, other"),
    (["--model=toi"], "--model=toi: did you mean toy?"),
    (["--model=llm"], "--model=llm: choose from toy, big-toy, other"),
    (["--model=toy", "--model.dept=3"], "unknown flag --model.dept: did you mean --model.depth?"),
    (["--model=toy", "--model.depth=0"], "--model.depth=0: must be a whole number of at least 1"),
    (["--model=toy", "--model.kinds=a,c"], "--model.kinds=a,c: must be one of a, b, or several with commas between"),
    (["--model=toy", "--model.depth=3"], "model.depth=3 and model.heads.count=2 do not fit"),
    (["--train.steps=many"], "--train.steps=many: must be a whole number of at least 1"),
    (
        ["--train.dtype=float16"],
        "--train.dtype=float16: must be one of float32, bfloat16, or none (did you mean bfloat16?)",
    ),
    (["--train.steps"], "Missing value for flag --train.steps"),
    (["--train.steps=9", "more"], "unexpected 'more': every value belongs to a flag, as in --flag=value"),
    (["--train.batch_size=6", "--train.accumulate=4"], "train.batch_size=6 does not divide into train.accumulate=4"),
    (["--optimizer.warmup=9", "--train.steps=9"], "optimizer.warmup=9 takes up all of train.steps=9"),
    (["--mesh.data=0"], "mesh.data=0: must be at least 1, or -1"),
    (["--flagfile=/no/such.flags"], "--flagfile=/no/such.flags: No such file or directory"),
    (["--flagfile=flags/quikstart.flags"], "No such file or directory: did you mean recipes/flags/quickstart.flags?"),
    (["--flagfile"], "--flagfile with no argument"),
    ([f"--flagfile={sys.executable}"], "--flagfile: not a text file"),
]


@pytest.mark.parametrize(("args", "words"), ERRORS, ids=[" ".join(args)[:40] for args, _ in ERRORS])
def test_a_mistake_is_one_line_and_exit_code_2(args, words, capsys):
    assert exit_of(lambda _: pytest.fail("main must not run"), *args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert words in err


def test_a_required_flag_says_what_it_is_for():
    with pytest.raises(InputError, match=r"^--checkpoint is missing: anything that holds a model$"):
        parse(command=EVAL)
    assert parse("--checkpoint=x", command=EVAL).flags == EvalFlags("x")


def test_print_config_can_be_used_as_a_flag_file(tmp_path, capsys):
    args = ["--model=big-toy", "--model.extra.count=3", "--data.length=64", "--workdir=w", "--train.steps=9"]
    with pytest.raises(SystemExit) as exit:
        parse(*args, "--print_config")
    assert exit.value.code == 0
    printed = capsys.readouterr().out
    assert "--data.length=64\n" in printed and "--optimizer.clip_norm=1.0\n" in printed
    assert "# model.table is" in printed  # no flag can spell it
    file = tmp_path / "all.flags"
    file.write_text(printed)
    again, first = parse(f"--flagfile={file}"), parse(*args)
    assert (again.flags, again.model, again.model_name) == (first.flags, first.model, first.model_name)
    assert again.lines() == first.lines() == printed.splitlines()


def test_print_config_does_not_spell_what_a_flag_file_cannot_hold():
    lines = parse("--checkpoint=x", "--prompt=two\nlines ", command=EVAL).lines()
    assert lines == ["--checkpoint=x", "# prompt is 'two\\nlines '"]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_flag_with_its_default(flag, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(flag, "--model=toy")
    assert exit.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for name in ("workdir", "data.path", "optimizer.warmup", "mesh.fsdp", "model.heads.count", "flagfile"):
        assert f"--{name} " in out
    assert "(a number of at least 0, or none; default: 1.0)" in out
    assert "named model, whose fields --model.* change: toy, big-toy, other" in out


def raises(error):
    def main(_):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("two\nlines"), 2, "error: two lines\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 2, "error: /x: No space left on device: free some"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "error: /x: Permission denied: check its perm"),
        (OSError(errno.EROFS, "Read-only file system"), 2, "error: writing: Read-only file system: write elsewhere"),
        (Retryable("a peer was lost"), 42, "interrupted, run the same command again: a peer was lost\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_went_wrong_becomes_an_exit_code_and_a_line(error, code, words, capsys):
    assert exit_of(raises(error)) == code
    err = capsys.readouterr().err
    assert err.startswith(words) and err.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("oops"), FileNotFoundError(errno.ENOENT, "No such file", "/x")])
def test_a_bug_keeps_its_traceback(error, capsys):
    assert exit_of(raises(error)) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and str(error) in err


def test_main_gives_the_exit_code():
    assert exit_of(lambda parsed: None) == 0
    assert exit_of(lambda parsed: parsed.flags.train.steps, "--train.steps=3") == 3


def test_libraries_see_that_flags_are_parsed():
    parse()
    assert absl.flags.FLAGS.is_parsed()


def assert_is_its_preset(parsed):
    """A flag file names a model, and the preset says what it is; only how it runs may be said beside it."""
    preset = PRESETS[parsed.model_name]
    assert dataclasses.replace(parsed.model, execution=preset.execution) == preset


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_flag_file_parses(file):
    parsed = train.COMMAND.parse(["prog", f"--flagfile={file}"])
    assert_is_its_preset(parsed)
    text = file.read_text()
    assert text.startswith("# "), "a flag file says first what it is for"


def test_there_are_flag_files():
    assert {"quickstart.flags", "gpt2.flags"} <= {file.name for file in FILES}


def test_the_flag_files_of_the_package_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parsed = Command("train", "Train.", TrainFlags, model=True).parse(
        ["prog", "--flagfile=recipes/flags/quickstart.flags"]
    )
    assert parsed.model_name == "tiny"
    assert_is_its_preset(parsed)


def test_help_and_mistakes_do_not_wait_for_jax():
    code = (
        "import sys\n"
        "from recipes._flags import Command, run\n"
        "from jaxmodel.options import Train\n"
        "command = Command('train', 'Train.', Train, model=True)\n"
        "assert run(print, command, ['prog', '--model=tiny', '--model.depht=3']) == 2\n"
        "assert 'jax' not in sys.modules\n"
        "run(print, command, ['prog', '--model=tiny', '--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--model.num_layers" in done.stdout
    assert done.stderr.startswith("error: unknown flag --model.depht")
