"""`python -m recipes.predict`: arrays in, arrays out, and every mistake one line."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.loading import load
from recipes._flags import run
from recipes.predict import COMMAND, main
from tests.contract import batch_of, built, params_of, relative
from tests.saved import BYTES, classifier, language_model

ROOT = Path(__file__).parents[2]
ROWS = 11


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {"lm": language_model(folder / "lm"), "conv": classifier(folder / "conv")}


@pytest.fixture
def call(runs, monkeypatch, capsys, tmp_path):
    """Runs the recipe in this process: (run, arrays, flags) -> (exit code, arrays that were written, stderr)."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))

    def call(name: str, arrays, *args: str):
        np.savez(tmp_path / "in.npz", **arrays)
        flags = [f"--checkpoint={runs[name]}", f"--input={tmp_path / 'in.npz'}", f"--output={tmp_path / 'out'}"]
        code = run(main, COMMAND, ["predict", *flags, *args])
        written = dict(np.load(tmp_path / "out")) if (tmp_path / "out").exists() else {}
        return code, written, capsys.readouterr().err

    return call


def texts(rows: int = ROWS, length: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, BYTES.vocab_size, (rows, length))


def test_a_classifier_predicts_with_the_statistics_it_was_saved_with(call, runs):
    images = batch_of("conv", rows=ROWS)["images"].astype(np.float64)  # any width of float will do
    code, written, err = call("conv", {"images": images}, "--batch_size=4")
    assert (code, err) == (0, "")
    state = load(runs["conv"]).model_state
    expected = jax.jit(built("conv").apply)(params_of("conv"), {"images": images.astype(np.float32)}, state)
    assert set(written) == {"logits", "embedding", "hidden"}
    assert written["logits"].shape == (ROWS, 10)
    assert relative(written, {name: expected[name] for name in written}) < 1e-6
    fresh = jax.jit(built("conv").apply)(params_of("conv"), {"images": images}, built("conv").start())
    assert relative(written["logits"], fresh["logits"]) > 1e-2


def test_a_language_model_reads_tokens_and_mask(call, runs):
    tokens, mask = texts(), np.arange(9) < np.arange(ROWS)[:, None] % 9 + 1
    code, written, err = call("lm", {"tokens": tokens, "mask": mask}, "--batch_size=4", "--values=logits")
    assert (code, err) == (0, "")
    loaded = load(runs["lm"])
    expected = jax.jit(loaded.model.apply)(loaded.params, {"tokens": jnp.asarray(tokens), "mask": mask})
    assert set(written) == {"logits"}
    assert relative(written["logits"], expected["logits"]) < 1e-6


def test_the_batch_size_changes_nothing(call):
    tokens = {"tokens": texts()}
    whole = call("lm", tokens, "--batch_size=100")[1]
    assert set(whole) == {"logits", "hidden"} and len(whole["hidden"]) == ROWS
    assert relative(call("lm", tokens, "--batch_size=5")[1], whole) < 1e-6


@pytest.mark.parametrize(
    ("name", "arrays", "args", "words"),
    [
        ("lm", {"tokns": texts()}, [], "the model does not read tokns: it reads tokens, segments, positions, mask"),
        ("lm", {"mask": texts() > 3}, [], "tokens is missing: the model reads tokens int32[batch, length]"),
        ("lm", {"tokens": texts()[0]}, [], "tokens is int64[9], the model reads int32[batch, length]: change"),
        ("lm", {"tokens": texts() / 2}, [], "tokens is float64[11, 9], the model reads int32[batch, length]: convert"),
        ("lm", {"tokens": texts(), "mask": texts()}, [], "mask is int64[11, 9], the model reads bool[batch, length]"),
        ("lm", {"tokens": texts(), "mask": texts(5) > 3}, [], "tokens has batch 11, mask has batch 5: make them equal"),
        ("lm", {"tokens": texts(), "mask": texts(11, 8) > 3}, [], "tokens has length 9, mask has length 8"),
        ("lm", {"tokens": texts() + 1}, [], "the model's vocabulary is 0 to 256: encode with its own tokenizer"),
        ("lm", {"tokens": texts() - 1}, [], "tokens holds -1 to "),
        ("lm", {"tokens": texts(3, 65)}, [], "65"),
        ("lm", {"tokens": texts(0)}, [], "tokens is int64[0, 9]: give it numbers, and at least one row"),
        ("lm", {"tokens": texts().astype(str)}, [], "give it numbers"),
        ("lm", {"tokens": texts(), "positions": texts() + 2**32}, [], "out of range"),
        ("lm", {}, [], "in.npz holds no arrays"),
        ("lm", {"tokens": texts()}, ["--values=logit"], "the model gives no value logit: did you mean logits?"),
        ("lm", {"tokens": texts()}, ["--input=/no/such.npz"], "/no/such.npz: there is no such file"),
        ("lm", {"tokens": texts()}, [f"--input={__file__}"], "is no .npz file of plain arrays"),
        ("lm", {"tokens": texts()}, ["--input=/"], "is no .npz file of plain arrays"),
        ("lm", {"tokens": np.array([{}])}, [], "is no .npz file of plain arrays"),
        ("lm", {"tokens": texts()}, ["--output=/no/such/o.npz"], "--output=/no/such/o.npz: there is no folder"),
        ("lm", {"tokens": texts()}, ["--output=/"], "--output=/ is a folder: name a file"),
        ("conv", {"images": np.zeros((2, 8, 8, 3), np.float32)}, [],
         "images is float32[2, 8, 8, 3], the model reads float32[batch, height, width, 1]: change its shape"),
        ("conv", {"images": np.zeros((2, 8, 8, 1), np.uint8)}, [],
         "images is uint8[2, 8, 8, 1], the model reads float32[batch, height, width, 1]: convert it as it was for"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(call, name, arrays, args, words):
    code, written, err = call(name, arrays, *args)
    assert (code, written) == (2, {})
    assert err.startswith("error: ") and err.count("\n") == 1
    assert words in err


def test_a_single_array_has_no_name(call, tmp_path):
    np.save(tmp_path / "one.npy", texts())
    code, _, err = call("lm", {"tokens": texts()}, f"--input={tmp_path / 'one.npy'}")
    assert code == 2 and "holds a single array without a name: write it with np.savez" in err


def test_help_does_not_wait_for_jax():
    code = "import sys, runpy; sys.argv[1:] = ['--help']; runpy.run_module('recipes.predict', run_name='__main__')"
    check = f"try:\n {code}\nexcept SystemExit as end:\n assert not end.code and 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--values" in done.stdout and "--batch_size" in done.stdout
