"""Every measurement, side by side with its peer: python -m benchmarks.run [NAME …]

Needs the peers (the extra `oracle`). Writes benchmarks/results/NAME.json with versions and hardware, adds a line to
results/history.jsonl, and prints a line for each bound. The machine should have nothing else to do; ratios come from
turns taken one after the other.
"""

import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path

from benchmarks import commands, export_size, load_safetensors, memory, prepare, startup
from benchmarks.duel import duel

RESULTS = Path(__file__).parent / "results"


def against_peer(module: str, *args: str, rounds: int) -> dict:
    """Our contestant and theirs, which take the same arguments."""
    return duel((module, "ours", *args), (module, "theirs", *args), rounds)


def batches() -> dict:
    """Against a DataLoader that gives the same, and (`ratio_to_bare`) one that gives tokens and targets alone."""
    module = "benchmarks.batches"
    same, bare = (duel((module, "ours"), (module, who)) for who in ("theirs", "bare"))
    return same | {"ratio_to_bare": bare["ratio"], "bare": bare["theirs"]}


# name -> (what it is, how to measure it, and the bounds that its numbers are held against)
MEASUREMENTS = {
    "train_step_10m": (
        "training step, 10M GPT (L6 D384 H6 V1024 T256 B16), AdamW, float32: tokens/s, ratio to Hugging Face eager",
        lambda: against_peer("benchmarks.train_step", "10m", rounds=5),
        {"ratio": (">=", 1.0, 1.2)},
    ),
    "train_step_124m": (
        "training step, GPT-2 124M shape, batch 4 x 256, AdamW, float32: tokens/s, ratio to Hugging Face eager",
        lambda: against_peer("benchmarks.train_step", "124m", rounds=3),
        {"ratio": (">=", 1.0, 1.25)},
    ),
    "train_memory_10m": (
        "peak resident memory of the 10M training step beyond that of the imports: MB, ratio to torch's",
        memory.measure,
        {"ratio": ("<=", 1.0, 1.0)},
    ),
    "resnet18": (
        "training step, ResNet-18 with a 3x3 stem, batch 32 of 64x64: images/s, ratio to eager torch",
        lambda: against_peer("benchmarks.resnet18", rounds=3),
        {"ratio": (">=", 1.0, 1.0)},
    ),
    "decode_batch_1": (
        "greedy decoding, GPT-2 124M shape, prompt 32 + 64 new, batch 1: tokens/s, ratio to Hugging Face generate",
        lambda: against_peer("benchmarks.decode", "1", rounds=5),
        {"ratio": (">=", 2.0, 2.0)},
    ),
    "decode_batch_8": (
        "the same, batch 8",
        lambda: against_peer("benchmarks.decode", "8", rounds=5),
        {"ratio": (">=", 3.0, 3.0)},
    ),
    "token_batches": (
        "shuffled packed batches of 16 x 256 from a memory map: tokens/s, ratio to torch's DataLoader",
        batches,
        {"ratio": (">=", 10.0, 10.0)},
    ),
    "answers": (
        "recipes.train --help, the same of a preset, and a mistyped flag: seconds",
        commands.answers,
        {name: ("<=", 1.5, 1.5) for name in ("help", "help_of_preset", "mistake")},
    ),
    "imports": (
        "import of the public names, and of all that training needs: seconds, ratio to jax + flax.linen + optax",
        commands.imports,
        {name: ("<=", 1.2, 1.2) for name in ("ratio", "ratio_training")},
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
    "load_safetensors": (
        "1 GB of safetensors to stacked, transposed jax arrays: ratio of speed to load_file, peak memory over size",
        load_safetensors.measure,
        {f"ratio_{name}": (">=", 0.5, 0.5) for name in load_safetensors.DTYPES}
        | {f"memory_{name}": ("<=", 1.3, 1.3) for name in load_safetensors.DTYPES},
    ),
    "prepare": (
        "recipes.prepare of 100 MB of text, one file, tokenizer trained on it: seconds, peak resident memory in MB",
        prepare.measure,
        {"seconds": ("<=", 60.0, 60.0), "MB": ("<=", 1000.0, 1000.0)},
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


def write(folder: Path, name: str, result: dict) -> None:
    """A measurement, with the hardware it is `on`, as NAME.json and as a line of the history."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    with (folder / "history.jsonl").open("a") as history:
        history.write(json.dumps(_in_short(name, result)) + "\n")


def _in_short(name: str, result: dict) -> dict:
    on = result["on"]
    numbers = {key: float(f"{value:.4g}") for key, value in result.items() if isinstance(value, float)}
    versions = " ".join(f"{key} {value}" for key, value in on["versions"].items())
    devices = ", ".join(filter(None, (on.get("gpu"), on["cpu"])))
    where = f"{devices}, {on['cores']} cores, Python {on['python']}, {versions}"
    return {"name": name, "date": on["date"], **numbers, "on": where}


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
                f"{name}: {key} {found[key]:.3f} ({sense} {floor}, goal {goal}) {'ok' if ok else 'MISSED'}", flush=True
            )
        write(RESULTS, name, {"what": what, **found, "bounds": verdicts, "on": hardware()})
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
