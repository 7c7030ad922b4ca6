"""Weights in safetensors files: named views of what is there, and streams of bytes to new ones.

The format is eight bytes with the length of a header, the header in JSON and the tensors' bytes without gaps:
https://github.com/huggingface/safetensors. A large model is several such files and an index.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from jaxmodel.errors import InputError
from jaxmodel.interop.placing import copied

# In the order of the safetensors library, which writes the last ones first. jax gives numpy the names that it lacks.
# fmt: off
DTYPES = {code: np.dtype(name) for code, name in {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32",
    "F32": "float32", "C64": "complex64", "F64": "float64", "I64": "int64", "U64": "uint64",
}.items()}
# fmt: on
CODES = {dtype: code for code, dtype in DTYPES.items()}
RANKS = {code: rank for rank, code in enumerate(DTYPES)}
SUFFIX, INDEX = ".safetensors", ".safetensors.index.json"
LONGEST_HEADER = 100_000_000  # as in the safetensors library
LARGEST = 1 << 58  # elements; numpy counts bytes in 63 bits
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
AGAIN = "download it again"


class Lazy(NamedTuple):
    """A tensor in a file."""

    path: Path
    offset: int  # of its first byte in the file
    shape: tuple[int, ...]
    dtype: np.dtype

    def view(self) -> np.ndarray:
        """Its values, read-only: pages of the file, read when touched, and mapped as long as the view is held."""
        if not math.prod(self.shape):
            return np.empty(self.shape, self.dtype)
        size = math.prod(self.shape) * self.dtype.itemsize
        try:
            # A map of its own, as memory that is mapped counts as the process's until the map is gone.
            mapped = np.memmap(self.path, np.uint8, "r", self.offset, (size,))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} has changed meanwhile ({error}): run it again") from error
        return np.asarray(mapped).view(self.dtype).reshape(self.shape)


class Tensor(NamedTuple):
    """A tensor to be written: `produce` makes its values when they are due, all or in parts one after the other."""

    name: str
    dtype: Any
    shape: tuple[int, ...]
    produce: Callable[[], np.ndarray | Iterator[np.ndarray]]

    @property
    def code(self) -> str:
        """What safetensors calls its dtype."""
        return CODES[np.dtype(self.dtype)]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def open_weights(directory: str | Path, stem: str = "model") -> dict[str, Lazy]:
    """The tensors of STEM.safetensors, or of the files that STEM.safetensors.index.json names; only headers are read.

    Raises:
      InputError: there are none, or only such as can run code when read (pickles); a file is missing or damaged.
    """
    directory = Path(directory)
    single, index = directory / (stem + SUFFIX), directory / (stem + INDEX)
    if single.is_file():
        return _tensors(single)
    if not index.is_file():
        raise InputError(_nothing(directory, single.name, index.name))
    files = (_parsed(index.read_bytes()) or {}).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise InputError(f"{index} is no JSON object with a 'weight_map' of file names: {AGAIN}")
    shards = {}
    for name in sorted(set(files.values())):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise InputError(f"{index} names {name!r}, which is outside of {directory}: {AGAIN}")
        if not (directory / path).is_file():
            raise InputError(f"{index} names {name!r}, which is not in {directory}: download that file")
        shards[name] = _tensors(directory / path)
    for tensor, name in files.items():
        if tensor not in shards[name]:
            raise InputError(f"{directory / name} lacks {tensor!r}, which {index.name} says it has: {AGAIN}")
    return {tensor: shards[name][tensor] for tensor, name in files.items()}


def write_weights(
    directory: str | Path,
    tensors: Iterable[Tensor],
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int = 5_000_000_000,
    stem: str = "model",
) -> list[Path]:
    """Write tensors one by one, in the order of the files, in the bytes of the safetensors library; the paths.

    What does not fit in `shard_bytes` goes to files of that size at most, as in transformers: tensors in the order in
    which they came, one that is larger alone, and an index. All is written before the first file appears under its
    name, and nothing stays of a failure; then older weights of the same stem are removed.

    Args:
      metadata: of the files; {"format": "pt"} if None, without which transformers refuses them.

    Raises:
      InputError: a dtype that safetensors does not hold.
    """
    directory, tensors = Path(directory), list(tensors)
    assert len({each.name for each in tensors}) == len(tensors), "two tensors of one name"
    for each in tensors:
        if np.dtype(each.dtype) not in CODES:
            raise InputError(f"{each.name} is {each.dtype}, not a dtype of safetensors: cast it, or pack it in uint8")
    metadata = {"format": "pt"} if metadata is None else metadata
    shards = _shards(tensors, shard_bytes)
    names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}{SUFFIX}" for i in range(len(shards))]
    names = names if len(shards) > 1 else [stem + SUFFIX]
    where = {each.name: name for name, shard in zip(names, shards, strict=True) for each in shard}
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".weights-", dir=directory) as aside:
        for name, shard in zip(names, shards, strict=True):
            _write(Path(aside, name), _bytes(shard, metadata))
        if len(shards) > 1:
            index = {"metadata": {"total_size": sum(each.size for each in tensors)}, "weight_map": where}
            names.append(stem + INDEX)
            _write(Path(aside, names[-1]), [(json.dumps(index, indent=2, sort_keys=True) + "\n").encode()])
        for name in names:
            os.replace(Path(aside, name), directory / name)
    ours = re.compile(re.escape(stem) + r"(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
    for path in directory.iterdir():
        if ours.fullmatch(path.name) and path.name not in names:
            path.unlink()
    return [directory / name for name in names]


def _nothing(directory: Path, single: str, index: str) -> str:
    """Why there are no weights."""
    if not directory.is_dir():
        return f"{directory} is not a directory: name one that holds {single}"
    names = sorted(path.name for path in directory.iterdir())
    none = f"{directory} has neither {single} nor {index}"
    if found := [name for name in names if name.endswith(SUFFIX)]:
        return f"{none}, but {found[0]}: rename it, or download the index"
    if found := [name for name in names if name.endswith(PICKLES)]:
        return (
            f"{none}, but {found[0]}, a pickle, which can run code when it is read: if you trust it, write safetensors "
            "with transformers, AutoModel.from_pretrained(DIR).save_pretrained(DIR)"
        )
    return f"{none}: download one of them"


def _tensors(path: Path) -> dict[str, Lazy]:
    """What a file's header says, checked against the file; in the order of the bytes."""
    try:
        with open(path, "rb") as file:
            size, first = os.fstat(file.fileno()).st_size, file.read(8)
            length = int.from_bytes(first, "little")
            fits = 8 + length <= size and length <= LONGEST_HEADER
            header = _parsed(file.read(length)) if fits else None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): mend that, or {AGAIN}") from error
    if first == b"version " and not fits:
        raise InputError(f"{path} is a pointer of Git LFS, not the weights: run git lfs pull, or {AGAIN}")
    if not fits:
        raise _damaged(path, f"a header of {length} bytes in a file of {size}")
    if header is None:
        raise _damaged(path, "its header is no JSON object of distinct names")
    header.pop("__metadata__", None)
    start, reached, tensors = 8 + length, 0, {}
    found = [(*_entry(path, name, said), name) for name, said in header.items()]
    for begin, end, shape, dtype, name in sorted(found, key=lambda entry: entry[:2]):
        if begin != reached:
            raise _damaged(path, f"{name!r} begins at byte {begin}, where {reached} was to be")
        tensors[name] = Lazy(path, start + begin, shape, dtype)
        reached = end
    if start + reached != size:
        raise _damaged(path, f"it has {size} bytes, and {start + reached} by its header")
    return tensors


