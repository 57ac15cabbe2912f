"""The arithmetic of shares, lanes and batches, by brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets.order import Epoch, Share


@given(
    total=st.integers(0, 60),
    world_size=st.integers(1, 5),
    batch_size=st.integers(1, 7),
    lanes=st.integers(1, 6),
    even=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_batches_of_all_ranks_are_everything_once(total, world_size, batch_size, lanes, even):
    places, sizes = [], []
    for rank in range(world_size):
        share = Share.of(total, rank, world_size, even=even, batch_size=batch_size, lanes=lanes)
        batches = [list(share.batch(number)) for number in range(share.num_batches)]
        assert all(len(batch) == batch_size for batch in batches[:-1])
        assert all(batch for batch in batches)
        mine = [place for batch in batches for place in batch]
        assert sorted(mine) == list(range(share.begin, share.end))
        places, sizes = places + sorted(mine), [*sizes, len(mine)]
    assert places == list(range(total - total % world_size if even else total))
    assert max(sizes) - min(sizes) <= (0 if even else 1)


@given(batch_size=st.integers(1, 5), lanes=st.integers(1, 6), size=st.integers(0, 80))
@settings(max_examples=100, deadline=None)
def test_a_lane_is_one_run_of_the_share(batch_size, lanes, size):
    """So that its worker reads each shard once."""
    share = Share(7, 7 + size, batch_size, lanes)
    for lane in range(lanes):
        places = [place for number in range(lane, share.num_batches, lanes) for place in share.batch(number)]
        assert places == list(range(places[0], places[0] + len(places))) if places else True


COUNTS = np.array([5, 1, 8, 3, 2])


def sequence(epoch: Epoch) -> list[tuple[int, int]]:
    """Block and sample of every place."""
    found = []
    for place in range(int(COUNTS.sum())):
        block, within = epoch.block_at(place)
        found.append((block, int(epoch.samples_of(block)[within])))
    return found


@pytest.mark.parametrize("block_shards", [1, 2, 5, 9])
def test_an_epoch_has_every_sample_of_every_block_once(block_shards):
    epoch = Epoch(COUNTS, seed=3, epoch=1, block_shards=block_shards)
    blocks = -(-len(COUNTS) // block_shards)
    sizes = [int(COUNTS[epoch.shards_of(block)].sum()) for block in range(blocks)]
    assert sorted(np.concatenate([epoch.shards_of(block) for block in range(blocks)])) == list(range(len(COUNTS)))
    assert sorted(sequence(epoch)) == [(block, n) for block, size in enumerate(sizes) for n in range(size)]


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[tuple[int, ...]]:
        made = Epoch(COUNTS, seed=seed, epoch=epoch)
        return [(*made.shards_of(block), *made.samples_of(block)) for block in range(len(COUNTS))]

    assert order(1, 1) == order(1, 1)
    different = [order(1, 1), order(1, 2), order(2, 1), order(0, 1), order(0, 0)]
    assert all(a != b for n, a in enumerate(different) for b in different[:n])


def test_without_a_seed_it_is_the_order_of_the_corpus():
    epoch = Epoch(COUNTS, seed=None, epoch=4)
    assert sequence(epoch) == [(block, n) for block, count in enumerate(COUNTS) for n in range(count)]
