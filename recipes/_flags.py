"""Flags from frozen dataclasses: laid over a preset, every mistake one line, an exit code out."""

import dataclasses
import errno
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import absl.flags

from jaxmodel import config
from jaxmodel.config import MISSING, FieldInfo, allowed, closest, to_text
from jaxmodel.errors import InputError, Retryable
from jaxmodel.memory import use_huge_pages
from jaxmodel.options import DTYPES

F = TypeVar("F")
FLAG_FILES = Path(__file__).parent / "flags"
COMMON = {
    "help": FieldInfo(bool, False, "show this and exit; with --model=PRESET its flags too"),
    "print_config": FieldInfo(bool, False, "print every value as it was resolved, as a flag file, and exit"),
    "flagfile": FieldInfo(str, "", "read flags from a file; later flags win over earlier ones"),
}


def dtype_flag() -> Any:
    """The field `dtype` of every recipe that loads a model to run it."""
    return config.field(
        None, "what plain weights are cast to as they are loaded; none: as they were saved", choices=DTYPES
    )


@dataclasses.dataclass(frozen=True)
class Parsed(Generic[F]):
    """What a command line came to.

    Attributes:
        flags: the command's own dataclass, filled in.
        model_name: the preset, or None if none was named.
        model: the config of the preset, or of what the source flag points at, with `--model.*` laid over it; or None.
        said: the values that were given, by dotted name, flag files included.
    """

    flags: F
    model_name: str | None
    model: Any
    said: Mapping[str, Any]

    def lines(self) -> list[str]:
        """The whole as the lines of a flag file; what no flag can spell is left as a comment."""
        lines = list(_lines(self.flags, ""))
        if self.model is not None:
            lines += [f"--model={self.model_name}"] if self.model_name else []
            lines += _lines(self.model, "model.")
        return lines


