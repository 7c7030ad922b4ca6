"""What a GPU computes against the CPU, and how quickly beside its peers: python -m benchmarks.gpu [NAME …]

Needs one GPU, and the peers. Writes NAME.json and a line of history.jsonl into the folder that the environment variable
OUT names, by default benchmarks/results. Every program runs in a process of its own, one after the other, and what it
found is printed at once; one that fails, or that takes too long, stops no other. `--tiny` tries all of it on a CPU.
"""

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import attention, decode, numerics, train_step
from benchmarks.duel import Contender, device, speed, tell
from benchmarks.run import RESULTS, hardware, write
from benchmarks.train_step import SHAPES, Shape

TINY = Shape(layers=2, dim=64, heads=2, vocab=512, max_length=256, length=64, batch=2)
DTYPES, BATCHES = ("float32", "bfloat16"), (1, 8, 64)


def _train(side: str, contender: Contender, shape: Shape, kind: str, memory: Callable[[], float]) -> None:
    """Tokens a second, the share that is of the device's peak, and the most memory that was in use."""
    from jaxmodel.report import peak_flops

    start = time.perf_counter()
    contender.turn()
    tell(side, first_s=time.perf_counter() - start, parameters=contender.parameters)
    tokens = speed(contender.turn, 3)
    tell(side, tokens_per_s=tokens, GB=memory() / 1e9)
    flops = train_step.gpt(shape).flops_per_token(shape.length)
    tell(side, MFU=tokens * flops / (peak_flops(kind) or float("inf")))


def _shape(tiny: bool) -> Shape:
    return TINY if tiny else SHAPES["124m"]._replace(length=1024, batch=16)


def train_ours(tiny: bool, side: str = "ours", scan: bool = False) -> None:
    """Our training step, unrolled or scanned."""
    found, shape = device(tiny), _shape(tiny)
    contender = train_step.ours(shape, scan, "bfloat16")

    def memory() -> int:
        return (found.memory_stats() or {}).get("peak_bytes_in_use", 0)

    _train(side, contender, shape, found.device_kind, memory)


def train_theirs(tiny: bool, side: str = "theirs", compiled: bool = False) -> None:
    """Hugging Face's, attention by torch's fused kernel, eager or compiled."""
    import torch  # pyright: ignore[reportMissingImports]

    shape, name = _shape(tiny), "cpu" if tiny else torch.cuda.get_device_name()
    tell(gpu=name)
    contender = train_step.theirs(shape, "cpu" if tiny else "cuda", "bfloat16", compiled)
    _train(side, contender, shape, name, torch.cuda.max_memory_allocated)


def decode_ours(tiny: bool) -> None:
    """Our greedy decoding, all compiled first, side by side."""
    device(tiny)
    cases = {f"{dtype}_{batch}": (batch, dtype) for dtype in DTYPES for batch in BATCHES}
    shape, new = (TINY, 8) if tiny else (SHAPES["124m"], 128)
    turns = {key: decode.ours(batch, new, shape, dtype).turn for key, (batch, dtype) in cases.items()}
    with ThreadPoolExecutor(2 if tiny else len(turns)) as pool:
        list(pool.map(lambda turn: turn(), turns.values()))
    for key, turn in turns.items():
        tell("ours", **{key: speed(turn, 0 if tiny else 2)})


def decode_theirs(tiny: bool) -> None:
    """Hugging Face's `generate`."""
    shape, new, where = (TINY, 8, "cpu") if tiny else (SHAPES["124m"], 128, "cuda")
    for dtype in DTYPES:
        for batch in BATCHES:
            turn = decode.theirs(batch, new, shape, dtype, where).turn
            tell("theirs", **{f"{dtype}_{batch}": speed(turn, 0 if tiny else 2, least=2)})


class Program(NamedTuple):
    """One process: what it does, and the seconds that it may take."""

    run: Callable[[bool], None]
    seconds: float


