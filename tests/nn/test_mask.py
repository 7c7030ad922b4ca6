"""The one mask against its words, spelt out one query and one key at a time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.nn.mask import ABSENT, attention_mask

B, T, S = 2, 5, 7
DRAW = np.random.default_rng(0)
QUERIES = DRAW.integers(ABSENT, S, (B, T)).astype(np.int32)
KEYS = DRAW.integers(ABSENT, S, (B, S)).astype(np.int32)
QUERY_SEGMENTS = DRAW.integers(0, 3, (B, T)).astype(np.int32)
KEY_SEGMENTS = DRAW.integers(0, 3, (B, S)).astype(np.int32)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_mask(causal, window, packed):
    def given(array: np.ndarray, whether: bool) -> jax.Array | None:
        return jnp.asarray(array) if whether else None

    found = attention_mask(
        jnp.asarray(QUERIES),
        jnp.asarray(KEYS),
        (given(QUERY_SEGMENTS, packed), given(KEY_SEGMENTS, packed)),
        causal=causal,
        window=window,
    )

    def sees(b: int, t: int, s: int) -> bool:
        q, k = int(QUERIES[b, t]), int(KEYS[b, s])
        if k == ABSENT or (packed and QUERY_SEGMENTS[b, t] != KEY_SEGMENTS[b, s]):
            return False
        if causal and k > q:
            return False
        return window is None or (q - window < k and (causal or k < q + window))

    expected = np.zeros((B, T, S), bool)
    for place in itertools.product(range(B), range(T), range(S)):
        expected[place] = sees(*place)
    np.testing.assert_array_equal(np.broadcast_to(found, expected.shape), expected)
