"""`python -m recipes.prepare`: killed and gone on with, trained from as from the text itself, mistakes in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jaxmodel.data.text import prepare_text
from jaxmodel.data.tokenizer import train_bpe
from jaxmodel.options import Data
from recipes import eval as evaluation
from recipes import train
from recipes._flags import run
from recipes.prepare import COMMAND, main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a recipe in this process: arguments -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))

    def call(*args: str, recipe: Any = (main, COMMAND)):
        return run(recipe[0], recipe[1], ["recipe", *args]), *capsys.readouterr()

    return call


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02}.txt").write_text(f"Some words of document {i}, größer.\n" * (i + 1), encoding="utf-8")
    return folder


def losses(workdir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_training_and_evaluation_see_what_they_see_of_the_text(call, texts, tmp_path):
    out = tmp_path / "out"
    code, said, err = call(
        f"--input={texts}", f"--output={out}", "--tokenizer=byte", "--shard_mb=0.002", "--heldout=0.2"
    )
    assert (code, err) == (0, "")
    assert "text: train: " in said and said.endswith(f"next: python -m recipes.train --data.path={out} --workdir=DIR\n")
    common = [
        "--model=tiny", "--data.length=16", "--train.batch_size=8", "--train.steps=2", "--train.log_every=1",
    ]  # fmt: skip
    raw = [f"--data.path={texts}", "--data.tokenizer=byte", "--data.heldout=0.2", f"--data.cache={tmp_path}"]
    for name, flags in (("raw", raw), ("made", [f"--data.path={out}"])):
        code, said, err = call(*common, *flags, f"--workdir={tmp_path / name}", recipe=(train.main, train.COMMAND))
        assert code == 0, err
    assert len(losses(tmp_path / "raw")) > 2
    assert losses(tmp_path / "made") == losses(tmp_path / "raw")

    recipe = (evaluation.main, evaluation.COMMAND)
    for name in ("raw", "made"):
        assert call(f"--checkpoint={tmp_path / name}", recipe=recipe)[0] == 0
    ours, theirs = (json.loads((tmp_path / name / "eval.json").read_text()) for name in ("made", "raw"))
    assert {key: ours[key] for key in ours if key not in ("checkpoint", "data")} == {
        key: theirs[key] for key in ours if key not in ("checkpoint", "data")
    }
    # Of other text than it was trained on all is evaluated; of shards only what was held out can be.
    code, _, err = call(f"--checkpoint={tmp_path / 'raw'}", f"--data.path={out}", recipe=recipe)
    assert code == 2 and f"data.heldout=1.0 contradicts data.path={out}" in err
    code, said, err = call(
        f"--checkpoint={tmp_path / 'raw'}", f"--data.path={out}", "--data.heldout=0.2", recipe=recipe
    )
    assert code == 0 and "evaluating step 2 on" in said, err


def test_a_killed_command_goes_on(tmp_path):
    text, out, whole = tmp_path / "text.txt", tmp_path / "out", tmp_path / "whole"
    text.write_text("".join(f"{i} words {i * i % 977} of many lines\n" for i in range(150_000)))
    (tmp_path / "tokenizer.json").write_text(train_bpe(["words of many lines"], 270).to_json())
    command = [
        sys.executable, "-m", "recipes.prepare", f"--input={text}", f"--tokenizer={tmp_path}", "--shard_mb=0.1",
        "--workers=2",
    ]  # fmt: skip

    def noted() -> list[str]:
        journal = out / "journal.jsonl"
        return [line for line in journal.read_text().splitlines() if "files" in line] if journal.exists() else []

    process = subprocess.Popen([*command, f"--output={out}"], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(noted()) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {
        name: os.stat(out / f"{name}.tokens").st_mtime_ns for name in (json.loads(line)["name"] for line in noted())
    }
    assert len(kept) >= 3

    for folder in (out, whole):
        subprocess.run([*command, f"--output={folder}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert {name: os.stat(out / f"{name}.tokens").st_mtime_ns for name in kept} == kept
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    assert len(prepare_text(Data(path=str(out))).train.starts) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--input=missing"], "error: input: 'missing' does not exist; give a text file, a folder"),
        (["--vocab_size=5"], "error: --vocab_size=5: must be a whole number of at least 257"),
        (["--tokenizer=bpee"], "error: tokenizer=bpee: give byte, bpe, or the place of a tokenizer.json"),
        (["--normalize=NFD"], "error: --normalize=NFD"),
        (["--heldout=0"], "error: heldout=0: give the fraction to hold out, above 0"),
        (["--pattern=*.md"], "holds no text in files that match pattern=*.md"),
        (["--dedup"], "error: unknown flag --dedup: did you mean --dedupe?"),
    ],
)
def test_mistakes_are_one_line(call, texts, tmp_path, flags, words):
    code, _, err = call(f"--input={texts}", f"--output={tmp_path / 'out'}", *flags)
    assert code == 2 and words in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_and_the_missing_flag(call):
    with pytest.raises(SystemExit) as left:
        call("--help")
    assert left.value.code == 0
    code, _, err = call("--input=x")
    assert code == 2 and "output" in err and err.count("\n") == 1


def test_no_jax_is_needed(texts, tmp_path):
    program = f"""
import sys
from recipes._flags import run
from recipes.prepare import COMMAND, main
print(run(main, COMMAND, ["prepare", "--input={texts}", "--output={tmp_path / "out"}", "--tokenizer=byte"]))
print("jax" not in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-2:] == ["0", "True"]