def _entry(path: Path, name: str, said: Any) -> tuple[int, int, tuple[int, ...], np.dtype]:
    """First byte, the one after the last, shape and dtype of a tensor."""
    match said:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [begin, end]} if all(
            type(n) is int and n >= 0 for n in (*shape, begin, end)
        ):
            if code not in DTYPES:
                raise InputError(f"{path}: {name!r} is {code}: convert it to one of {', '.join(DTYPES)}")
            size = math.prod(shape) * DTYPES[code].itemsize
            if size == end - begin and math.prod(n or 1 for n in shape) < LARGEST:
                return begin, end, tuple(shape), DTYPES[code]
            raise _damaged(path, f"{name!r}, {code} {shape}, is said to be bytes {begin} to {end}")
    raise _damaged(path, f"its header does not say dtype, shape and offsets of {name!r}")


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A JSON object without a name that is there twice; None if it is anything else."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name twice")
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} is damaged or cut short ({why}): {AGAIN}")


def _shards(tensors: list[Tensor], most: int) -> list[list[Tensor]]:
    """Tensors by file, as huggingface_hub.split_state_dict_into_shards_factory has them; one file at least."""
    shards, current, size = [], [], 0
    for each in tensors:
        if each.size > most:
            shards.append([each])
            continue
        if size + each.size > most:
            shards.append(current)
            current, size = [], 0
        current.append(each)
        size += each.size
    return [*shards, current] if current or not shards else shards


def _bytes(tensors: list[Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """A file of these tensors, in parts."""
    tensors = sorted(tensors, key=lambda each: (-RANKS[each.code], each.name))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    reached = 0
    for each in tensors:
        offsets = [reached, reached := reached + each.size]
        header[each.name] = {"dtype": each.code, "shape": list(each.shape), "data_offsets": offsets}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for each in tensors:
        made, done = each.produce(), 0
        for part in [made] if isinstance(made, np.ndarray) else made:
            assert part.dtype == each.dtype, f"{each.name} was made of {part.dtype}, not {each.dtype}"
            yield (part if part.flags.c_contiguous else copied(part)).reshape(-1).view(np.uint8).data
            done += part.nbytes
        assert done == each.size, f"{each.name} was made of {done} bytes, not {each.size}"


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """To the disk, before it takes the place of another."""
    with open(path, "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
