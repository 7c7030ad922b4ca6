"""Seconds and peak memory of `recipes.prepare` on 100 MB of text: trained tokenizer, split, shards, all cores."""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxmodel.data.sources import documents

SIZE = 100_000_000


def write_text(path: Path, size: int = SIZE) -> None:
    """The standard library's sources over and over, with numbers strewn in, so that no two copies are the same."""
    generator, written = random.Random(0), 0
    with open(path, "wb") as file:
        while written < size:
            for document in documents():
                words = document.text.split(" ")
                for i in range(0, len(words), 37):
                    words[i] += str(generator.randrange(100_000))
                written += file.write(" ".join(words).encode()[: size - written])


def measure() -> dict:
    """Of a process that does it all; `MB` is its peak of resident memory."""
    with tempfile.TemporaryDirectory() as name:
        text, out = Path(name, "text.txt"), Path(name, "out")
        write_text(text)
        command = [sys.executable, "-m", "recipes.prepare", f"--input={text}", f"--output={out}"]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"recipes.prepare ended with {process.returncode}")
        size = text.stat().st_size / 1e6
    return {"seconds": seconds, "MB": usage.ru_maxrss * 1024 / 1e6, "MB_of_text": size, "MB_per_s": size / seconds}


if __name__ == "__main__":
    print(measure())
