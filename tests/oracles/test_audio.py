"""Log-mel frames beside Whisper's own front end."""

import jax
import numpy as np
import pytest
import transformers

from jaxmodel.data.audio import log_mel


@pytest.mark.parametrize("bands", [80, 128])
def test_log_mel_is_whispers(bands: int) -> None:
    rng = np.random.default_rng(0)
    time = np.arange(16_000) / 16_000
    tones = 0.3 * np.sin(2 * np.pi * (300 + 2000 * time) * time)
    rows = np.stack([tones, 0.1 * rng.normal(size=16_000)]).astype(np.float32)
    rows[1, 9_000:] = 0  # silence, which the floor holds up
    theirs = transformers.WhisperFeatureExtractor(feature_size=bands, chunk_length=1)
    expected = theirs(list(rows), sampling_rate=16_000, return_tensors="np")["input_features"]
    found = np.asarray(jax.jit(lambda x: log_mel(x, bands=bands))(rows)).transpose(0, 2, 1)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.max(np.abs(expected)))
