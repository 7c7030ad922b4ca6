"""From views of files to arrays on devices: each process reads its parts alone, each of them once."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

# Where jax on CPU takes a numpy array as it lies, rather than copy it.
ALIGNMENT = 64
# Rows and columns of the source that are transposed at once, so that both sides stay in the cache: about 4 times as
# fast as numpy's own transposing copy. The padding keeps a column of the tile from falling into a few cache sets.
ROWS, COLUMNS, PADDING = 128, 1024, 64
WORTH_THREADS = 1 << 20  # bytes

Index = tuple[slice, ...]


def place(
    shape: Sequence[int], dtype: Any, sharding: jax.sharding.Sharding, read: Callable[[Index], np.ndarray]
) -> jax.Array:
    """An array on the devices of a sharding, of what `read` returns for each part that this process holds.

    Args:
      shape: of the whole array.
      dtype: of the result; what is read is cast.
      sharding: any; a part that several devices hold is read once.
      read: index (a slice with start and stop for every dim) -> that part, which it gives away: on CPU devices the
        memory of a writable array may become that of the result. Views of a file are not writable, and are copied.
    """
    shape, dtype = tuple(shape), jax.dtypes.canonicalize_dtype(dtype)
    holders: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(part.indices(dim)[:2] for part, dim in zip(index or (), shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    arrays = []
    for bounds, devices in holders.items():
        piece = read(tuple(slice(*each) for each in bounds))
        assert piece.shape == tuple(stop - start for start, stop in bounds), f"read {piece.shape} for {bounds}"
        ready = piece.dtype == dtype and piece.flags.c_contiguous and piece.ctypes.data % ALIGNMENT == 0
        if not (ready and piece.flags.writeable):
            piece = copied(piece, dtype)
        for device in devices:
            where = jax.sharding.SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
            arrays.append(jax.device_put(piece, where))
        jax.block_until_ready(arrays)  # or else the next part would be in memory beside this one
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype)


def stacked(parts: Any, index: Index, dtype: Any) -> np.ndarray:
    """The part at `index` of the array that `parts` make up, for `place`: new, aligned, filled by several threads.

    Args:
      parts: functions without arguments that return arrays of one shape, in lists nested as the leading dims: a list
        of them for [layers, in, out], a list of lists for [layers, experts, in, out], one alone for [in, out]. They
        are called when their part is copied and for that long; those outside the index never are. Transposed views
        are as good as others: `lambda: lazy.view().T`.
      index: a slice with start and stop for every dim, stacked dims first.
      dtype: of the result.
    """
    makers = np.array(parts, object)
    inner = index[makers.ndim :]
    makers = makers[(*index[: makers.ndim], ...)]  # an array even of one
    out = empty([part.stop - part.start for part in index], dtype)

    def fill(at: tuple[int, ...]) -> None:
        copy(out[(*at, ...)], makers[at]()[(*inner, ...)])  # arrays even of one number

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        # A list of what they return, for the errors; small ones are not worth a thread.
        list((pool.map if out.nbytes >= WORTH_THREADS else map)(fill, np.ndindex(makers.shape)))
    return out


def empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array to be filled, aligned so that jax on CPU takes it without a copy."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    # Not numpy's memory: it asks for huge pages, and filling those stalls wherever free memory is in pieces.
    pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.uint8, size).view(dtype).reshape(shape)


def copied(source: np.ndarray, dtype: Any = None) -> np.ndarray:
    """A contiguous, aligned copy, cast to `dtype`."""
    out = empty(source.shape, source.dtype if dtype is None else dtype)
    copy(out, source)
    return out


def copy(out: np.ndarray, source: np.ndarray) -> None:
    """Copy into a contiguous array of the same shape and any dtype; quick also where the source is transposed."""
    assert out.shape == source.shape, f"{source.shape} into {out.shape}"
    steps = [abs(step) if dim > 1 else math.inf for step, dim in zip(source.strides, source.shape, strict=True)]
    dense = steps.index(min(steps)) if steps else 0
    if not steps or steps[dense] == steps[-1] or min(source.shape[dense], source.shape[-1]) < PADDING:
        np.copyto(_bits(out, source), _bits(source, out), casting="unsafe")
        return
    source, out = np.moveaxis(source, dense, -2), np.moveaxis(out, dense, -2)
    for at in np.ndindex(source.shape[:-2]):
        _transpose(out[at], source[at].T)


def _transpose(out: np.ndarray, source: np.ndarray) -> None:
    """out = source.T, where both are dense along their second dim."""
    bits = f"u{out.itemsize}" if out.itemsize in (1, 2, 4, 8) else out.dtype
    tile = np.empty((ROWS, COLUMNS + PADDING // out.itemsize), out.dtype)
    target, turned = out.view(bits), tile.view(bits)
    for row in range(0, source.shape[0], ROWS):
        for column in range(0, source.shape[1], COLUMNS):
            block = source[row : row + ROWS, column : column + COLUMNS]
            rows, columns = block.shape
            held = tile[:rows, :columns]
            np.copyto(_bits(held, block), _bits(block, held), casting="unsafe")
            target[column : column + columns, row : row + rows] = turned[:rows, :columns].T


def _bits(array: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The array as unsigned integers, if both have one dtype: numpy copies bfloat16 and the like one by one."""
    plain = array.dtype == other.dtype and array.itemsize in (1, 2, 4, 8)
    return array.view(f"u{array.itemsize}") if plain else array
