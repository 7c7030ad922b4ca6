"""`python -m recipes.eval`: the whole held-out part, exactly, whatever the batch; gzip beside it."""

import gzip
import itertools
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmodel.loading import load
from recipes._flags import run
from recipes.eval import COMMAND, main
from tests.saved import LENGTH, classifier, language_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the recipe in this process: arguments -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))

    def call(*args: str):
        return run(main, COMMAND, ["eval", *args]), *capsys.readouterr()

    return call


def naive(workdir: Path, text: bytes, documents: list[bytes]) -> dict[str, float]:
    """The numbers for these documents: every window's part of every document alone, in float64."""
    loaded = load(workdir)
    stream = [i for document in documents for i in (256, *document)] + [256]
    forward = jax.jit(lambda tokens: loaded.model.apply(loaded.params, {"tokens": tokens})["logits"])
    nats, right = 0.0, 0
    for start in range(0, len(stream) - 1, LENGTH):
        tokens = stream[start : start + LENGTH]
        cuts = [i for i, token in enumerate(tokens) if token == 256 or i == 0] + [len(tokens)]
        for first, last in itertools.pairwise(cuts):
            piece = np.zeros((1, LENGTH), np.int32)
            piece[0, : last - first] = tokens[first:last]  # nobody sees what is behind
            logits = np.asarray(forward(piece)[0], np.float64)
            for i in range(first, min(last, len(stream) - 1 - start)):
                row, target = logits[i - first], stream[start + i + 1]
                nats += np.log(np.exp(row - row.max()).sum()) + row.max() - row[target]
                right += int(row.argmax() == target)
    count = len(stream) - 1
    return {
        "loss": nats / count,
        "perplexity": np.exp(nats / count),
        "accuracy": right / count,
        "bits_per_byte": nats / np.log(2) / len(text),
        "gzip_bits_per_byte": 8 * len(gzip.compress(text, 9)) / len(text),
    }


def assert_close(found, expected):
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


@pytest.fixture(scope="module")
def heldout(workdir):
    """The documents that are held out, by the library's own split, which has tests of its own."""
    from jaxmodel.data.sources import documents

    _, part = documents(workdir / "texts").split(0.2)
    return [document.text.encode() for document in part]


def test_all_that_was_held_out_is_evaluated_exactly(call, workdir, heldout):
    code, out, err = call(f"--checkpoint={workdir}")
    assert (code, err) == (0, "")
    found = json.loads((workdir / "eval.json").read_text())
    text = b"".join(heldout)
    assert_close(found, naive(workdir, text, heldout))
    assert (found["step"], found["bytes"], found["tokens"]) == (5, len(text), len(text) + len(heldout))
    assert found["data"]["path"] == str(workdir / "texts")
    line = next(line for line in out.splitlines() if line.startswith("loss "))
    for number in (f"{found['loss']:.4f}", f"{found['bits_per_byte']:.3f}", f"{found['gzip_bits_per_byte']:.3f}"):
        assert number in line
    assert str(workdir / "eval.json") in out and "python -m recipes.generate" in out


@pytest.mark.parametrize("args", [["--batch_size=3"], ["--batch_size=8", "--mesh.data=8"]], ids=["batch", "mesh"])
def test_neither_batch_nor_mesh_changes_a_number(call, workdir, heldout, tmp_path, args):
    step = workdir / "checkpoints" / "5"
    before = sorted(path.name for path in step.iterdir())
    code, _, err = call(f"--checkpoint={step}", f"--output={tmp_path / 'numbers.json'}", *args)
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert_close(found, naive(workdir, b"".join(heldout), heldout))
    assert sorted(path.name for path in step.iterdir()) == before


def test_a_step_is_reported_with_its_run(call, workdir):
    (workdir / "eval.json").unlink(missing_ok=True)
    assert call(f"--checkpoint={workdir / 'checkpoints' / '5'}", "--data.heldout=0.1")[0] == 0
    assert json.loads((workdir / "eval.json").read_text())["data"]["heldout"] == 0.1


def test_other_text_is_laid_over_the_data_of_training(call, workdir, tmp_path):
    text = "One line of text.\n" * 40
    (tmp_path / "other.txt").write_text(text)
    args = [f"--data.path={tmp_path / 'other.txt'}", "--data.heldout=0.5", f"--output={tmp_path / 'o.json'}"]
    code, _, err = call(f"--checkpoint={workdir}", *args)
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "o.json").read_text())
    tail = text[len(text) // 2 :].encode()
    assert_close(found, naive(workdir, tail, [tail]))
    assert found["data"]["length"] == LENGTH


def test_all_of_another_text_is_evaluated_and_leaves_the_runs_own_numbers_alone(call, workdir, tmp_path):
    assert call(f"--checkpoint={workdir}")[0] == 0
    before = (workdir / "eval.json").read_bytes()
    text = "One line of text.\n" * 8
    (tmp_path / "other.txt").write_text(text)
    code, out, err = call(f"--checkpoint={workdir}", f"--data.path={tmp_path / 'other.txt'}")
    assert (code, err) == (0, "")
    assert str(workdir / "eval-other.json") in out
    found = json.loads((workdir / "eval-other.json").read_text())
    assert_close(found, naive(workdir, text.encode(), [text.encode()]))
    assert (workdir / "eval.json").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data.length=65"], "--data.length=65 is longer than the model's max_length=64: lower it"),
        (["--data.length=0"], "--data.length=0: must be a whole number of at least 1"),
        (["--data.path=/no/such"], "data.path"),
        (["--data.tokenizer=byte"], "unknown flag --data.tokenizer"),
        (["--checkpoint=/no/such"], "/no/such: there is no such folder"),
        (["--batch_size=3", "--mesh.data=8"], "mesh.data=8 does not divide batch_size=3"),
        (["--output=/no/such/eval.json"], "--output=/no/such/eval.json: there is no folder /no/such"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(call, workdir, args, words):
    code, _, err = call(f"--checkpoint={workdir}", *args)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert words in err


def test_what_has_no_tokenizer_is_refused(call, tmp_path):
    code, _, err = call(f"--checkpoint={classifier(tmp_path / 'conv')}")
    assert code == 2
    assert err.startswith(
        f"error: --checkpoint={tmp_path / 'conv'} holds no tokenizer and no table: only what recipes.train made"
    )


def test_help_does_not_wait_for_jax():
    code = "import sys, runpy; sys.argv[1:] = ['--help']; runpy.run_module('recipes.eval', run_name='__main__')"
    check = f"try:\n {code}\nexcept SystemExit as end:\n assert not end.code and 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--data.path" in done.stdout and "--batch_size" in done.stdout
