"""Two towers: what they read together and alone, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.config import replace
from jaxmodel.errors import InputError
from jaxmodel.models.presets import PRESETS
from tests.shrink import batch_of, shrunk

CLIP = shrunk(PRESETS["clip-vit-b/32"])


@pytest.fixture(scope="module")
def built():
    model = CLIP.build()
    return model, jax.jit(model.init)(jax.random.key(0)), batch_of(CLIP, rows=4)


def test_a_tower_alone_gives_what_it_gives_beside_the_other(built):
    model, params, batch = built
    both = model.apply(params, batch).values
    assert set(both) == {"image_embedding", "text_embedding", "logits"}
    for name, value in (("images", "image_embedding"), ("tokens", "text_embedding")):
        alone = model.apply(params, {name: batch[name]}).values
        assert set(alone) == {value}
        np.testing.assert_array_equal(alone[value], both[value])
    cosines = both["image_embedding"] @ both["text_embedding"].T
    np.testing.assert_allclose(both["logits"], np.exp(CLIP.logit_scale) * cosines, rtol=1e-5)


def test_one_image_meets_many_texts(built):
    model, params, batch = built
    logits = model.apply(params, {**batch, "images": batch["images"][:1]})["logits"]
    assert logits.shape == (1, 4)
    np.testing.assert_allclose(logits, model.apply(params, batch)["logits"][:1], rtol=1e-5)


def test_texts_are_pooled_at_a_token(built):
    """The first of its id, whatever follows; without one, the first token."""
    model, params, _ = built
    end = 63
    pooled = replace(CLIP.text, {"pool.token": end}).build()
    tokens = np.array([[5, 7, end, 9, end], [5, 7, end, 3, 3], [5, 7, 9, 9, 9]], np.int32)
    found = pooled.apply(params["text"], {"tokens": jnp.asarray(tokens)})["embedding"]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    first = replace(CLIP.text, {"pool.token": None, "pool.kind": "first"}).build()
    want = first.apply(params["text"], {"tokens": jnp.asarray(tokens)})["embedding"]
    np.testing.assert_array_equal(found[2], want[2])
    assert np.abs(found[:2] - want[:2]).max() > 0.01
    highest = replace(CLIP.text, {"pool.token": None, "pool.kind": "highest"}).build()
    again = highest.apply(params["text"], {"tokens": jnp.asarray(tokens)})["embedding"]
    np.testing.assert_array_equal(again[:2], found[:2])
    hidden = pooled.apply(params["text"], {"tokens": jnp.asarray(tokens)})["hidden"]
    with pytest.raises(InputError, match=r"pool\.kind=token looks at tokens: the batch needs them"):
        pooled.apply(params["text"], {"hidden": hidden})
    with pytest.raises(InputError, match="reads images and tokens: the batch needs one of them"):
        model.apply(params, {"mask": tokens > 0})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image.pool.dim": 7}, "images become vectors of 7 and texts of 32: set model.image.pool.dim"),
        ({"image.pool": None}, "model.image and model.text must have a pool, and no head"),
        ({"text.head.outputs": 5}, "model.pool.dim=32 beside a head"),
        ({"text.pool.token": None}, "model.pool.token=none beside model.pool.kind=token"),
        ({"text.pool.kind": "last"}, "model.pool.token=49407 beside model.pool.kind=last"),
        ({"image.pool.kind": "highest"}, "model.pool.kind=highest looks at tokens, model.images has none"),
    ],
)
def test_towers_that_do_not_fit(changes, words):
    with pytest.raises(InputError, match=words):
        replace(CLIP, changes).build()
