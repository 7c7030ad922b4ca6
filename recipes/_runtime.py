"""What every recipe that computes sets up: the compile cache, and a polite end on SIGTERM or Ctrl-C."""

import os
import signal
from collections.abc import Callable
from pathlib import Path


def compile_cache(folder: str | None = None) -> Path:
    """Let jax keep what it compiles, so that the second start is quick; JAX_COMPILATION_CACHE_DIR comes first."""
    import jax

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or folder or home / "jaxmodel" / "compiled")
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return path


def stop_on_signal() -> Callable[[], bool]:
    """From now on SIGTERM and the first Ctrl-C only set a flag; what comes back says whether one did."""
    asked = False

    def note(number: int, _: object) -> None:
        nonlocal asked
        asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one stops at once
            log("stopping after this step, to save it; press Ctrl-C again to stop at once and lose it")

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    return lambda: asked


def log(line: str) -> None:
    """A line for the person who waits."""
    print(line, flush=True)
