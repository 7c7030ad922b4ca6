"""The global batch of a step as a pure function: (seed, step) -> indices, with nothing to save or restore."""

import hashlib

import numpy as np

ROUNDS = 12  # an alternating Feistel network of few bits needs more than the usual four to look random


def order(seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
    """The examples in the global batch of `step` (from 0), int64[batch_size].

    Every epoch is a fresh permutation of all examples, so none is lost or repeated within one; the epochs
    are laid end to end, and a batch may straddle them. Nothing of the size of the data is ever made.

    >>> (order(seed=0, step=0, batch_size=4, num_examples=6), order(seed=0, step=1, batch_size=4, num_examples=6))
    (array([5, 4, 0, 1]), array([3, 2, 4, 2]))
    """
    if min(seed, step) < 0 or min(batch_size, num_examples) < 1:
        raise ValueError(f"no such batch: {seed=} {step=} {batch_size=} {num_examples=}")
    return stretch(seed, step * batch_size, batch_size, num_examples)


def stretch(seed: int, start: int, count: int, num_examples: int) -> np.ndarray:
    """The examples at `count` places from `start` on, int64[count]: batches laid end to end.

    Many batches at once cost little more than one: a permutation is some hundred small operations.
    """
    epochs, places = np.divmod(start + np.arange(count, dtype=np.int64), num_examples)
    indices = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        indices[now] = permute(places[now], num_examples, f"{seed}/{epoch}")
    return indices


def permute(places: np.ndarray, size: int, key: str) -> np.ndarray:
    """Where the permutation of range(size) named `key` sends `places` (int64, any shape).

    An alternating Feistel network permutes the next power of two; places that fall outside `size` walk on
    along their cycle until they come back inside, which keeps it a permutation (Black and Rogaway, "Ciphers
    with Arbitrary Finite Domains", 2002).
    """
    bits = max(2, (size - 1).bit_length())
    keys = np.frombuffer(hashlib.shake_256(key.encode()).digest(8 * ROUNDS), "<u8")
    places = _feistel(places.astype(np.uint64), bits, keys)
    while (outside := places >= size).any():
        places[outside] = _feistel(places[outside], bits, keys)
    return places.astype(np.int64)


def _feistel(places: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    low_bits, high_bits = bits // 2, bits - bits // 2
    low, high = places & np.uint64((1 << low_bits) - 1), places >> np.uint64(low_bits)
    for i, key in enumerate(keys):
        if i % 2:
            high = high ^ _hash(low ^ key, high_bits)
        else:
            low = low ^ _hash(high ^ key, low_bits)
    return (high << np.uint64(low_bits)) | low


def _hash(x: np.ndarray, bits: int) -> np.ndarray:
    """The top `bits` of two multiplications (MurmurHash3's), which every bit of `x` reaches."""
    x = x * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(32))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x >> np.uint64(64 - bits)
