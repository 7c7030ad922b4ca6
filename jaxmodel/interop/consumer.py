"""The real consumer of an export: a process of its own that can import jax and what jax needs, and nothing else.

Run as a script, `python -I -S consumer.py '{"paths": […], "loader": …, "jobs": […]}'`; it imports nothing of
jaxmodel, and the guard sees to it that nobody else does.
"""

import importlib.machinery
import importlib.util
import json
import sys

ALLOWED = ("jax", "jaxlib", "numpy", "flatbuffers", "ml_dtypes", "opt_einsum", "scipy")
# Python's own build settings, and what jax finds an accelerator with: their names depend on the machine.
BEGINNINGS = ("_sysconfigdata", "jax_plugins", "jax_cuda", "jax_rocm", "nvidia", "libtpu")


class Guard(importlib.machinery.PathFinder):
    """Finds the standard library and what is allowed; for it nothing else is installed."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        """As its base, or None for what is not allowed."""
        top = fullname.partition(".")[0]
        allowed = top in sys.stdlib_module_names or top in ALLOWED or top.startswith(BEGINNINGS)
        return super().find_spec(fullname, path, target) if allowed else None


def guard(paths):
    """From here on only what is allowed can be imported, from `paths` beside the standard library."""
    sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, Guard]
    sys.path.extend(paths)


def run(job, loader):
    """Call the programs of one export in order, a cache handed from one to the next; write what they give.

    The job names the export, an .npz of batches ("0/tokens": of call 0), the calls, and the cache's sizes; what
    comes back ("0/logits") is float64, which holds every smaller float exactly.
    """
    import numpy as np

    weights, programs, cache = loader.load(job["directory"])
    probe = np.load(job["probe"])
    state, found = None, {}
    for i, name in enumerate(job["calls"]):
        batch = {key.partition("/")[2]: probe[key] for key in probe.files if key.startswith(f"{i}/")}
        if name in ("prefill", "decode"):
            state = cache(**job["sizes"]) if state is None else state
            values, state = programs[name](weights, batch, state)
        else:
            values = programs[name](weights, batch)
        found |= {f"{i}/{key}": np.asarray(value).astype(np.float64) for key, value in values.items()}
    np.savez(job["output"], **found)


def main(order):
    """Run every job; say which jax, on what."""
    guard(order["paths"])
    spec = importlib.util.spec_from_file_location("loader", order["loader"])
    assert spec is not None and spec.loader is not None
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    for job in order["jobs"]:
        run(job, loader)
    import jax

    print(json.dumps({"jax": jax.__version__, "backend": jax.default_backend()}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
