"""Bytes that a process holds at most while it trains the GPT of `train_step`, beyond what importing costs."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import train_step
from benchmarks.duel import start

STEPS = 3


def measure(shape: str = "10m") -> dict:
    """Our bytes over torch's, both from Linux's count of resident memory: its peak, less what imports left.

    `ratio` is of the peak during steps, after one that compiled and allocated: weights, optimizer state,
    gradients, activations and, of ours, the compiled program. `ratio_with_start` has the peak of all that
    comes after the imports, so also that of making the weights and compiling.
    """
    found = {}
    for who in ("ours", "theirs"):
        command = [sys.executable, "-m", "benchmarks.memory", who, shape]
        found[who] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    ours, theirs = found["ours"], found["theirs"]
    ratios = {name: ours[key] / theirs[key] for name, key in (("ratio", "steps"), ("ratio_with_start", "all"))}
    return ratios | {"ours_MB": ours["steps"], "theirs_MB": theirs["steps"], "MB": found}


def _contend(who: str, shape: str) -> dict[str, float]:
    """Megabytes beyond those after the imports: at most in the steps after the first, and at most in all."""
    if who == "ours":
        import jax

        from jaxmodel import optim, options, tasks, train  # noqa: F401
        from jaxmodel.models import presets, transformer  # noqa: F401

        jax.devices()
    else:
        import torch  # noqa: F401  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]

        _ = transformers.GPT2LMHeadModel  # imported when first looked up
    imported = megabytes("VmRSS")
    turn = {"ours": train_step.ours, "theirs": train_step.theirs}[who](train_step.SHAPES[shape]).turn
    turn()
    start = megabytes("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    for _ in range(STEPS):
        turn()
    steps = megabytes("VmHWM")
    return {"steps": steps - imported, "all": max(start, steps) - imported, "imports": imported}


def megabytes(key: str) -> float:
    """Of this process, by its key in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    start(sys.argv[1])
    print(json.dumps(_contend(*sys.argv[1:])))
