"""What another run does or leaves in the same output folder, before the lock is held and after a kill."""

import json
import threading
from collections import Counter
from contextlib import contextmanager
from unittest import mock

import pyarrow.parquet as pq
import pytest

from pipeline.artifact.artifact import Artifact
from pipeline.cluster.run_folder import TriesFolder
from pipeline.errors import UserError
from pipeline.prune.job import PruneSettings, prune_corpus
from pipeline.storage import LocalStore


@pytest.fixture
def tars(tmp_path, jpeg, write_tar) -> list[str]:
    """Two tars of three images each."""
    paths = []
    for tar in range(2):
        members = []
        for n in range(3 * tar, 3 * tar + 3):
            members += [(f"{n}.jpg", jpeg(n)), (f"{n}.json", {"prompts": [{"id": f"p{n}", "prompt": "what ?"}]})]
        paths.append(str(write_tar(tmp_path / f"{tar}.tar", members)))
    return paths


def image_ids(output) -> Counter[str]:
    manifest = json.loads((output / "manifest.json").read_text())
    tables = [pq.read_table(output / shard["files"]["selections"]["path"]) for shard in manifest["shards"]]
    return Counter(image_id for table in tables for image_id in table["image_id"].to_pylist())


@contextmanager
def just_before_the_lock(job):
    """Run another job in the moment before `Artifact.locked` takes the lock, once."""
    locked = Artifact.locked
    waiting = [job]

    def meet(artifact, tell):
        if waiting:
            waiting.pop()()
        return locked(artifact, tell)

    with mock.patch.object(Artifact, "locked", meet):
        yield
    assert not waiting


def settings_of(output, tars, model) -> PruneSettings:
    return PruneSettings(corpus=tuple(tars), model=model, output=str(output), max_tokens="4", shard_size=4)


@pytest.mark.usefixtures("work_here")
def test_an_index_built_by_another_job_meanwhile_is_extended_not_replaced(tars, tiny_llava, tmp_path):
    output = tmp_path / "out"
    with just_before_the_lock(lambda: prune_corpus(settings_of(output, tars[:1], tiny_llava), lambda _: None)):
        prune_corpus(settings_of(output, tars, tiny_llava), lambda _: None)
    assert sorted(image_ids(output).values()) == [1] * 6


@pytest.mark.usefixtures("work_here")
def test_a_corpus_that_another_job_enlarged_meanwhile_is_not_finished_without_it(tars, tiny_llava, tmp_path):
    output = tmp_path / "out"
    prune_corpus(settings_of(output, tars[:1], tiny_llava), lambda _: None)
    (output / "_SUCCESS").unlink()
    with (
        just_before_the_lock(lambda: prune_corpus(settings_of(output, tars, tiny_llava), lambda _: None)),
        pytest.raises(UserError, match="no longer names"),
    ):
        prune_corpus(settings_of(output, tars[:1], tiny_llava), lambda _: None)
    assert sorted(image_ids(output).values()) == [1] * 6


def test_what_a_killed_run_left_stops_no_new_one(prune, tmp_path):
    """Its request to stop, its tries of a shard, and a request that it still makes while the new run goes on."""
    output = tmp_path / "out"
    prune(output, limit=16, shard_size=8, max_tokens="4")
    (output / "_commits" / "00000000.json").unlink()
    killed = output / "_runs" / "killed"
    killed.mkdir(parents=True)
    (killed / "stop").touch()
    tries = TriesFolder(LocalStore(killed / "tries")).of_shard(0, "encode")
    for number in range(9):
        tries.note(number, "its worker died")
    over = threading.Event()

    def insist() -> None:
        while not over.wait(0.02):
            (output / "_stop").touch()  # where runs of earlier versions asked for it

    insisting = threading.Thread(target=insist)
    insisting.start()
    try:
        prune(output, limit=16, shard_size=8, max_tokens="4")
    finally:
        over.set()
        insisting.join()
    assert (output / "_SUCCESS").exists()
    assert not (output / "_runs").exists()