# name -> (what it is, the programs, and the sides that ours is put in relation to)
MEASUREMENTS: dict[str, tuple[str, dict[str, Program], Sequence[str]]] = {
    "numerics": (
        "small GPT-2, Llama, Mixtral and Gemma 3 on GPU against float32 on CPU: norm of the difference over norm",
        {"all": Program(numerics.compare, 300)},
        (),
    ),
    "attention_gpu": (
        "causal attention, bfloat16, batch 4, 16 heads of 64, forward and backward, by length: ms and MB",
        {"jax": Program(attention.ours, 90), "torch": Program(attention.theirs, 60)},
        ("pieces", "cudnn", "torch"),
    ),
    "train_step_124m_gpu": (
        "training step, GPT-2 124M shape, batch 16 x 1024, AdamW, bfloat16: tokens/s, against Hugging Face on torch",
        {
            "ours": Program(train_ours, 150),
            "scanned": Program(functools.partial(train_ours, side="scanned", scan=True), 90),
            "theirs": Program(train_theirs, 90),
            "compiled": Program(functools.partial(train_theirs, side="compiled", compiled=True), 100),
        },
        ("scanned", "theirs", "compiled"),
    ),
    "decode_gpu": (
        "greedy decoding, GPT-2 124M shape, prompt 32 + 128 new, by dtype and batch: tokens/s, against `generate`",
        {"ours": Program(decode_ours, 150), "theirs": Program(decode_theirs, 90)},
        ("theirs",),
    ),
}


def ratios(found: dict[str, Any], sides: Sequence[str]) -> dict[str, float]:
    """Our number over that of each side, wherever both are there."""
    pairs = {
        f"{key.removeprefix('ours_')}_to_{side}": (value, found.get(key.replace("ours", side, 1)))
        for key, value in found.items()
        for side in sides
        if key.startswith("ours_") and isinstance(value, float)
    }
    return {key: a / b for key, (a, b) in pairs.items() if b}


def started(name: str, side: str, seconds: float, tiny: bool) -> tuple[dict[str, Any], bool]:
    """What a program found until its end, or until its time was up; and whether it came to a good one."""
    command = [sys.executable, "-m", "benchmarks.gpu", name, f"--side={side}", *["--tiny"] * tiny]
    quickly = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    environment = os.environ | (quickly if tiny else {"JAX_PLATFORMS": "cuda,cpu"})
    found: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, env=environment, process_group=0
        )
        assert process.stdout is not None
        timer = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        for line in process.stdout:
            if line.startswith("{"):
                found |= json.loads(line)
                print(f"{name} {side}: {line.strip()}", flush=True)
        status = process.wait()
        timer.cancel()
        if status:
            said.seek(0)
            print(*said.read().splitlines()[-12:], f"{name} {side} ended with {status}", sep="\n", flush=True)
    return found, status == 0


def main() -> int:
    """Measure what is named, or all; 0 if every program came to its end."""
    parser = argparse.ArgumentParser(description="Measurements on a GPU.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(MEASUREMENTS)}; default: all")
    parser.add_argument("--seconds", type=float, default=600, help="for all of it; what would come later is left out")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, to see whether it runs; results are not kept")
    parser.add_argument("--side", help="run this program of the one measurement that is named, here")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - MEASUREMENTS.keys()):
        parser.error(f"no measurement {', '.join(unknown)}; there are {', '.join(MEASUREMENTS)}")
    if args.side is not None:
        MEASUREMENTS[args.names[0]][1][args.side].run(args.tiny)
        return 0
    start, good, slow = time.monotonic(), True, 4 if args.tiny else 1
    folder = Path(os.environ.get("OUT") or (tempfile.mkdtemp() if args.tiny else RESULTS))
    for name in args.names or MEASUREMENTS:
        what, programs, sides = MEASUREMENTS[name]
        found: dict[str, Any] = {}
        for side, program in programs.items():
            past = time.monotonic() - start
            left = slow * args.seconds - past
            print(f"{past:.0f} s: {name} {side}{'' if left > 0 else ' left out'}", flush=True)
            more, ended = started(name, side, min(slow * program.seconds, left), args.tiny) if left > 0 else ({}, False)
            found |= more
            good &= ended
        gpu = {"gpu": found.pop("gpu")} if "gpu" in found else {}
        if found:
            to_peers = ratios(found, sides)
            print(name, json.dumps({key: round(value, 3) for key, value in to_peers.items()}), flush=True)
            write(folder, name, {"what": what, **found, **to_peers, "on": gpu | hardware()})
    print(f"{time.monotonic() - start:.0f} s: results in {folder}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