@dataclasses.dataclass(frozen=True)
class Command(Generic[F]):
    """A recipe's command line.

    Attributes:
        name: the recipe, as in `python -m recipes.NAME`.
        about: what it does, one sentence.
        flags: a frozen dataclass: a plain field `workdir` is `--workdir`, a nested dataclass `train` is the
            section `--train.*`. A `check()` of a section, or of the whole, is called once all is parsed.
        model: whether it takes `--model=PRESET` and `--model.*`.
        presets: configs by name; `jaxmodel.models.presets.PRESETS` unless given.
        source: a flag that points at something holding a model, and a function from its value to that model's
            config: without `--model`, `--model.*` change that one.
    """

    name: str
    about: str
    flags: type[F]
    model: bool = False
    presets: Mapping[str, Any] | None = None
    source: tuple[str, Callable[[str], Any]] | None = None

    def parse(self, argv: Sequence[str]) -> Parsed[F]:
        """Parse a command line, `argv[0]` being the program; `--help` and `--print_config` exit with 0.

        Raises:
            InputError: an unknown flag, a bad value, a bad combination, a missing flag or flag file.
        """
        values = absl.flags.FlagValues()
        values.set_gnu_getopt()  # a word that belongs to no flag is found wherever it stands
        _define(values, self._infos())
        # First pass: which model? Only then is it known which --model.* flags there are, and of what type.
        args = _expand(values, argv)
        rest = _read(values, args, known_only=True)
        name = values["model"].value if self.model else None
        preset = self._pointed_at(values, rest) if name is None else self._presets().get(name)
        if name is not None and preset is None:
            raise InputError(f"--model={name}: {config.did_you_mean(name, self._presets())}")
        if values["help"].present:
            print(self.help(preset))
            raise SystemExit(0)
        if self.model and preset is None:
            self._refuse_model_flags(values, rest)

        _define(values, self._infos(preset))
        leftover = _read(values, args)
        if leftover:
            raise InputError(f"unexpected {leftover[0]!r}: every value belongs to a flag, as in --flag=value")
        said = {
            path: config.parse(str(values[path].value), info, f"--{path}")
            for path, info in self._infos(preset).items()
            if values[path].present
        }
        absl.flags.FLAGS.mark_as_parsed()  # libraries (grain's worker processes) look whether these are
        parsed = self._resolve(said, name, preset)
        if said.get("print_config"):
            print("\n".join(parsed.lines()))
            raise SystemExit(0)
        return parsed

    def help(self, preset: Any = None) -> str:
        """Every flag with its meaning, its default and what is allowed, by section."""
        sections: dict[str, dict[str, FieldInfo]] = {"": {}}
        for name, info in self._infos(preset).items():
            sections.setdefault(name.rpartition(".")[0].partition(".")[0], {})[name] = info
        usage = f"Usage: python -m recipes.{self.name} [--flagfile=FILE] [--flag=value ...]"
        tables = [f"{section}\n{_table(infos)}".lstrip("\n") for section, infos in sections.items()]
        return "\n\n".join([self.about, usage, *tables])

    def _presets(self) -> Mapping[str, Any]:
        if self.presets is not None:
            return self.presets
        from jaxmodel.models.presets import PRESETS

        return PRESETS

    def _infos(self, preset: Any = None) -> dict[str, FieldInfo]:
        """Every flag there is, by name; those of a model once its preset is known."""
        infos = dict(config.flatten(self.flags))
        if self.model:
            names = ", ".join(self._presets())
            infos["model"] = FieldInfo(str, "", f"named model, whose fields --model.* change: {names}")
        of_model = {} if preset is None else config.flatten(preset)
        return infos | COMMON | {f"model.{path}": info for path, info in of_model.items()}

    def _pointed_at(self, values: absl.flags.FlagValues, rest: Sequence[str]) -> Any:
        """The config of the model that the source flag points at, or None; other flags are looked at first."""
        flag, config_of = self.source or (None, None)
        if flag is None or config_of is None or not values[flag].present:
            return None
        path = config.parse(str(values[flag].value), self._infos()[flag], f"--{flag}")
        if path is None:
            return None
        self._model_flags(values, rest)
        return config_of(path)

    def _model_flags(self, values: absl.flags.FlagValues, rest: Sequence[str]) -> list[str]:
        """The names of what the first pass left over; InputError if any is no `model.x`: a mistyped --model?"""
        unknown = [arg.partition("=")[0].lstrip("-") for arg in rest if arg.startswith("-")]
        for name in unknown:
            if not name.removeprefix("no").startswith("model."):
                raise _unknown(name, values)
        return unknown

    def _refuse_model_flags(self, values: absl.flags.FlagValues, rest: Sequence[str]) -> None:
        """Say that `--model.x` needs a model to change."""
        if unknown := self._model_flags(values, rest):
            names = ", ".join(self._presets()) + (f"; or --{self.source[0]}" if self.source else "")
            raise InputError(f"--{unknown[0]} changes a named model: give --model too, one of {names}")

    def _resolve(self, said: Mapping[str, Any], name: str | None, preset: Any) -> Parsed[F]:
        """Lay what was said over the defaults and the preset, and check that it fits together."""
        of_model = {path.removeprefix("model."): said[path] for path in said if path.startswith("model.")}
        own = {path: value for path, value in said.items() if path in config.flatten(self.flags)}
        flags = config.create(self.flags, own, "--")
        model = None if preset is None else config.replace(preset, of_model, "--model.")
        _check(flags)
        _check(model)
        return Parsed(flags, name, model, said)


def run(main: Callable[[Parsed[F]], int | None], command: Command[F], argv: Sequence[str] | None = None) -> int:
    """Parse the command line, call `main` and turn what happened into an exit code.

    A process of its own (no `argv` is given) may start itself again first, once all is understood.

    0 done · 1 a bug, with a traceback · 2 the user can mend it, one line · 42 run it again · 130 interrupted
    """
    try:
        parsed = command.parse(sys.argv if argv is None else argv)
        if argv is None:
            use_huge_pages()
        return main(parsed) or 0
    except InputError as error:
        return _say(f"error: {error}", 2)
    except Retryable as error:
        return _say(f"interrupted, run the same command again: {error}", 42)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:  # whoever read our output has seen enough (`--help | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0)
        if remedy is None:
            traceback.print_exc()
            return 1
        return _say(f"error: {error.filename or 'writing'}: {error.strerror}: {remedy}", 2)
    except Exception:
        traceback.print_exc()
        return 1


