"""Convolutional networks beyond what the oracles hold them to: what is refused, counted and left to the config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.errors import InputError
from jaxmodel.models.parts import ConvStem
from jaxmodel.models.plain import ConvNet
from jaxmodel.nn.conv import max_pool
from tests.contract import same


def test_maximum_of_every_second_window():
    x = -1.0 - jax.random.uniform(jax.random.key(0), (1, 5, 4, 2))  # beyond the border there is nothing, not zero
    found = max_pool(x)
    assert found.shape == (1, 3, 2, 2)
    np.testing.assert_array_equal(found[0, 1, 0], jnp.max(x[0, 1:4, :2], axis=(0, 1)))
    np.testing.assert_array_equal(found[0, 2, 1], jnp.max(x[0, 3:, 1:], axis=(0, 1)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ConvNet(3, 1, depths=(1, 2)).check(), "model.depths=1,2 beside model.widths=16,32,64: give a"),
        (lambda: ConvNet(3, 1, kernel=4).check(), "model.kernel=4: windows of a block have a centre, give an odd size"),
        (lambda: ConvNet(3, 1, first_stride=3).check(), "model.first_stride=3: must be a whole number from 1 to 2"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_images_without_a_single_window_are_refused():
    model = ConvNet(3, 1, widths=(4, 8), stem=ConvStem(size=4, stride=4), block="inverted", norm="layer").build()
    params = model.init(jax.random.key(0))
    assert model.start() == {}
    with pytest.raises(InputError, match=r"images are too small: \(3, 9\) is left of them for windows of 4 x 4"):
        model.apply(params, {"images": jnp.zeros((1, 3, 9, 1))})
    with pytest.raises(InputError, match=r"images are too small: \(1, 2\) is left of them for windows of 2 x 2"):
        model.apply(params, {"images": jnp.zeros((1, 4, 9, 1))})


def test_batches_are_counted_where_it_is_asked_for():
    """In training alone; another count is no other computation."""
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    models = [ConvNet(0, 1, (4,), count_batches=counts).build() for counts in (False, True)]
    params = models[0].init(jax.random.key(0))
    plain, counting = (model.start() for model in models)
    assert "count" not in plain["stem_norm"] and counting["stem_norm"]["count"].dtype == jnp.int32
    for expected in (1, 2):
        (a, b) = (
            model.apply(params, {"images": images}, state, train=True)
            for model, state in zip(models, (plain, counting), strict=True)
        )
        plain, counting = a.state, b.state
        assert same(a.values, b.values) and set(a.values) == {"hidden", "embedding"}
        assert int(counting["stem_norm"].pop("count")) == expected
        assert same(plain["stem_norm"], counting["stem_norm"])
        counting["stem_norm"]["count"] = jnp.int32(expected)
    evaluated = models[1].apply(params, {"images": images}, counting)
    assert same(evaluated.state, counting)
