"""The proof of an export: a process that knows nothing of jaxmodel runs it, and every number is compared."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodel import config as configs
from jaxmodel import weights
from jaxmodel.interop import consumer, transformers_consumer
from jaxmodel.interop.signature import Array, cache_of, inputs_of, of_config
from jaxmodel.interop.stablehlo import CACHED, values_of
from jaxmodel.model import Model, Params, State
from jaxmodel.nn.stack import unstack

ROWS, LENGTH, DECODED, OTHER = 2, 12, 4, 16
# transformers multiplies in another order: its numbers are near, where the same tensors mean the same.
NEAR = 1e-3
THEIRS = {
    "tokens": "input_ids",
    "images": "pixel_values",
    "decoder_tokens": "decoder_input_ids",
    "frames": "input_features",
}


class Subject(NamedTuple):
    """An export, and what it was made from."""

    directory: Path
    model: Model
    params: Params
    state: State = None


class Proof(NamedTuple):
    """Who ran the export, and by how much it deviates at most: 0 where every bit is the same."""

    consumer: str
    max_deviation: float


class Unproved(Exception):
    """The consumer is not installed; says what is missing."""


def prove(*subjects: Subject) -> list[Proof]:
    """Run exports in one process of their own, and compare what they give with the jitted models, bit for bit.

    Each forward program is called once, prefill once, decode a few times; rows are padded, packed and of unequal
    lengths. All run on CPU where there is one: an accelerator belongs to one process at a time, and chooses its
    algorithms by timing them.

    Raises:
      RuntimeError: the consumer failed, or a number differs.
    """
    with tempfile.TemporaryDirectory() as name, _on_cpu():
        jobs = [_job(subject, Path(name) / str(i)) for i, subject in enumerate(subjects)]
        with _start(jobs) as process:
            try:
                expected = [_expected(subject, job) for subject, job in zip(subjects, jobs, strict=True)]
                said, error = process.communicate()
            finally:
                process.kill()  # it has ended, unless something failed here
        if process.returncode:
            raise RuntimeError(f"the consumer of the export failed ({process.returncode}):\n{error}")
        report = json.loads(said.splitlines()[-1])
        who = f"jax.export in a separate process, jax {report['jax']}, {report['backend']}"
        return [
            Proof(who, _deviation(subject.directory, want, dict(np.load(job["output"]))))
            for subject, want, job in zip(subjects, expected, jobs, strict=True)
        ]


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    """Compute on CPU if this process has one, or else where it computes anyway."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        device = jax.local_devices()[0]
    with jax.default_device(device):
        yield


