"""Arrays placed on devices part by part: the values, what is read, what is copied and what is not."""

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxmodel.interop import placing

BF16 = np.dtype(ml_dtypes.bfloat16)
SPECS = [(), ("data",), (None, "tensor"), ("data", None, "tensor"), (("data", "tensor"),)]


def numbers(shape, dtype: np.typing.DTypeLike = np.float32):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def sharding_of(spec) -> NamedSharding:
    mesh = jax.make_mesh((4, 2), ("data", "tensor"))
    return NamedSharding(mesh, PartitionSpec(*spec))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("stored", "wanted"), [("f4", "f4"), (BF16, "f4"), ("f4", BF16), ("i1", "i1")])
def test_every_part_is_read_once_and_cast(spec, stored, wanted):
    whole, sharding, seen = numbers((8, 4, 6), stored), sharding_of(spec), []

    def read(index):
        seen.append(tuple((part.start, part.stop) for part in index))
        return whole[index]

    array = placing.place(whole.shape, wanted, sharding, read)
    assert array.dtype == wanted
    assert array.sharding == sharding
    np.testing.assert_array_equal(np.asarray(array), whole.astype(wanted))
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), whole[shard.index].astype(wanted))
    assert len(seen) == len(set(seen)) == len({str(shard.index) for shard in array.addressable_shards})
    assert sum(np.prod([b - a for a, b in index]) for index in seen) == whole.size


def test_scalars_and_single_devices():
    where = SingleDeviceSharding(jax.devices()[3])
    assert placing.place((), "f4", where, lambda index: np.array(2.5)[index]) == 2.5
    assert placing.place((0, 3), "f4", where, lambda index: np.zeros((0, 3))[index]).shape == (0, 3)


def test_what_read_gives_away_is_not_copied_and_shared_by_replicas():
    given = placing.empty((256, 64), BF16)
    given[:] = 1
    array = placing.place(given.shape, BF16, sharding_of(()), lambda index: given[index])
    at = {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}
    assert at == {given.ctypes.data}


@pytest.mark.parametrize("why", ["not writable", "another dtype", "not contiguous", "not aligned"])
def test_what_cannot_be_taken_is_copied(why):
    given = placing.empty((64, 64), "f4")
    given[:] = numbers((64, 64))
    if why == "not writable":
        given.flags.writeable = False
    elif why == "not contiguous":
        given = given.T
    elif why == "not aligned":
        given = given.reshape(-1)[1 : 1 + 63 * 64].reshape(63, 64)
    dtype = BF16 if why == "another dtype" else "f4"
    array = placing.place(given.shape, dtype, SingleDeviceSharding(jax.devices()[0]), lambda index: given[index])
    begin = array.unsafe_buffer_pointer()
    assert begin % placing.ALIGNMENT == 0
    assert not given.ctypes.data <= begin < given.ctypes.data + 4 * 64 * 64
    np.testing.assert_array_equal(np.asarray(array, "f4"), given)


def test_a_part_of_another_shape_is_a_bug():
    with pytest.raises(AssertionError, match=r"read \(3, 2\)"):
        placing.place((2, 3), "f4", SingleDeviceSharding(jax.devices()[0]), lambda index: np.zeros((3, 2)))


@pytest.mark.parametrize("wanted", [np.float32, BF16, np.int8])
@pytest.mark.parametrize("stored", [np.float32, BF16, np.int8, np.float64])
@pytest.mark.parametrize("shape", [(300, 2100), (64, 64), (129, 257), (3, 200), (1, 500), (2, 130, 100)])
def test_transposed_copies_are_those_of_numpy(shape, stored, wanted):
    source = numbers(shape, stored)
    for view in (source, source.swapaxes(-1, -2), source.T, source.swapaxes(-1, -2)[..., ::-1, 3:], source[..., 1:]):
        copy = placing.copied(view, wanted)
        assert copy.flags.c_contiguous
        assert copy.dtype == wanted
        np.testing.assert_array_equal(copy, view.astype(wanted))


def test_a_copy_keeps_every_bit():
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)  # infinities and nans of all kinds
    copy = placing.copied(bits.view(BF16).T)
    np.testing.assert_array_equal(copy.view(np.uint16), bits.T)


@pytest.mark.parametrize("size", [6, 400])  # copied by one thread, and by several
def test_stacked_calls_the_parts_of_the_index_alone(size):
    layers = [[numbers((size, 2 * size), BF16) + np.asarray(3 * i + j, BF16) for j in range(2)] for i in range(4)]
    whole, called = np.array(layers).swapaxes(-1, -2), []

    def part(i, j):
        def make():
            called.append((i, j))
            return layers[i][j].T

        return make

    parts = [[part(i, j) for j in range(2)] for i in range(4)]
    index = (slice(1, 3), slice(1, 2), slice(0, size), slice(2, 6))
    found = placing.stacked(parts, index, np.float32)
    np.testing.assert_array_equal(found, whole[index].astype(np.float32))
    assert sorted(called) == [(1, 1), (2, 1)]

    array = placing.place(
        whole.shape, BF16, sharding_of(("data", "tensor")), lambda index: placing.stacked(parts, index, BF16)
    )
    np.testing.assert_array_equal(np.asarray(array), whole)
    assert len(called) == 2 + 8


def test_stacked_of_one_part_and_its_errors():
    one = numbers((5, 7))
    index = (slice(1, 4), slice(0, 7))
    np.testing.assert_array_equal(placing.stacked(lambda: one, index, "f4"), one[1:4])

    def fails():
        raise FileNotFoundError("gone")

    for dim in (2, 1000):
        with pytest.raises(FileNotFoundError, match="gone"):
            placing.stacked([fails], (slice(0, 1), slice(0, dim), slice(0, dim)), "f4")
