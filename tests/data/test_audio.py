"""Log-mel frames without an oracle; tests/oracles holds them to another implementation."""

import numpy as np
import pytest

from jaxmodel.data.audio import log_mel, mel_filters


@pytest.mark.parametrize("hertz", [440.0, 1000.0, 3000.0])
def test_a_tone_is_loudest_in_the_band_that_holds_it(hertz: float) -> None:
    audio = 0.5 * np.sin(2 * np.pi * hertz * np.arange(4800) / 16_000)[None].astype(np.float32)
    frames = np.asarray(log_mel(audio))
    assert frames.shape == (1, 30, 80) and frames.dtype == np.float32
    bins = mel_filters(80, 16_000, 400)[round(hertz / 40)]
    assert set(frames[0, 5:-5].argmax(axis=1)) == {bins.argmax()}


def test_rows_do_not_see_each_other_and_keep_eight_powers_of_ten() -> None:
    loud = np.random.default_rng(0).normal(size=(1, 3200)).astype(np.float32)
    quiet = loud * np.float32(0.5) * (np.arange(3200) < 1600)
    both = np.asarray(log_mel(np.concatenate([loud, quiet])))
    np.testing.assert_allclose(both[1:], np.asarray(log_mel(quiet)), atol=1e-6)
    assert np.ptp(both[1]) == pytest.approx(2.0, abs=1e-6)  # RANGE / 4, silence being clipped
