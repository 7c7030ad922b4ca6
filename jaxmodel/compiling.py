"""How XLA is asked to compile what runs long: training steps and the decoding loop."""

from __future__ import annotations

import functools

import jax

EIGEN = {"xla_cpu_experimental_ynn_fusion_type": ""}  # no product is left to YNNPACK


def compiler_options() -> dict[str, str] | None:
    """For `jax.jit`: on CPU, run independent operations side by side (3 to 5 % on two cores); else nothing."""
    if jax.default_backend() != "cpu":
        return None
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_CONCURRENCY_OPTIMIZED"}


def decoding_options() -> dict[str, str] | None:
    """The same for a loop that multiplies a few rows by every weight: on CPU by Eigen, not YNNPACK.

    Eigen reads weights stored [in, out] a third faster then, and tables [out, in] at less than half the speed: see
    `weights.turn`.
    """
    options = compiler_options()
    return options if options is None or not wants_turned() else options | EIGEN


@functools.cache
def wants_turned() -> bool:
    """Whether `decoding_options` are such that tables should be turned: on CPU, if this XLA knows the option."""
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(lambda: 0, compiler_options=EIGEN).lower().compile()
    except jax.errors.JaxRuntimeError:  # an experimental option: another version may have dropped it
        return False
    return True
