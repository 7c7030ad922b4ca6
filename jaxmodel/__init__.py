"""jaxmodel: pure-function models, and weights that know how to multiply, for JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmodel.config import replace
    from jaxmodel.errors import InputError, Retryable
    from jaxmodel.loading import load
    from jaxmodel.model import Model, Outputs, chain, from_function, from_linen, from_nnx, frozen, sharded, trained
    from jaxmodel.models.presets import PRESETS
    from jaxmodel.sharding import make_mesh
    from jaxmodel.weights import join, lora, merge, observe, partition, quantize

__version__ = "0.1.0"

# Looked up on first use, so that `import jaxmodel` (and with it `--help`) does not import jax.
_HOMES = {
    "jaxmodel.config": ("replace",),
    "jaxmodel.errors": ("InputError", "Retryable"),
    "jaxmodel.loading": ("load",),
    "jaxmodel.model": (
        "Model",
        "Outputs",
        "chain",
        "from_function",
        "from_linen",
        "from_nnx",
        "frozen",
        "sharded",
        "trained",
    ),
    "jaxmodel.models.presets": ("PRESETS",),
    "jaxmodel.sharding": ("make_mesh",),
    "jaxmodel.weights": ("join", "lora", "merge", "observe", "partition", "quantize"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "PRESETS",
    "InputError",
    "Model",
    "Outputs",
    "Retryable",
    "chain",
    "from_function",
    "from_linen",
    "from_nnx",
    "frozen",
    "join",
    "load",
    "lora",
    "make_mesh",
    "merge",
    "observe",
    "partition",
    "quantize",
    "replace",
    "sharded",
    "trained",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jaxmodel' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
