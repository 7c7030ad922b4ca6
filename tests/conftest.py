"""Eight CPU devices and a compile cache, settled before any jax backend starts."""

import importlib.util
import os
from importlib.metadata import version
from pathlib import Path

# Before jax is imported; subprocesses inherit both. What is compiled here runs once or twice, on tiny shapes: without
# optimising, and without fusion emitters, in a quarter of the time. jaxlib 0.11 has nothing else, and no such flag.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)

import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 8)
# A sharded step takes seconds to compile: every worker, and the next run, reads what one has compiled.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

# The same examples in every run, and no time limit on machines that are busy with other tests.
hypothesis.settings.register_profile("here", database=None, deadline=None, derandomize=True)
hypothesis.settings.load_profile("here")

# These need torch and transformers, and are no tests: they made what other tests read.
collect_ignore = ["golden/make_chats.py", "golden/make_models.py"]
if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
    collect_ignore.append("oracles")
