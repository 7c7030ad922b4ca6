"""Every family against what transformers gave once: for machines without it."""

import jax
import numpy as np
import pytest

from jaxmodel.interop.huggingface.families import FAMILIES
from jaxmodel.loading import load
from tests.golden import families

FILES = sorted(families.FOLDER.glob("*.npz"))


def test_every_family_has_one():
    assert {path.stem for path in FILES} == set(FAMILIES), "run `make goldens`"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_gives_what_transformers_gave(path, tmp_path):
    golden = families.read(path)
    families.write_directory(tmp_path, golden)
    loaded = load(tmp_path)
    apply = jax.jit(lambda params, state, batch: loaded.model.apply(params, batch, state).values)
    found = apply(loaded.params, loaded.model_state, dict(golden.batch))
    assert golden.values
    for name, expected in golden.values.items():
        whole = "mask" if name == "encoder_hidden" else "decoder_mask"
        mask = golden.batch.get(whole, golden.batch.get("mask"))
        ours = np.asarray(found[name])
        assert ours.shape == expected.shape, name
        if mask is not None and expected.shape[:2] == mask.shape and expected.ndim == 3:
            ours, expected = ours[mask], expected[mask]
        assert np.max(np.abs(ours - expected)) < 1e-5 * np.max(np.abs(expected)), name
