"""The PyTorch dataset: who gives what, in which order, and how a pass goes on where it was interrupted."""

import copy
import json
import multiprocessing
from collections.abc import Iterator
from itertools import islice, pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader

from pipeline.datasets import torch_dataset
from pipeline.datasets.torch_dataset import PrunedDataset, PrunedLoader
from pipeline.errors import UserError
from tests.datasets.conftest import features_of, ids

pytestmark = pytest.mark.long

COUNTS = (5, 3, 0, 7, 1, 6)
ALL = [f"{shard}-{n}" for shard, count in enumerate(COUNTS) for n in range(count)]
SHUFFLED = {"shuffle": True, "seed": 5}


def flat(batches) -> list[str]:
    return [one for batch in batches for one in batch]


def test_samples_come_in_the_order_of_the_corpus_with_the_features_of_their_image(make):
    samples = list(PrunedDataset(make(COUNTS), tokens=2))
    assert ids(samples) == ALL
    for sample in samples:
        shard, number = map(int, sample.prompt.prompt_id.split("-"))
        stored = features_of(shard, number // 2)
        assert sample.image.indices_K.tolist() == [0, 3]  # the first two picks, in raster order
        assert torch.equal(sample.image.features_KO, stored[[1, 0]])


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
@pytest.mark.parametrize(("tokens", "kept"), [("all", 3), (0.25, 1), ("mean:2", 2), ("gain:0.2", 2)])
def test_every_form_of_budget(make, form, tokens, kept):
    assert {len(sample.image.indices_K) for sample in PrunedDataset(make((3, 2), form=form), tokens=tokens)} == {kept}


def test_min_tokens_are_kept_where_a_threshold_asks_for_fewer(make):
    assert {len(s.image.indices_K) for s in PrunedDataset(make((3,)), tokens="gain:0.4", min_tokens=2)} == {2}


@pytest.mark.parametrize(
    ("dtype", "feature_dtype", "asked", "given"),
    [
        ("float32", "float16", "model", torch.float32),
        ("bfloat16", "model", "model", torch.bfloat16),
        ("bfloat16", "int8", "model", torch.bfloat16),
        ("float32", "float16", None, torch.float16),
        ("float32", "int8", None, torch.float32),
        ("float32", "model", "bfloat16", torch.bfloat16),
    ],
)
def test_features_come_in_the_dtype_of_the_model_whatever_they_are_stored_in(make, dtype, feature_dtype, asked, given):
    address = make((2,), dtype=dtype, feature_dtype=feature_dtype)
    sample = next(iter(PrunedDataset(address, dtype=asked)))
    assert sample.image.features_KO.dtype == given
    assert torch.allclose(sample.image.features_KO.float(), features_of(0, 0)[[1, 2, 0]], rtol=0.02, atol=0.02)


def test_a_shuffle_differs_by_seed_and_by_epoch_and_has_everything(make):
    address = make(COUNTS)

    def order(seed: int, epoch: int, **options: int) -> list[str]:
        dataset = PrunedDataset(address, shuffle=True, seed=seed, **options)
        dataset.set_epoch(epoch)
        return ids(list(dataset))

    orders = [order(0, 0), order(0, 1), order(1, 0), order(0, 0, block_shards=3)]
    assert all(sorted(one) == sorted(ALL) for one in orders)
    assert all(a != b for n, a in enumerate(orders) for b in [*orders[:n], ALL])
    assert order(0, 1) == orders[1]


def test_a_block_of_shards_is_mixed_and_one_shard_is_not(make):
    address = make((8, 8, 8))
    shards = [[i[0] for i in ids(list(PrunedDataset(address, block_shards=n, **SHUFFLED)))] for n in (1, 3)]
    runs = [1 + sum(a != b for a, b in pairwise(one)) for one in shards]
    assert runs[0] == 3
    assert runs[1] > 6


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_ranks_and_workers_get_disjoint_shares_that_are_everything(make, world_size, workers):
    address = make(COUNTS)
    seen = []
    for rank in range(world_size):
        dataset = PrunedDataset(address, batch_size=2, collate=ids, rank=rank, world_size=world_size, **SHUFFLED)
        mine = flat(DataLoader(dataset, batch_size=None, num_workers=workers))
        assert len(mine) in (len(ALL) // world_size, -(-len(ALL) // world_size))
        seen += mine
    assert sorted(seen) == sorted(ALL)


def test_even_shares_are_equally_large(make):
    address = make(COUNTS)
    shares = [
        list(PrunedDataset(address, rank=rank, world_size=4, even=True, batch_size=2, collate=ids)) for rank in range(4)
    ]
    assert [len(flat(share)) for share in shares] == [len(ALL) // 4] * 4
    assert flat(flat(shares)) == ALL[: 4 * (len(ALL) // 4)]


def test_ranks_are_those_of_torch_distributed_unless_they_are_given(make):
    address = make(COUNTS)
    early = PrunedDataset(address, batch_size=2)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        assert ids(list(PrunedDataset(address))) == ids(list(PrunedDataset(address, rank=1, world_size=2)))
        assert ids(list(PrunedDataset(address, rank=0, world_size=2))) == ALL[: len(ALL) // 2]
        for passing in (early, PrunedLoader(early, 1)):
            with pytest.raises(UserError, match="this process is rank 1 of 2, and was rank 0 of 1 when the dataset"):
                list(passing)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("batch_size", "numbers"), [(1, (2,)), (3, (1, 2)), (4, (2,))])
def test_with_lanes_the_number_of_workers_changes_nothing(make, batch_size, numbers):
    dataset = PrunedDataset(make(COUNTS), batch_size=batch_size, collate=ids, lanes=4, **SHUFFLED)
    alone = list(copy.copy(dataset))
    assert sorted(flat(alone)) == sorted(ALL)
    assert [len(batch) for batch in alone[:-1]] == [batch_size] * (len(alone) - 1)
    assert len(dataset) == len(alone)
    for workers in numbers:
        assert list(DataLoader(copy.copy(dataset), batch_size=None, num_workers=workers)) == alone


def test_a_lane_reads_each_of_its_shards_once(make, monkeypatch):
    dataset = PrunedDataset(make(COUNTS), batch_size=2, collate=ids)
    read = []
    real = type(dataset.source).read
    monkeypatch.setattr(type(dataset.source), "read", lambda self, place: read.append(place) or real(self, place))
    list(dataset)
    assert read == [0, 1, 2, 3, 4]  # the places of the five shards that have prompts


def in_a_worker(monkeypatch: pytest.MonkeyPatch, number: int, workers: int) -> None:
    """What follows in this process is as in a worker that was forked."""
    monkeypatch.setattr(torch_dataset, "get_worker_info", lambda: SimpleNamespace(id=number, num_workers=workers))


def test_workers_that_cannot_share_the_lanes_are_refused(make, monkeypatch):
    dataset = PrunedDataset(make(COUNTS), batch_size=2, collate=ids, lanes=3)
    in_a_worker(monkeypatch, 1, 2)
    with pytest.raises(UserError, match="num_workers=2: so many can't share 3 lanes; ask for a number that divides 3"):
        list(dataset)


def passes(loader, epochs: int) -> list[list[str]]:
    return [batch for _ in range(epochs) for batch in loader]


@pytest.mark.parametrize(("workers", "resumed_with"), [(0, 0), (2, 2), (0, 2), (2, 1)])
def test_a_loader_goes_on_behind_any_batch_with_any_number_of_workers(make, workers, resumed_with):
    """Three epochs, interrupted behind every batch but within the first two."""
    address = make((5, 3, 4))

    def loader(num_workers: int) -> PrunedLoader:
        dataset = PrunedDataset(address, batch_size=3, collate=ids, lanes=2, **SHUFFLED)
        return PrunedLoader(dataset, num_workers)

    whole = passes(loader(0), 3)
    assert len(whole) == 12
    assert whole[:4] != whole[4:8]
    for stop in (3, 5) if workers or resumed_with else range(9):
        first = loader(workers)
        taken: list[list[str]] = []
        while len(taken) < stop:
            for batch in first:
                taken.append(batch)
                if len(taken) == stop:
                    break
        state = json.loads(json.dumps(first.state_dict()))
        second = loader(resumed_with)
        second.load_state_dict(state)
        assert second.state_dict() | {"start": 0, "given": 0, "worker": None} == state | {
            "start": 0, "given": 0, "worker": None,
        }  # fmt: skip
        rest: list[list[str]] = []
        while len(taken) + len(rest) < len(whole):
            rest += second
        assert taken + rest == whole


def test_a_state_can_be_loaded_before_a_loader_is_made_and_lanes_follow_it(make):
    address = make(COUNTS)
    first = PrunedLoader(PrunedDataset(address, batch_size=2, collate=ids, **SHUFFLED), 2)
    whole = list(first)
    first.set_epoch(0)
    batches = iter(first)
    taken = [next(batches) for _ in range(3)]
    assert first.state_dict()["order"]["lanes"] == 2
    dataset = PrunedDataset(address, batch_size=2, collate=ids, **SHUFFLED)
    dataset.load_state_dict(first.state_dict())
    assert taken + list(PrunedLoader(dataset, 0)) == whole


def test_a_sample_at_a_time_is_resumed_at_any_sample(make):
    address = make((4, 3))
    whole = ids(list(PrunedDataset(address, **SHUFFLED)))
    for stop in range(len(whole) + 1):
        first = PrunedDataset(address, **SHUFFLED)
        given = iter(first)
        taken = ids([next(given) for _ in range(stop)])
        second = PrunedDataset(address, **SHUFFLED)
        second.load_state_dict(first.state_dict())
        assert taken + ids(list(second)) == whole
        assert second.epoch == 1


def test_an_epoch_follows_a_complete_one_and_set_epoch_returns_to_it(make):
    dataset = PrunedDataset(make(COUNTS), **SHUFFLED)
    first, second = ids(list(dataset)), ids(list(dataset))
    assert first != second
    dataset.set_epoch(0)
    assert ids(list(dataset)) == first
    dataset.set_epoch(1)
    given = iter(dataset)
    next(given)
    dataset.set_epoch(1)
    assert ids(list(dataset)) == second  # a pass that was left begins anew


def test_set_epoch_keeps_where_a_resumed_dataset_stands(make):
    dataset = PrunedDataset(make(COUNTS))
    given = iter(dataset)
    taken = [next(given) for _ in range(4)]
    resumed = PrunedDataset(dataset.source.address)
    resumed.load_state_dict(dataset.state_dict())
    resumed.set_epoch(resumed.epoch)
    assert ids(taken) + ids(list(resumed)) == ALL


def test_a_left_epoch_begins_anew_in_a_loader(make):
    loader = PrunedLoader(PrunedDataset(make(COUNTS), batch_size=2, collate=ids, lanes=2, **SHUFFLED), 2)
    for batch in loader:
        first = batch
        break
    assert next(iter(loader)) == first


@pytest.mark.parametrize("workers", [0, 2])
def test_a_left_epoch_is_gone_on_with_or_left_behind_on_demand(make, workers):
    """As docs/training.md says."""

    def loader() -> PrunedLoader:
        return PrunedLoader(PrunedDataset(make(COUNTS), batch_size=2, collate=ids, lanes=2, **SHUFFLED), workers)

    one = loader()
    epochs = [list(one), list(one)]
    for demand, rest in (
        (lambda left: left.load_state_dict(left.state_dict()), epochs[0][3:]),
        (lambda left: left.set_epoch(left.epoch + 1), epochs[1]),
    ):
        left = loader()
        assert list(islice(left, 3)) == epochs[0][:3]
        demand(left)
        assert list(left) == rest


class _Workers:
    """A loader with workers that keep their own states, as torchdata's `StatefulDataLoader` asks them: in turns."""

    def __init__(self, dataset: PrunedDataset, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copies = [copy.deepcopy(dataset) for _ in range(number)]
        self.patch = monkeypatch

    def _in(self, worker: int) -> PrunedDataset:
        in_a_worker(self.patch, worker, len(self.copies))
        return self.copies[worker]

    def load(self, states: list[dict]) -> None:
        for worker, state in enumerate(states):
            self._in(worker).load_state_dict(state)

    def batches(self) -> Iterator[tuple[list[str], list[dict]]]:
        """Each batch, and the states of all workers behind it."""
        iterators = [iter(self._in(worker)) for worker in range(len(self.copies))]
        while iterators:
            for worker, iterator in enumerate(list(iterators)):
                self._in(worker)
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                yield batch, [json.loads(json.dumps(one.state_dict())) for one in self.copies]


def test_workers_that_keep_their_own_states_go_on_at_the_batch(make, monkeypatch):
    dataset = PrunedDataset(make((6, 6, 6)), batch_size=3, collate=ids, **SHUFFLED)
    whole = list(_Workers(dataset, 2, monkeypatch).batches())
    assert sorted(flat(batch for batch, _ in whole)) == sorted(f"{s}-{n}" for s in range(3) for n in range(6))
    for stop in (2, 4):  # the next turn is worker 0's
        resumed = _Workers(dataset, 2, monkeypatch)
        resumed.load(whole[stop - 1][1])
        assert [batch for batch, _ in resumed.batches()] == [batch for batch, _ in whole[stop:]]


def test_the_state_of_a_worker_is_no_other_workers(make, monkeypatch):
    dataset = PrunedDataset(make(COUNTS), batch_size=2, collate=ids)
    states = [states for _, states in _Workers(dataset, 2, monkeypatch).batches()][1]
    swapped = _Workers(dataset, 2, monkeypatch)
    swapped.load(states[::-1])
    with pytest.raises(UserError, match="the state is that of worker 1 of 2, and this is worker 0 of 2"):
        list(swapped.batches())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 6}, "seed: 5 -> 6"),
        ({"shuffle": False}, "seed: 5 -> None"),
        ({"batch_size": 3}, "batch_size: 2 -> 3"),
        ({"tokens": 1}, "tokens: 'all' -> '1'"),
        ({"dtype": "float16"}, "dtype: 'torch.float32' -> 'torch.float16'"),
        ({"lanes": 2}, "lanes: 1 -> 2"),
        ({"rank": 1, "world_size": 2}, "rank: 0 -> 1; world_size: 1 -> 2"),
        ({"block_shards": 2}, "block_shards: 1 -> 2"),
        ({"even": True}, "even: False -> True"),
    ],
)
def test_the_state_of_another_order_is_refused_with_the_difference(make, change, told):
    address = make(COUNTS)
    options = {"batch_size": 2, "collate": ids, **SHUFFLED}
    state = PrunedDataset(address, **options).state_dict()
    with pytest.raises(UserError, match=rf"in another order \({told}\)"):
        PrunedDataset(address, **{**options, **change}).load_state_dict(state)


def test_the_state_of_another_artifact_is_refused(make, tmp_path):
    state = PrunedDataset(make(COUNTS)).state_dict()
    with pytest.raises(UserError, match=r"in another order \(artifact: '[0-9a-f]{64}' -> '[0-9a-f]{64}'\)"):
        PrunedDataset(make((2,), root=str(tmp_path / "other"))).load_state_dict(state)
    with pytest.raises(UserError, match="no state of a PrunedDataset"):
        PrunedDataset(make(COUNTS, root=str(tmp_path / "third"))).load_state_dict({"form": 0})


def test_prompts_about_images_that_could_not_be_pruned_are_left_out_and_told(make):
    dataset = PrunedDataset(make((2, 3), elsewhere=("1-1", 0)), batch_size=1, collate=ids)
    with pytest.warns(UserWarning, match="1 prompt is left out of shard 00000001"):
        assert flat(dataset) == ["0-0", "0-1", "1-0", "1-2"]


def test_artifacts_that_cannot_be_read_from_are_refused_in_one_sentence(make, tmp_path):
    with pytest.raises(UserError, match="was pruned with --features none: it holds rankings alone"):
        PrunedDataset(make((2,), root=str(tmp_path / "a"), form="none"))
    with pytest.raises(UserError, match="is not finished; run its prune job again to complete it"):
        PrunedDataset(make((2,), root=str(tmp_path / "b"), finish=False))
    with pytest.raises(UserError, match="fewer tokens stored in"):
        PrunedDataset(make((2,), root=str(tmp_path / "c")), tokens=4)
    with pytest.raises(UserError, match="tokens that are not stored in"):
        PrunedDataset(make((2,), root=str(tmp_path / "d")), tokens="gain:0.1")
    with pytest.raises(UserError, match="none of 2 prompts can be posed"):
        PrunedDataset(make((0, 0), root=str(tmp_path / "e")))
    with pytest.raises(UserError, match="is empty, or does not exist"):
        PrunedDataset(str(tmp_path / "nothing"))


def test_arguments_that_make_no_sense_are_refused(make):
    address = make((2,))
    for options, told in (
        ({"rank": 2, "world_size": 2}, "rank 2 of world_size 2: ranks count from 0"),
        ({"rank": 1}, "rank 1 of world_size None: give both"),
        ({"batch_size": 0}, "batch_size 0: expected 1 or more"),
        ({"collate": ids}, "give batch_size too"),
        ({"dtype": "int8"}, "dtype 'int8'"),
    ):
        with pytest.raises((UserError, ValueError), match=told):
            PrunedDataset(address, **options)
    with pytest.raises(UserError, match="gives samples one by one"):
        PrunedLoader(PrunedDataset(address))
    with pytest.raises(UserError, match="persistent_workers"):
        PrunedLoader(PrunedDataset(address, batch_size=1), 1, persistent_workers=True)


def test_a_shard_that_changed_since_is_told(make):
    address = make(COUNTS)
    dataset = PrunedDataset(address)
    make((5, 2, 0, 7, 1, 6), root=address)
    with pytest.raises(UserError, match=r"shard 00000001 has 2 prompts that can be posed, it had 3 when it was opened"):
        list(dataset)


def test_a_file_that_is_gone_is_told(make, tmp_path):
    root = make((2, 2), root=str(tmp_path / "pruned"))
    dataset = PrunedDataset(root)
    (tmp_path / "pruned" / "features" / "shard-00000001.tar").unlink()
    with pytest.raises(UserError, match=r"features/shard-00000001.tar is missing; run the prune job again with"):
        list(dataset)


def test_a_damaged_shard_is_told(make, tmp_path):
    address = make((2,))
    dataset = PrunedDataset(address)
    tar = tmp_path / "pruned" / "features" / "shard-00000000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-00000000.tar differ.*redo that shard"):
        list(dataset)


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_a_bucket_is_read_and_not_by_forked_workers(make, s3, form, monkeypatch):
    dataset = PrunedDataset(make((3, 2), root=f"{s3}/pruned", form=form), batch_size=2, collate=ids)
    assert flat(copy.copy(dataset)) == ["0-0", "0-1", "0-2", "1-0", "1-1"]
    assert PrunedLoader(dataset, 2).multiprocessing_context == multiprocessing.get_context("spawn")
    in_a_worker(monkeypatch, 0, 2)
    with pytest.raises(UserError, match="can't be read from a forked process"):
        list(dataset)


@pytest.mark.slow
def test_a_bucket_is_read_by_spawned_workers(make, s3):
    dataset = PrunedDataset(make((3, 2), root=f"{s3}/pruned"), batch_size=2, collate=ids, lanes=2)
    alone = list(copy.copy(dataset))
    assert list(PrunedLoader(dataset, 2)) == alone
