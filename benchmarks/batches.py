"""Tokens a second of shuffled, packed batches from a memory-mapped file: our Loader, or torch's DataLoader.

Both give tokens, targets, weights, and each token's document and position within it, [16, 256] each; `bare` is a
torch that gives tokens and targets alone.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.duel import Contender, serve

TOKENS, DOCUMENT, LENGTH, BATCH, TURN = 20_000_000, 1000, 256, 16, 1000


def ours() -> Contender:
    """Windows gathered ahead in a thread."""
    from jaxmodel.data.loader import Loader
    from jaxmodel.data.packing import Windows
    from jaxmodel.data.text import Corpus

    starts = np.arange(0, TOKENS - 1, DOCUMENT)
    loader = Loader(Windows(Corpus(_mapped(), starts, num_bytes=TOKENS), LENGTH), BATCH, seed=0)

    def turn() -> float:
        # Ten times as many batches take about as long as theirs: what waits ready at the start counts for little.
        return sum(next(loader)[1]["tokens"].size for _ in range(10 * TURN))

    return Contender(turn, f"numpy {np.__version__}")


def theirs(bare: bool) -> Contender:
    """A map-style dataset, a window an item, in the process itself: on this work quicker than with workers."""
    import torch  # pyright: ignore[reportMissingImports]

    stream, starts = _mapped(), np.arange(0, TOKENS - 1, DOCUMENT)
    steps = np.arange(LENGTH)

    class Data(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return (TOKENS - 1) // LENGTH

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            first = index * LENGTH
            window = torch.from_numpy(stream[first : first + LENGTH + 1].astype(np.int64))
            item = {"tokens": window[:-1], "targets": window[1:]}
            if bare:
                return item
            low, high = np.searchsorted(starts, [first, first + LENGTH])
            began = np.zeros(LENGTH, np.int64)
            began[starts[low:high] - first] = steps[starts[low:high] - first]
            segments = np.zeros(LENGTH, np.int64)
            segments[starts[low:high] - first] = 1
            segments = np.cumsum(segments) + 1 - segments[0]
            positions = steps - np.maximum.accumulate(began)
            return item | {
                "weights": torch.ones(LENGTH),
                "segments": torch.from_numpy(segments),
                "positions": torch.from_numpy(positions),
            }

    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(Data(), BATCH, shuffle=True, drop_last=True)
    box = [iter(loader)]

    def turn() -> float:
        done = 0
        while done < TURN:
            for batch in box[0]:
                assert batch["tokens"].shape == (BATCH, LENGTH)
                done += 1
                if done == TURN:
                    break
            else:
                box[0] = iter(loader)
        return BATCH * LENGTH * TURN

    return Contender(turn, f"torch {torch.__version__}, DataLoader")


def _mapped() -> np.ndarray:
    """Random uint16 tokens in a file that ends with the process."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "tokens"
    np.random.default_rng(0).integers(0, 50257, TOKENS, np.uint16).tofile(path)
    mapped = np.memmap(path, np.uint16, "r")
    folder.cleanup()  # the map keeps what it needs
    return mapped


if __name__ == "__main__":
    serve(ours() if sys.argv[1] == "ours" else theirs(sys.argv[1] == "bare"))
