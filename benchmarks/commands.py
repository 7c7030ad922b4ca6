"""Seconds until a command answers a question or a mistake, and what importing the library costs."""

import os
import statistics
import subprocess
import sys
import time

LIBRARY = "import jaxmodel; [getattr(jaxmodel, name) for name in jaxmodel.__all__]"
TRAINING = LIBRARY + "; import jaxmodel.train, jaxmodel.optim, jaxmodel.tasks, jaxmodel.models.transformer"
PEERS = "import jax, flax.linen, optax"


def answers(rounds: int = 5) -> dict:
    """Medians: `--help`, that of a preset, and the one line about a mistyped flag."""
    asked = {
        "help": (["--help"], 0),
        "help_of_preset": (["--model=gpt2", "--help"], 0),
        "mistake": (["--model=gpt2", "--train.stepz=3"], 2),
    }
    recipe = ["-m", "recipes.train"]
    return {
        name: statistics.median(_seconds(recipe + flags, code) for _ in range(rounds))
        for name, (flags, code) in asked.items()
    }


def imports(rounds: int = 7) -> dict:
    """Medians of the ratios of process starts that take turns; the first of each fills the caches.

    `ratio` is of every public name of the package, `ratio_training` of what a training run imports too.
    """
    programs = {"ours": LIBRARY, "training": TRAINING, "theirs": PEERS}
    rows = [{name: _seconds(["-c", program]) for name, program in programs.items()} for _ in range(rounds + 1)][1:]

    def ratio(name: str) -> float:
        return statistics.median(row[name] / row["theirs"] for row in rows)

    medians = {name: statistics.median(row[name] for row in rows) for name in programs}
    return {**medians, "ratio": ratio("ours"), "ratio_training": ratio("training")}


def _seconds(args: list[str], code: int = 0) -> float:
    # Bytecode is kept, as it is unless told otherwise: of the peers pip has compiled it.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *args]
    start = time.perf_counter()
    process = subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    if process.returncode != code:
        raise RuntimeError(f"{process.args} ended with {process.returncode}")
    return seconds


if __name__ == "__main__":
    print(answers(), imports())
