"""Safetensors: the bytes of the safetensors library, views without copies, and every kind of damage told in a line."""

import json
import os
import stat

import ml_dtypes
import numpy as np
import pytest
from safetensors import TensorSpec, serialize
from safetensors.numpy import load_file, save

from jaxmodel.errors import InputError
from jaxmodel.interop import tensors as files
from jaxmodel.interop.tensors import Tensor, open_weights, write_weights

BF16 = np.dtype(ml_dtypes.bfloat16)
HALF = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}


def some(dtypes=(np.float32, BF16, np.int64, np.uint8, np.bool_, np.float16)) -> dict[str, np.ndarray]:
    made = np.random.default_rng(0)
    shapes = ((3, 5), (), (0, 4), (7,), (2, 3, 4), (2, 2))
    return {
        f"{'cab'[i % 3]}.{i}": made.integers(0, 2, shape).astype(dtype)
        for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    }


def specs(arrays) -> list[Tensor]:
    return [Tensor(name, array.dtype, array.shape, lambda a=array: a) for name, array in arrays.items()]


def same(found, arrays):
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        view = found[name].view()
        assert (view.dtype, view.shape) == (array.dtype, array.shape)
        assert view.tobytes() == array.tobytes()


def raw(directory, header, data=b"", name="model.safetensors"):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (directory / name).write_bytes(len(text).to_bytes(8, "little") + text + data)
    return directory


