"""A language model that sees: what stands where among the tokens, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import weights
from jaxmodel.config import replace
from jaxmodel.errors import InputError
from jaxmodel.generate import generate
from jaxmodel.interop import tensors as files
from jaxmodel.interop.huggingface import directory
from jaxmodel.loading import load
from jaxmodel.models.presets import PRESETS
from tests.contract import same
from tests.shrink import shrunk

LLAVA = shrunk(PRESETS["llava-1.5-7b"])
LLAVA = replace(LLAVA, {"projector.dim": LLAVA.text.embed_dim})  # as config.json has it
IMAGE, PLACES = LLAVA.image_token, LLAVA.num_vectors


@pytest.fixture(scope="module")
def built():
    model = LLAVA.build()
    return model, jax.jit(model.init)(jax.random.key(0))


def batch_of(rows=((1, 1), (0,)), length=14):
    """Rows of texts; for each of its ones an image takes its places, after a token of text."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 64, (len(rows), length)).astype(np.int32)
    for row, images in zip(tokens, rows, strict=True):
        for i in range(sum(images)):
            row[1 + i * (PLACES + 1) :][:PLACES] = IMAGE
    size = LLAVA.image.images.size
    images = rng.normal(size=(sum(map(sum, rows)), size, size, 3)).astype(np.float32)
    return {"tokens": tokens, "images": images}


def test_images_stand_in_their_places_and_nowhere_else(built):
    model, params = built
    batch = batch_of()
    hidden = model.apply(params, batch)["hidden"]
    other = {**batch, "images": batch["images"].copy()}
    other["images"][1] += 1.0  # the second of the first row
    changed = np.abs(model.apply(params, other)["hidden"] - hidden).max(axis=-1) > 1e-6
    assert changed[0, 2 + PLACES :].all() and not changed[0, : 2 + PLACES].any() and not changed[1].any()
    alone = model.apply(params, {"tokens": batch["tokens"][1:]})["hidden"]
    np.testing.assert_allclose(alone, hidden[1:], atol=1e-5)
    few = model.apply(params, {**batch, "images": batch["images"][:1]})["hidden"]
    assert np.isnan(few[0, 2 + PLACES]).all() and np.isfinite(few[1]).all()


@pytest.mark.slow
def test_the_last_block_of_the_tower_is_kept_and_not_run(built):
    model, params = built
    gradients = jax.grad(lambda params: jnp.sum(model.apply(params, batch_of())["hidden"] ** 2))(params)
    up = np.abs(gradients["image"]["stack"]["0"]["block"]["mlp"]["up"]).max(axis=(1, 2))
    assert up[0] > 0 and up[1] == 0
    quantized = weights.quantize(params, model.layout)
    dense = weights.densify(quantized, model.layout)
    found, wanted = (model.apply(each, batch_of())["logits"] for each in (quantized, dense))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_texts_of_different_lengths_are_continued_as_alone(built):
    model, params = built
    batch = batch_of(((1,), (1,)))
    mask = np.arange(14) < np.array([[14], [9]])
    both = generate(model, params, {**batch, "mask": mask}, max_new_tokens=4)
    for i, length in enumerate((14, 9)):
        row = {"tokens": batch["tokens"][i : i + 1, :length], "images": batch["images"][i : i + 1]}
        assert generate(model, params, row, max_new_tokens=4) == [both[i]]


def test_a_prompt_does_not_end_with_an_image(built):
    model, params = built
    batch = batch_of(((1,),), length=1 + PLACES)
    with pytest.raises(InputError, match=f"a prompt ends with the token of an image, {IMAGE}: put words behind it"):
        generate(model, params, batch, max_new_tokens=4)


def test_names_of_other_checkpoints_are_known(built, tmp_path):
    """Those that were published, and those that transformers wrote for a while."""
    model, params = built
    directory.write(tmp_path / "now", model, params)
    now = files.open_weights(tmp_path / "now")
    old = {name.replace("vision_tower.", "vision_tower.vision_model."): each for name, each in now.items()}
    between = {
        f"model.{name}".replace("model.language_model.model.", "model.language_model.").replace(
            "model.language_model.lm_head.", "lm_head."
        ): each
        for name, each in now.items()
    }
    for i, names in enumerate((now, old, between)):
        folder = tmp_path / str(i)
        files.write_weights(folder, [files.Tensor(n, t.dtype, t.shape, t.view) for n, t in names.items()])
        (folder / "config.json").write_text((tmp_path / "now" / "config.json").read_text())
        assert same(load(folder).params, params)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feature_layer": 0}, "model.feature_layer=0: the tower has 2 blocks, give one of them"),
        ({"feature_layer": -3}, "model.feature_layer=-3: the tower has 2 blocks"),
        ({"text.stem.image_token": None}, "model.text no pool, but stem.image_token"),
    ],
)
def test_parts_that_do_not_fit(changes, words):
    with pytest.raises(InputError, match=words):
        replace(LLAVA, changes).build()