def _start(jobs: Sequence[Mapping[str, Any]]) -> subprocess.Popen[str]:
    """The consumer at work: isolated, without site-packages but for those it may import from."""
    backend = jnp.zeros(()).device.platform  # type: ignore[union-attr]
    order = {"paths": import_paths(), "loader": str(Path(consumer.__file__).with_name("loader.py")), "jobs": jobs}
    # Without a CPU the names are the user's own: jax takes "gpu", as devices say, for every maker's.
    platforms = backend if backend == "cpu" else jax.config.values["jax_platforms"] or backend
    environment = os.environ | {"JAX_PLATFORMS": platforms, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if backend == "cpu" and "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        # There are as many threads as devices at least, and a product may be cut by the number of threads.
        environment["JAX_NUM_CPU_DEVICES"] = str(jax.local_device_count(backend))
    compiled = jax.config.values["jax_compilation_cache_dir"]
    if compiled:
        environment["JAX_COMPILATION_CACHE_DIR"] = compiled
    command = [sys.executable, "-I", "-S", consumer.__file__, json.dumps(order)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def import_paths() -> list[str]:
    """The folders that hold what the consumer may import."""
    specs = (importlib.util.find_spec(name) for name in consumer.ALLOWED)
    return sorted({str(Path(spec.origin).parents[1]) for spec in specs if spec is not None and spec.origin})


def _job(subject: Subject, place: Path) -> dict[str, Any]:
    """What the consumer is to do with one export, its batches written down."""
    about = json.loads((subject.directory / "model.json").read_text(encoding="utf-8"))
    length = min(LENGTH, about["limits"].get("length", LENGTH))
    decoded = min(DECODED, length - 1)
    calls = [name for name in about["programs"] if name not in CACHED]
    if about["cache"]:
        calls += ["prefill", *["decode"] * decoded]
    vocab = of_config(subject.model.config, "vocab_size") or 2
    rng = np.random.default_rng(0)
    probe = {}
    for i, name in enumerate(calls):
        sizes = {"batch": ROWS, "length": length - decoded if name == "prefill" else length}
        for key, each in about["programs"][name]["inputs"].items():
            shape = tuple(d if isinstance(d, int) else sizes.get(d, OTHER) for d in each["shape"])
            probe[f"{i}/{key}"] = _array(key, each["dtype"], shape, vocab, rng)
    np.savez(place.with_suffix(".probe.npz"), **probe)
    return {
        "directory": str(subject.directory),
        "probe": str(place.with_suffix(".probe.npz")),
        "calls": calls,
        "sizes": {"batch": ROWS, "capacity": length},
        "output": str(place.with_suffix(".output.npz")),
    }


def _array(name: str, dtype: str, shape: tuple[int, ...], vocab: int, rng: np.random.Generator) -> np.ndarray:
    """Something to read: noise, ids, and rows of which the last is padded and holds two documents."""
    if name in ("mask", "segments", "positions") and shape[1] > 1:
        last, step = np.arange(shape[0])[:, None] == shape[0] - 1, np.arange(shape[1])
        pad, half = shape[1] // 4, shape[1] // 2
        padding, second = last & (step < pad), last & (step >= half)
        if name == "mask":
            return ~padding
        if name == "segments":
            return np.where(padding, 0, 1 + second).astype(dtype)
        return np.where(padding, 0, step - np.where(second, half, last * pad)).astype(dtype)
    if dtype == "bool":
        return np.ones(shape, bool)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, vocab, shape).astype(dtype)
    return rng.normal(size=shape).astype(dtype)


def _expected(subject: Subject, job: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What the jitted model makes of the same calls, with the same weights."""
    model, cache = subject.model, cache_of(subject.model)
    here = jnp.zeros(()).device
    params, statistics = jax.device_put((unstack(subject.params, cache.like), subject.state or {}), here)
    probe = np.load(job["probe"])

    @jax.jit
    def run(params: Params, batch: Any, state: State) -> Any:
        out = model.apply(params, batch, state or None)
        return values_of(out), out.state

    state, found = None, {}
    for i, name in enumerate(job["calls"]):
        batch = {key.partition("/")[2]: probe[key] for key in probe.files if key.startswith(f"{i}/")}
        if name in CACHED:
            state = cache.empty(statistics, **job["sizes"]) if state is None else state
            values, state = run(params, batch, state)
        else:
            values, _ = run(params, batch, statistics)
        found |= {f"{i}/{key}": np.asarray(value).astype(np.float64) for key, value in values.items()}
    return found


def _deviation(directory: Path, want: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> float:
    """The largest difference; RuntimeError, naming where, if there is one."""
    assert want.keys() == got.keys(), (sorted(want), sorted(got))
    for name, value in want.items():
        if not np.array_equal(value, got[name], equal_nan=True):
            worst = float(np.max(np.abs(value - got[name])))
            raise RuntimeError(f"{directory}: the export deviates from the jitted model by {worst} in call {name}")
    return 0.0


def prove_transformers(subject: Subject) -> tuple[Proof, str]:
    """Have transformers, in a process of its own, run a Hugging Face directory, and compare with ours in float32.

    Returns:
      The proof, whose deviation is relative to the largest value, and what the process wrote to stderr.

    Raises:
      Unproved: transformers or torch cannot be imported there.
      RuntimeError: the consumer failed, or it computes something else.
    """
    batch = _plain_batch(subject)
    theirs: dict[str, Any] = {THEIRS[name]: _as_theirs(name, value) for name, value in batch.items()}
    with tempfile.TemporaryDirectory() as name:
        probe, output = Path(name, "probe.npz"), Path(name, "output.npz")
        np.savez(probe, **theirs)
        ran = subprocess.run(
            [sys.executable, transformers_consumer.__file__, str(subject.directory), str(probe), str(output)],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        if ran.returncode:
            raise RuntimeError(f"transformers could not run the export ({ran.returncode}):\n{ran.stderr}")
        report = json.loads(ran.stdout.splitlines()[-1])
        if "missing" in report:
            raise Unproved(report["missing"])
        got = dict(np.load(output))
    want = _in_float32(subject, batch)
    # Of a tower alone ours does not say whose embedding it is.
    got = {name if name in want else name.rpartition("_")[2]: value for name, value in got.items()}
    assert got and got.keys() <= want.keys(), (sorted(got), sorted(want))
    worst = 0.0
    for name, value in got.items():
        deviation = float(np.max(np.abs(value - want[name])) / np.max(np.abs(want[name])))
        if not deviation < NEAR:
            raise RuntimeError(f"{subject.directory}: {name} of transformers deviate by {deviation}")
        worst = max(worst, deviation)
    who = (
        f"{report['architecture']} in a separate process, transformers {report['transformers']}, "
        f"torch {report['torch']}"
    )
    return Proof(who, worst), ran.stderr


def _plain_batch(subject: Subject) -> dict[str, np.ndarray]:
    """Whole rows of images or sound, or of tokens, none of which pads, begins or ends."""
    config = json.loads((subject.directory / "config.json").read_text(encoding="utf-8"))
    vocab = of_config(subject.model.config, "vocab_size") or 2
    roles = [config.get(f"{role}_token_id") for role in ("pad", "bos", "eos")]
    # Where images stand among the tokens, the first are those of one.
    image_token, places = (of_config(subject.model.config, name) for name in ("image_token", "num_vectors"))
    special = {i for each in [*roles, image_token] for i in (each if isinstance(each, list) else [each])}
    plain = np.array([i for i in range(vocab) if i not in special] or [0])
    most = (of_config(subject.model.config, "limits") or {}).get("length", sys.maxsize)
    length = min(LENGTH + (places or 0), most)
    rng, sizes = np.random.default_rng(0), {"batch": ROWS, "length": length}
    found, reads = {}, dict(inputs_of(subject.model))
    sound = getattr(of_config(subject.model.config, "encoder") or subject.model.config, "spectrogram", None)
    if sound is not None:  # frames of it: each side makes them in its own way
        reads["frames"] = Array("float32", ("batch", 2 * sound.length, sound.bands))
    for name, each in reads.items():
        if name in THEIRS:
            shape = tuple(dim if isinstance(dim, int) else sizes.get(dim, OTHER) for dim in each.shape)
            array = _array(name, each.dtype, shape, len(plain), rng)
            found[name] = plain[array].astype(each.dtype) if name.endswith("tokens") else array
    if image_token is not None:
        found["tokens"][:, :places] = image_token
    return found


def _as_theirs(name: str, value: np.ndarray) -> np.ndarray:
    """Channels before rows and columns, bands before frames; ids of 64 bits."""
    return np.moveaxis(value, -1, 1) if name in ("images", "frames") else value.astype(np.int64)


def _in_float32(subject: Subject, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What our model makes of a batch, computed in float32 whatever its weights are."""
    config = subject.model.config
    paths = ["execution", *(f"{name}.execution" for name in getattr(config, "submodels", ()))]
    known = [path for path in paths if _field(config, path) is not None]
    model = configs.replace(config, {f"{path}.dtype": "float32" for path in known}).build()
    with _on_cpu():
        here = jnp.zeros(()).device
        params, state = jax.device_put((weights.cast(subject.params, "float32"), subject.state or {}), here)
        out = jax.jit(lambda p, b, s: values_of(model.apply(p, b, s or None)))(params, dict(batch), state)
    return {name: np.asarray(value, np.float32) for name, value in out.items()}


def _field(config: Any, path: str) -> Any:
    """A field by its dotted path; None where there is none."""
    for name in path.split("."):
        config = getattr(config, name, None)
    return config
