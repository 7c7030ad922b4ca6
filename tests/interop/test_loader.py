"""The loader that docs/export.md shows: it is the package's own, short, and all that it takes."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxmodel.interop import consumer, loader, stablehlo
from jaxmodel.interop.proof import import_paths
from tests.contract import built, params_of

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
LOADER = Path(loader.__file__)


def code_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)


def guarded(*lines: str, cwd: Path | None = None) -> str:
    """What lines of Python print in a process that can import what the consumer can."""
    start = f"import runpy; runpy.run_path({consumer.__file__!r}, run_name='guarded')['guard']({import_paths()!r})"
    command = [sys.executable, "-I", "-S", "-c", "\n".join([start, *lines])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_docs_show_the_loader_itself():
    assert code_blocks()[0] == LOADER.read_text()


def test_the_loader_has_fifteen_lines():
    tree = ast.parse(LOADER.read_text())
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    lines = LOADER.read_text().splitlines()[function.lineno - 1 : function.end_lineno]
    assert len([line for line in lines if line.strip() and '"""' not in line]) == 15


def test_the_guard_lets_jax_through_and_nothing_of_ours():
    blocked = ["jaxmodel", "flax", "optax", "orbax", "safetensors", "tokenizers", "absl", "recipes", "pytest"]
    for name in blocked[1:7]:
        __import__(name)  # all of them are here to be imported
    found = guarded(
        "import importlib, importlib.util, json, os, sys",
        f"sys.path.append({str(LOADER.parents[2])!r})",  # even told where to look
        "def there(name):",
        "    try:",
        "        return bool(importlib.import_module(name))",
        "    except ModuleNotFoundError:",
        "        return False",
        f"print(json.dumps({{name: there(name) for name in {['jax', 'numpy', 'flatbuffers', *blocked]!r}}}))",
    )
    assert json.loads(found) == {"jax": True, "numpy": True, "flatbuffers": True} | dict.fromkeys(blocked, False)


@pytest.mark.slow
def test_what_the_docs_say_runs(tmp_path):
    """The loader and the lines below it, in a process without jaxmodel."""
    directory = tmp_path / "runs" / "quickstart" / "export"
    directory.mkdir(parents=True)
    stablehlo.write(directory, built("gpt"), params_of("gpt"))
    said = guarded(*code_blocks()[:2], "print(values['logits'].shape, int(state['length'][0]))", cwd=tmp_path)
    assert said.splitlines() == ["(2, 4, 64)", "(2, 1, 64) 7"]


def test_weights_are_an_ordinary_safetensors_file_that_the_loader_reads(tmp_path):
    """Of every dtype that weights have, at any alignment."""
    import jax.numpy as jnp
    import ml_dtypes
    from safetensors.numpy import load_file, save_file

    arrays = {
        "a": np.arange(3, dtype=np.int8),
        "b": np.linspace(-1, 1, 5).astype(ml_dtypes.bfloat16),
        "c": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "d": np.linspace(0, 1, 4, dtype=np.float32),
        "e": np.asarray(7, np.int32).reshape(()),
        "f": np.ones((2, 1), np.float16),
        "g": np.zeros((0, 3), np.uint32),
    }
    save_file(arrays, tmp_path / "weights.safetensors")
    (tmp_path / "model.json").write_text('{"cache": {"k": {"shape": ["batch", 2], "dtype": "int32", "fill": -1}}}')
    weights, programs, cache = loader.load(tmp_path)
    assert not programs and weights.keys() == load_file(tmp_path / "weights.safetensors").keys()
    for name, array in arrays.items():
        assert weights[name].dtype == array.dtype and np.array_equal(weights[name], array)
    assert jnp.array_equal(cache(batch=3, capacity=9)["k"], -jnp.ones((3, 2), jnp.int32))