def contents(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("metadata", [None, {}, {"about": 'a "quoted" é\n'}])
def test_files_are_those_of_the_library(tmp_path, metadata):
    arrays = some() | {'naïve "name"\t': np.ones((2, 2), np.float32), "z" * 3: np.zeros(1, np.float32)}
    paths = write_weights(tmp_path, specs(arrays), metadata)
    assert paths == [tmp_path / "model.safetensors"]
    wanted = {"format": "pt"} if metadata is None else metadata
    assert paths[0].read_bytes() == save(arrays, wanted or None)
    same(open_weights(tmp_path), arrays)


def test_every_dtype_has_the_librarys_name_and_order(tmp_path):
    held = np.arange(64, dtype=np.uint8) % 2
    arrays = {dtype.name: held[: 4 * dtype.itemsize].view(dtype) for dtype in files.CODES}
    write_weights(tmp_path, specs(arrays), {})
    known = {
        name: TensorSpec(dtype=name, shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
        for name, array in arrays.items()
    }
    assert (tmp_path / "model.safetensors").read_bytes() == bytes(serialize(known, None))
    same(open_weights(tmp_path), arrays)


def test_tensors_are_made_one_by_one_in_parts_and_from_any_strides(tmp_path):
    whole, calls = np.random.default_rng(0).random((300, 200), np.float32), []

    def parts():
        for at in range(0, 200, 50):
            calls.append(at)
            yield whole.T[at : at + 50]

    write_weights(tmp_path, [Tensor("w", np.float32, (200, 300), parts), *specs({"v": whole.T})])
    same(open_weights(tmp_path), {"v": whole.T, "w": whole.T})
    assert calls == [0, 50, 100, 150]


def test_views_are_the_files_pages(tmp_path):
    write_weights(tmp_path, specs({"w": np.zeros((4, 1000), np.float32)}))
    lazy = open_weights(tmp_path)["w"]
    view = lazy.view()
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1
    with open(lazy.path, "r+b") as file:
        file.seek(lazy.offset)
        file.write(np.float32(7).tobytes())
    assert view[0, 0] == 7


def test_shards_and_index(tmp_path):
    arrays = {f"{i}": np.full(10, i, np.uint8) for i in (3, 1, 2)} | {"big": np.zeros(50, np.uint8)}
    arrays |= {"last": np.zeros(2, np.uint8)}
    paths = write_weights(tmp_path, specs(arrays), shard_bytes=20)
    assert [path.name for path in paths] == [
        *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        "model.safetensors.index.json",
    ]
    index = json.loads(paths[-1].read_text())
    assert index["metadata"] == {"total_size": 82}
    assert [set(load_file(path)) for path in paths[:3]] == [{"3", "1"}, {"big"}, {"2", "last"}]
    assert index["weight_map"] == {name: path.name for path in paths[:3] for name in load_file(path)}
    same(open_weights(tmp_path), arrays)


def test_nothing_to_write_is_a_file_too(tmp_path):
    write_weights(tmp_path, [], {})
    assert (tmp_path / "model.safetensors").read_bytes() == save({})
    assert open_weights(tmp_path) == {}


def test_older_weights_go_and_others_stay(tmp_path):
    arrays = {f"{i}": np.full(10, i, np.uint8) for i in range(3)}
    write_weights(tmp_path, specs(arrays), shard_bytes=10)
    write_weights(tmp_path, specs(arrays), stem="adapter_model")
    (tmp_path / "model.bin").write_text("mine")
    write_weights(tmp_path, specs(arrays), shard_bytes=20)
    assert set(contents(tmp_path)) == {
        "adapter_model.safetensors",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.bin",
        "model.safetensors.index.json",
    }
    write_weights(tmp_path, specs(arrays))
    assert set(contents(tmp_path)) == {"adapter_model.safetensors", "model.bin", "model.safetensors"}
    same(open_weights(tmp_path, "adapter_model"), arrays)


def test_files_are_as_readable_as_any_new_one(tmp_path):
    (path,) = write_weights(tmp_path / "deep" / "er", specs(some()))
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE(os.stat(path).st_mode) == stat.S_IMODE(os.stat(tmp_path / "plain").st_mode)


@pytest.mark.parametrize("made", ["raises", "too few", "another dtype"])
def test_a_failure_leaves_what_was_there(tmp_path, made):
    write_weights(tmp_path, specs({"old": np.ones(5)}))
    before = contents(tmp_path)

    def produce():
        if made == "raises":
            raise KeyboardInterrupt
        return np.zeros(2, np.float32) if made == "too few" else np.zeros(4, np.float64)

    tensors = [*specs({"a": np.zeros(4, np.float32)}), Tensor("b", np.float32, (4,), produce)]
    with pytest.raises((KeyboardInterrupt, AssertionError)):
        write_weights(tmp_path, tensors, shard_bytes=16)
    assert contents(tmp_path) == before


def test_a_dtype_that_the_format_lacks_is_refused(tmp_path):
    array = np.zeros(4, ml_dtypes.int4)
    with pytest.raises(InputError, match="w is int4, not a dtype of safetensors: cast it, or pack it"):
        write_weights(tmp_path / "new", specs({"w": array}))
    assert not (tmp_path / "new").exists()


DAMAGED = {
    "empty": (b"", "a header of 0 bytes in a file of 0"),
    "seven bytes": (b"\x10\0\0\0\0\0\0", "a header of 16 bytes in a file of 7"),
    "long header": ((99).to_bytes(8, "little") + b"{}", "a header of 99 bytes in a file of 10"),
    "huge header": (b"\xff" * 8 + b"{}", "a header of 18446744073709551615 bytes"),
    "no json": (b"{", "no JSON object"),
    "no utf-8": (b'{"\xff": 1}', "no JSON object"),
    "deep json": (b'{"a":' + b"[" * 100_000, "no JSON object"),
    "no object": (b"[1]", "no JSON object"),
    "a name twice": (b'{"a": {}, "a": {}}', "no JSON object of distinct names"),
    "no entry": ({"a": 3}, "does not say dtype, shape and offsets of 'a'"),
    "no offsets": ({"a": {"dtype": "F16", "shape": [2]}}, "does not say dtype"),
    "three offsets": ({"a": HALF | {"data_offsets": [0, 2, 4]}}, "does not say dtype"),
    "negative": ({"a": HALF | {"shape": [-1, -2]}}, "does not say dtype"),
    "fractions": ({"a": HALF | {"shape": [2.0]}}, "does not say dtype"),
    "true": ({"a": HALF | {"shape": [True, 2]}}, "does not say dtype"),
    "shape": ({"a": HALF | {"shape": [3]}}, r"'a', F16 \[3\], is said to be bytes 0 to 4"),
    "endless": ({"a": {"dtype": "F16", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}, "is said to be"),
    "backwards": ({"a": HALF | {"data_offsets": [4, 0]}}, "bytes 4 to 0"),
    "overlap": ({"a": HALF, "b": HALF | {"data_offsets": [2, 6]}}, "'b' begins at byte 2, where 4 was to be"),
    "the same": ({"a": HALF, "b": HALF}, "'b' begins at byte 0, where 4 was to be"),
    "hole": ({"a": HALF, "b": HALF | {"data_offsets": [6, 10]}}, "'b' begins at byte 6, where 4 was to be"),
    "cut short": ({"a": HALF | {"shape": [4], "data_offsets": [0, 8]}}, r"it has 73 bytes, and 77 by its header"),
    "too long": ({}, "it has 14 bytes, and 10 by its header"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_told_in_a_line(tmp_path, name):
    header, words = DAMAGED[name]
    if name in ("empty", "seven bytes", "long header", "huge header"):
        (tmp_path / "model.safetensors").write_bytes(header)
    else:
        raw(tmp_path, header, bytes(4))
    with pytest.raises(InputError, match=words) as caught:
        open_weights(tmp_path)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'model.safetensors'} is damaged or cut short (")
    assert line.endswith("): download it again")
    assert "\n" not in line


def test_no_byte_may_be_cut_off(tmp_path):
    write_weights(tmp_path, specs(some()))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match="damaged or cut short"):
            open_weights(tmp_path)


def test_other_files_that_are_not_weights(tmp_path):
    raw(tmp_path, {"a": HALF | {"dtype": "F4", "shape": [8]}}, bytes(4))
    with pytest.raises(InputError, match="'a' is F4: convert it to one of BOOL, U8, "):
        open_weights(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InputError, match="is a pointer of Git LFS, not the weights: run git lfs pull"):
        open_weights(tmp_path)


def test_a_file_that_changed_after_it_was_opened(tmp_path):
    write_weights(tmp_path, specs({"w": np.zeros(100_000, np.uint8)}))
    lazy = open_weights(tmp_path)["w"]
    os.truncate(lazy.path, 1000)
    with pytest.raises(InputError, match="has changed meanwhile"):
        lazy.view()


def test_a_directory_without_weights_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"is not a directory: name one that holds model\.safetensors"):
        open_weights(tmp_path / "none")
    words = r"neither model\.safetensors nor model\.safetensors\.index\.json"
    with pytest.raises(InputError, match=f"{words}: download one of them"):
        open_weights(tmp_path)
    for name in ("a.ckpt", "model.pt", "pytorch_model.bin"):
        (tmp_path / name).write_text("pickle")
        with pytest.raises(InputError, match=rf"{words}, but a\.ckpt, a pickle, which can run code .*save_pretrained"):
            open_weights(tmp_path)
    raw(tmp_path, {}, name="model.fp16.safetensors")
    with pytest.raises(InputError, match=rf"{words}, but model\.fp16\.safetensors: rename it"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "index", [b"{", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}']
)
def test_an_index_that_is_none(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(InputError, match=r"index\.json is no JSON object with a 'weight_map' of file names"):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../x", "..\\x", "C:x", "a/.."])
def test_an_index_may_not_lead_out_of_its_directory(tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    raw(tmp_path, {"a": HALF}, bytes(4), "x.safetensors")
    (inside / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError, match=r"which is outside of .*inside: download it again"):
        open_weights(inside)


def test_an_index_and_its_files_must_agree(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "sub/two.safetensors"}}))
    raw(tmp_path, {"a": HALF, "unnamed": HALF | {"data_offsets": [4, 8]}}, bytes(8), "one.safetensors")
    with pytest.raises(InputError, match=r"names 'sub/two\.safetensors', which is not in .*: download that file"):
        open_weights(tmp_path)
    (tmp_path / "sub").mkdir()
    raw(tmp_path / "sub", {"c": HALF}, bytes(4), "two.safetensors")
    with pytest.raises(InputError, match=r"two\.safetensors lacks 'b', which model\.safetensors\.index\.json says"):
        open_weights(tmp_path)
    raw(tmp_path / "sub", {"b": HALF}, b"1234", "two.safetensors")
    assert open_weights(tmp_path)["b"].view().tobytes() == b"1234"
    assert set(open_weights(tmp_path)) == {"a", "b"}
