"""Two programs take turns on the same cores, so that a ratio means something on a noisy machine."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxmodel.memory import use_huge_pages

# In a turn; the first does not count: after the other program's turn it runs up to 25 % slower.
REPEATS = 4


class Contender(NamedTuple):
    """What competes: `turn` works and returns how many units it has done; with no parameters, 0 of them."""

    turn: Callable[[], float]
    name: str
    parameters: int = 0


def start(who: str) -> None:
    """To be called first by a contestant: ours gets its memory as a recipe does; torch asks for little anew."""
    if who == "ours":
        use_huge_pages()


def serve(contender: Contender) -> None:
    """A contestant's main: say what it is, then work for every line read."""
    turn = contender.turn
    turn()
    print(json.dumps({"name": contender.name, "parameters": contender.parameters}), flush=True)
    for _ in sys.stdin:
        turn()
        start = time.perf_counter()
        work = sum(turn() for _ in range(REPEATS - 1))
        print(json.dumps(work / (time.perf_counter() - start)), flush=True)


def tell(side: str = "", **numbers: Any) -> None:
    """Say what was found, as soon as it is, to the process that started this one."""
    print(json.dumps({f"{side}_{key}" if side else key: value for key, value in numbers.items()}), flush=True)


def device(tiny: bool) -> Any:
    """The device of jax, told of; SystemExit where it should be a GPU and is none."""
    import jax

    found = jax.devices()[0]
    if found.platform == "cpu" and not tiny:
        sys.exit("jax finds no GPU: install the extra cuda, or try --tiny")
    tell(gpu=found.device_kind)
    return found


def speed(turn: Callable[[], float], seconds: float, least: int = 3) -> float:
    """Units a second: the median of the turns of some seconds, after one that does not count."""
    turn()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < least or time.perf_counter() < end:
        start = time.perf_counter()
        work = turn()
        found.append(work / (time.perf_counter() - start))
    return statistics.median(found)


class Contestant:
    """A subprocess running `python -m MODULE ARGS…`, which calls `serve`; it sleeps between its turns."""

    def __init__(self, module: str, *args: str):
        command = [sys.executable, "-m", module, *args]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = json.loads(self._read())

    def turn(self) -> float:
        """Units of work a second in one turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")
        return line


def duel(ours: tuple[str, ...], theirs: tuple[str, ...], rounds: int = 5) -> dict:
    """Median speeds of both over interleaved rounds, and the median of the rounds' ratios.

    Both must have as many parameters: otherwise it is not the same work.
    """
    contestants = [Contestant(*ours), Contestant(*theirs)]
    sizes = [contestant.about["parameters"] for contestant in contestants]
    assert sizes[0] == sizes[1], f"{sizes[0]} parameters against {sizes[1]}"
    speeds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for contestant, found in zip(contestants, speeds, strict=True):
            found.append(contestant.turn())
    for contestant in contestants:
        contestant.close()
    ratios = [a / b for a, b in zip(*speeds, strict=True)]
    return {
        "ours": statistics.median(speeds[0]),
        "theirs": statistics.median(speeds[1]),
        "ratio": statistics.median(ratios),
        "ratios": [round(r, 3) for r in ratios],
        "peer": contestants[1].about,
    }
