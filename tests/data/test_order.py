"""The order of examples: a bijection every epoch, uniform, and fixed for good."""

import numpy as np
import pytest

from jaxmodel.data.order import order, permute


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1000, 65537])
def test_every_epoch_is_a_permutation_of_its_own(size):
    epochs = [permute(np.arange(size), size, f"5/{epoch}") for epoch in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(size))
    if size >= 100:
        assert (epochs[0] != epochs[1]).mean() > 0.9
        assert (epochs[1] != epochs[2]).mean() > 0.9


@pytest.mark.parametrize(("size", "seeds"), [(3, 3000), (7, 3000), (100, 3000), (1000, 300)])
def test_places_and_neighbours_look_uniform(size, seeds):
    permutations = np.stack([permute(np.arange(size), size, f"{seed}/0") for seed in range(seeds)])
    counts = np.stack([np.bincount(column, minlength=size) for column in permutations.T])
    steps = np.bincount((np.diff(permutations, axis=1) % size).ravel(), minlength=size)[1:]
    for table, freedom in ((counts, (size - 1) ** 2), (steps, size - 2)):
        chi_square = ((table - table.mean()) ** 2 / table.mean()).sum()
        assert abs(chi_square - freedom) < 4.5 * np.sqrt(2 * freedom), (chi_square, freedom)


def test_every_permutation_of_four_is_equally_likely():
    permutations = [permute(np.arange(4), 4, f"{seed}/0") for seed in range(4800)]
    _, counts = np.unique(permutations, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 23 + 4.5 * np.sqrt(2 * 23)


@pytest.mark.parametrize(
    ("arguments", "golden"),
    [
        ((0, 0, 4, 6), [5, 4, 0, 1]),
        ((0, 1, 4, 6), [3, 2, 4, 2]),
        ((1, 0, 5, 1000), [435, 907, 314, 689, 136]),
        ((2**31 - 1, 10**6, 5, 123_456_789), [112123151, 110476312, 32955498, 82306734, 106151038]),
        ((0, 3, 4, 1), [0, 0, 0, 0]),
    ],
)
def test_the_order_never_changes_silently(arguments, golden):
    """A resumed run, years later, must see the batches that the stopped one would have seen."""
    np.testing.assert_array_equal(order(*arguments), golden)
    assert order(*arguments).dtype == np.int64


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (10, 10), (7, 3), (3, 8), (1, 5), (1000, 64)])
def test_an_epoch_laid_over_batches_loses_and_repeats_nothing(size, batch_size):
    num_epochs = 3
    num_steps = -(-size * num_epochs // batch_size)
    seen = np.concatenate([order(9, step, batch_size, size) for step in range(num_steps)])
    for epoch in range(num_epochs):
        np.testing.assert_array_equal(np.sort(seen[epoch * size : (epoch + 1) * size]), np.arange(size))


def test_the_batch_size_does_not_change_the_order():
    large = np.concatenate([order(4, step, 12, 50) for step in range(5)])
    small = np.concatenate([order(4, step, 4, 50) for step in range(15)])
    np.testing.assert_array_equal(large, small)


def test_seeds_differ():
    assert (order(0, 0, 100, 1000) != order(1, 0, 100, 1000)).mean() > 0.9


@pytest.mark.parametrize("arguments", [(-1, 0, 4, 6), (0, -1, 4, 6), (0, 0, 0, 6), (0, 0, 4, 0)])
def test_nonsense_is_refused(arguments):
    with pytest.raises(ValueError, match="no such batch"):
        order(*arguments)