REMEDIES = {
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "check its permissions, or choose another place",
    errno.EPERM: "check its permissions, or choose another place",
}


def _say(line: str, code: int) -> int:
    print(" ".join(line.splitlines()), file=sys.stderr)
    return code


def _define(values: absl.flags.FlagValues, infos: Mapping[str, FieldInfo]) -> None:
    """One flag a field, None until it is said. Values stay text: `config.parse` words errors better."""
    for name, info in infos.items():
        if name not in values:
            parser, short = absl.flags.ArgumentParser(), "h" if name == "help" else None
            boolean = info.type is bool
            values[name] = absl.flags.Flag(parser, None, name, None, _describe(info), short, boolean)


def _expand(values: absl.flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """The command line with its flag files, also those within them, read in."""
    try:
        return [argv[0], *values.read_flags_from_files([_located(arg) for arg in argv[1:]])]
    except absl.flags.CantOpenFlagFileError as error:
        cause = error.__context__
        assert isinstance(cause, OSError)
        name, ours = Path(cause.filename).name, sorted(file.name for file in FLAG_FILES.glob("*.flags"))
        near = closest(name, ours)
        hint = f": did you mean recipes/flags/{near}?" if near else ""
        raise InputError(f"--flagfile={cause.filename}: {cause.strerror}{hint}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--flagfile: not a text file: {error}") from None
    except absl.flags.Error as error:
        raise InputError(str(error)) from None


def _located(arg: str) -> str:
    """`--flagfile=recipes/flags/NAME`; where there is no such file, that of the package."""
    flag, _, path = arg.partition("=")
    file = FLAG_FILES / Path(path).name
    packaged = Path(path).parent == Path("recipes/flags") and not os.path.exists(path) and file.is_file()
    return f"{flag}={file}" if flag.lstrip("-") == "flagfile" and packaged else arg


def _read(values: absl.flags.FlagValues, args: Sequence[str], known_only: bool = False) -> list[str]:
    """Parse with absl; returns what is left over."""
    try:
        return values(args, known_only=known_only)[1:]
    except absl.flags.UnrecognizedFlagError as error:
        raise _unknown(error.flagname, values) from None
    except (absl.flags.Error, ValueError) as error:  # a value is missing, or --noflag=value
        raise InputError(str(error)) from None


def _unknown(name: str, values: absl.flags.FlagValues) -> InputError:
    near = closest(name, values)
    return InputError(f"unknown flag --{name}: " + (f"did you mean --{near}?" if near else "see --help"))


def _check(part: Any) -> None:
    """Call `check()` of every nested config that has one, the innermost first."""
    if not config.is_config(part):
        return
    for name in config.fields(type(part)):
        _check(getattr(part, name))
    if hasattr(part, "check"):
        part.check()


def _lines(part: Any, prefix: str) -> Iterator[str]:
    for name, value, info in config.leaves(part, prefix):
        text = to_text(value)
        # A line of a flag file ends where its text does: it holds no line breaks and no trailing spaces.
        spelled = info.flag and text == text.rstrip() and len(text.splitlines()) <= 1
        if spelled or text:
            yield f"--{name}={text}" if spelled else f"# {name} is {text!r}"


def _describe(info: FieldInfo) -> str:
    obvious = info.type in (bool, str, str | None) and info.choices is None
    notes = [] if obvious else [allowed(info)]
    if info.default is MISSING:
        notes.append("required")
    elif info.default != "":
        notes.append(f"default: {to_text(info.default)}")
    return f"{info.help} ({'; '.join(notes)})" if notes else info.help


def _table(infos: Mapping[str, FieldInfo]) -> str:
    width = min(shutil.get_terminal_size().columns, 110)
    indent = 2 + max(len(f"--{name}  ") for name in infos)
    return "\n".join(
        textwrap.fill(
            f"{f'--{name}':<{indent - 2}}{_describe(info)}",
            width,
            initial_indent="  ",
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, info in infos.items()
    )
