"""How XLA is asked to compile what runs long: training steps and the decoding loop."""

from __future__ import annotations

import functools
from typing import Any

import jax

# For `weights.Streamed`: sums in any order, so that they are vectors, as wide as the processor has; NaN and infinity
# stay what they are. Only products are left to YNNPACK, which would take such sums, too; its LIBRARY_FUSION_TYPE_DOT
# makes those of 32 to 248 rows 4 to 8 times slower. A reduction stays one loop: as a tree of them, which XLA makes for
# the sake of rounding, each of a step's 80 takes 20 us.
STREAMING = {
    "xla_cpu_enable_fast_math": True,
    "xla_cpu_fast_math_honor_nans": True,
    "xla_cpu_fast_math_honor_infs": True,
    "xla_cpu_fast_math_honor_division": True,
    "xla_cpu_fast_math_honor_functions": True,
    "xla_cpu_prefer_vector_width": 512,
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    "xla_disable_hlo_passes": "tree_reduction_rewriter",
}


def compiler_options() -> dict[str, str] | None:
    """For `jax.jit`: on CPU, run independent operations side by side (3 to 5 % on two cores); else nothing."""
    if jax.default_backend() != "cpu":
        return None
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_CONCURRENCY_OPTIMIZED"}


def decoding_options() -> dict[str, Any] | None:
    """The same for a loop that multiplies a few rows by every weight: on CPU as `weights.Streamed` wants it."""
    options = compiler_options()
    return options if options is None or not streams() else options | STREAMING


@functools.cache
def streams() -> bool:
    """Whether weights should be `Streamed` for `decoding_options`: on CPU, if this XLA knows all of them."""
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(lambda: 0, compiler_options=STREAMING).lower().compile()
    except jax.errors.JaxRuntimeError:  # an experimental option: another version may have dropped it
        return False
    return True
