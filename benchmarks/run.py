"""Every measurement, side by side with its peer: python -m benchmarks.run [NAME …]

Needs the peers (the extra `oracle`). Writes benchmarks/results/NAME.json with versions and hardware, and prints a
line for each. The machine should have nothing else to do; ratios come from turns taken one after the other.
"""

import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path

from benchmarks import export_size, startup
from benchmarks.duel import duel

RESULTS = Path(__file__).parent / "results"


def against_peer(module: str, *args: str, rounds: int) -> dict:
    """Our contestant and theirs, which take the same arguments."""
    return duel((module, "ours", *args), (module, "theirs", *args), rounds)


# name -> (what it is, how to measure it, and the bounds that its numbers are held against)
MEASUREMENTS = {
    "train_step_10m": (
        "training step, 10M GPT (L6 D384 H6 V1024 T256 B16), AdamW, float32: tokens/s, ratio to Hugging Face eager",
        lambda: against_peer("benchmarks.train_step", rounds=5),
        {"ratio": (">=", 0.75, 1.0)},
    ),
    "decode_batch_1": (
        "greedy decoding, GPT-2 124M shape, prompt 32 + 64 new, batch 1: tokens/s, ratio to Hugging Face generate",
        lambda: against_peer("benchmarks.decode", "1", rounds=5),
        {"ratio": (">=", 2.0, 2.0)},
    ),
    "decode_batch_8": (
        "the same, batch 8",
        lambda: against_peer("benchmarks.decode", "8", rounds=5),
        {"ratio": (">=", 1.8, 1.8)},
    ),
    "startup": (
        "from the command to the end of the first step, 10M GPT, warm caches: seconds",
        startup.measure,
        {"seconds": ("<=", 9.0, 9.0)},
    ),
    "export_size": (
        "bytes of quantized weights over float32, GPT-2 124M shape",
        export_size.measure,
        {"int8": ("<=", 0.27, 0.27), "int4": ("<=", 0.17, 0.17)},
    ),
}


def hardware() -> dict:
    """What it ran on, and with which versions."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    names = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "transformers")
    installed = {name: _version(name) for name in names}
    return {
        "cpu": cpu.partition(":")[2].strip() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version for name, version in installed.items() if version},
        "date": time.strftime("%Y-%m-%d"),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main(names: list[str]) -> int:
    """Measure what is named, or all; 0 if every floor holds."""
    unknown = sorted(set(names) - MEASUREMENTS.keys())
    if unknown:
        print(f"no measurement {', '.join(unknown)}; there are {', '.join(MEASUREMENTS)}", file=sys.stderr)
        return 2
    RESULTS.mkdir(exist_ok=True)
    held = True
    for name in names or MEASUREMENTS:
        what, measure, bounds = MEASUREMENTS[name]
        found = measure()
        verdicts = {}
        for key, (sense, floor, goal) in bounds.items():
            ok = found[key] >= floor if sense == ">=" else found[key] <= floor
            held &= ok
            verdicts[key] = {"floor": floor, "goal": goal, "holds": ok}
            print(
                f"{name}: {key} {found[key]:.3f} ({sense} {floor}, goal {goal}) {'ok' if ok else 'MISSED'}",
                flush=True,
            )
        result = {"what": what, **found, "bounds": verdicts, "on": hardware()}
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
