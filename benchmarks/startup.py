"""Seconds from starting Python to the end of the first training step of the 10M GPT, with a warm compile cache."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.train_step import SHAPES


def measure(rounds: int = 3) -> dict:
    """The recipe itself on the built-in text; the first round fills the caches and is not counted."""
    shape, seconds = SHAPES["10m"], []
    for i in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            flags = [
                "--model=gpt2", f"--model.num_layers={shape.layers}", f"--model.embed_dim={shape.dim}",
                f"--model.attention.num_heads={shape.heads}", f"--model.mlp.dim={4 * shape.dim}",
                f"--model.vocab_size={shape.vocab}", f"--data.vocab_size={shape.vocab}",
                f"--data.length={shape.length}", f"--train.batch_size={shape.batch}",
                "--train.steps=1000000", "--train.log_every=1",
                f"--workdir={folder}/run",
            ]  # fmt: skip
            start = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "recipes.train", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            metrics = Path(folder) / "run" / "metrics.jsonl"
            while not (metrics.exists() and metrics.read_text().count("\n")):
                if process.poll() is not None:
                    raise RuntimeError(f"recipes.train ended with {process.returncode}")
                time.sleep(0.02)
            if i:
                seconds.append(time.perf_counter() - start)
            process.kill()
            process.wait()
    return {"seconds": sorted(seconds)[len(seconds) // 2], "all": [round(s, 2) for s in seconds]}


if __name__ == "__main__":
    print(measure())
