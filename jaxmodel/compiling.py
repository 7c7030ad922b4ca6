"""How XLA is asked to compile what runs long: training steps and the decoding loop."""

from __future__ import annotations

import jax


def compiler_options() -> dict[str, str] | None:
    """For `jax.jit`: on CPU, run independent operations side by side (3 to 5 % on two cores); else nothing."""
    if jax.default_backend() != "cpu":
        return None
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_CONCURRENCY_OPTIMIZED"}
