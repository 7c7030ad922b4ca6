"""Meshes by name: what fits, and what is said when it does not."""

import jax
import pytest

from jaxmodel.config import replace
from jaxmodel.errors import InputError
from jaxmodel.model import sharded
from jaxmodel.sharding import AXES, Partitioning, make_mesh, with_rules
from tests.contract import GPT


def test_every_axis_is_there_and_the_rest_is_found():
    mesh = make_mesh({"data": -1, "tensor": 2})
    assert mesh.axis_names == AXES and dict(mesh.shape) == {"data": 4, "fsdp": 1, "expert": 1, "tensor": 2}
    assert make_mesh().shape["data"] == 8
    assert make_mesh({"fsdp": 2}, jax.devices()[:2]).size == 2


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"fsdp": 3}, "mesh.fsdp=3 does not fit 8 devices: make the product 8, or set one axis to -1"),
        ({"data": 2, "fsdp": 2}, r"mesh.data=2 \* mesh.fsdp=2 does not fit 8 devices"),
        ({"data": -1, "fsdp": -1}, "only one mesh axis can be -1"),
        ({"model": 8}, "mesh.model: the mesh axes are data, fsdp"),
        ({"data": 0}, "mesh.data=0: give a number of devices"),
    ],
)
def test_what_does_not_fit(sizes, words):
    with pytest.raises(InputError, match=words):
        make_mesh(sizes)


def test_a_dim_that_does_not_divide_is_named_with_its_weight():
    model = replace(GPT, {"embed_dim": 36, "attention.num_heads": 2}).build()
    with pytest.raises(InputError, match=r"mesh.fsdp=8 does not divide embed = 36 of stack/0/block/attention/key"):
        sharded(model, make_mesh({"fsdp": 8}))


def test_a_batch_that_does_not_divide():
    partitioning = Partitioning(make_mesh({"data": 4, "fsdp": 2}))
    partitioning.check_batch(16)
    words = r"mesh.data=4 \* mesh.fsdp=2 does not divide train.batch_size=12: make it a multiple of 8"
    with pytest.raises(InputError, match=words):
        partitioning.check_batch(12)


def test_rules_are_data():
    """Heads may stay whole and the vocabulary go over fsdp instead, with a table and no code."""
    rules = with_rules({"heads": (), "vocab": ("fsdp",)})
    model = GPT.build()
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    specs = Partitioning(make_mesh({"fsdp": 4, "tensor": 2}), rules).specs(model.layout, shapes)
    assert specs["stack"]["0"]["block"]["attention"]["query"] == jax.P(None, "fsdp", None)
    assert specs["stem"]["tokens"] == jax.P("fsdp", None)
