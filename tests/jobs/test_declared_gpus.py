"""Both jobs on a cluster that declares GPUs: the output of a cluster without, byte for byte.

Which GPUs Ray gives to whom is seen in one Ray of its own, what jobs make of a GPU that torch can't use without Ray.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.cluster import device, stream
from pipeline.cluster.device import Placement, place, worker_device
from pipeline.cluster.stream import Stage
from pipeline.errors import UserError
from pipeline.prune import tune

REPO = Path(__file__).resolve().parents[2]
RUN = {"limit": 17, "shard_size": 8, "max_tokens": "4"}  # shards of 8, 8 and 1 images
BATCH_SIZE = 8
ANSWER = {"tokens": "2", "max_new_tokens": 3}

# What the process with declared GPUs does; `given` holds paths and the settings above.
PROGRAM = """
import json, os, sys
import pyarrow as pa, ray, torch
from jobs.console import quiet_libraries
from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.errors import UserError
from pipeline.prune.job import PruneSettings, prune_corpus
from pipeline.cluster.session import quiet_ray_data
from pipeline.cluster.stream import Stage, stream_items

given = json.loads(sys.argv[1])
quiet_libraries()
ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
quiet_ray_data()
found = {"calls": {}, "said": []}

class See:
    def __init__(self, settings):
        pass

    def __call__(self, batch):
        seen = {"shards": sorted(set(batch["shard"].to_pylist())), "rows": len(batch), "gpus": len(ray.get_gpu_ids())}
        return pa.table({"seen": [json.dumps({**seen, "actor": os.getpid()})]})

def ragged(batch, sizes):
    (shard,) = batch["shard"].to_pylist()
    return pa.table({"shard": [shard] * sizes[shard]})

sizes = given["sizes"]
for gpus, workers in ((1, 2), (0.5, 4)):
    stages = [Stage(ragged, sizes, 0.75), Stage(See, None, 0.2, processes=workers, num_gpus=gpus)]
    items = [{"shard": n} for n in range(len(sizes))]
    found["calls"][gpus] = [json.loads(row["seen"]) for row in stream_items(items, stages)]

def prune(name, **how):
    output = f"{given['folder']}/{name}"
    named = {"corpus": (given["corpus"],), "model": given["model"], "output": output, "device": "cpu"}
    prune_corpus(PruneSettings(**named, **given["run"], **how), found["said"].append)

prune("half", gpus_per_worker=0.5, **given["half"])
answers = AnswerSettings(pruned=f"{given['folder']}/half", model=given["model"], output=f"{given['folder']}/answers",
                         device="cpu", gpus_per_worker=0.5, workers=1, **given["answer"])
answer_corpus(answers, found["said"].append)
try:
    prune("three", gpus_per_worker=3.0)
except UserError as error:
    found["refused"] = str(error)
print(json.dumps(found))
"""
SIZES = [1, 1, 7, 3, 1, 20, 2, 1]


def run_on_gpus(corpus: str, model: str, folder: Path, half: dict) -> dict:
    """What the program finds.

    Args:
        corpus: of the prune job.
        model: of both jobs.
        folder: of their outputs.
        half: settings of the prune job on half a GPU a worker.
    """
    given = {"folder": str(folder), "corpus": corpus, "model": model, "half": half, "answer": ANSWER}
    command = [sys.executable, "-c", PROGRAM, json.dumps({**given, "run": RUN, "sizes": SIZES})]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found: dict = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def on_gpus(scenes_tars, tiny_llava, tmp_path_factory) -> tuple[Path, dict]:
    """Where the outputs of one worker of each job lie, and what the program found."""
    folder = tmp_path_factory.mktemp("gpus")
    return folder, run_on_gpus(scenes_tars, tiny_llava, folder, {"batch_size": BATCH_SIZE, "workers": 1})


@pytest.fixture(scope="module")
def more_on_gpus(scenes_tars, tiny_llava, tmp_path_factory) -> Path:
    """Where the outputs lie when as many workers as CPUs prune, at the batch size that the job measured."""
    folder = tmp_path_factory.mktemp("gpus")
    run_on_gpus(scenes_tars, tiny_llava, folder, {"batch_size": "auto", "workers": 2})
    return folder


@pytest.fixture(scope="module")
def on_cpus(prune, answer, tmp_path_factory) -> Path:
    """Both jobs without GPUs."""
    folder = tmp_path_factory.mktemp("cpus")
    prune(folder / "pruned", **RUN, batch_size=BATCH_SIZE)
    answer(folder / "pruned", folder / "answers")
    return folder


@pytest.fixture(scope="module")
def answer(without_ray, tiny_llava) -> Callable[..., list[str]]:
    """Run the answer job in this process, as if on a cluster with so many GPUs; returns what it said."""

    def run(pruned: Path, output: Path, gpus: int = 0, **changes: object) -> list[str]:
        said: list[str] = []
        settings = AnswerSettings(pruned=str(pruned), model=tiny_llava, output=str(output), **{**ANSWER, **changes})
        with without_ray(gpus=gpus):
            answer_corpus(settings, said.append)
        return said

    return run


@pytest.mark.parametrize(("gpus", "actors"), [("1", 2), ("0.5", 4)])
def test_an_actor_on_a_gpu_gets_one_whole_shard_a_call(gpus, actors, on_gpus):
    calls = on_gpus[1]["calls"][gpus]
    assert sorted((call["shards"], call["rows"]) for call in calls) == [([n], size) for n, size in enumerate(SIZES)]
    assert {call["gpus"] for call in calls} == {1}
    assert len({call["actor"] for call in calls}) <= actors


def assert_same_bytes(one: Path, other: Path) -> None:
    assert (one / "_SUCCESS").exists()
    for folder in ("selections", "prompts", "errors", "features", "payloads"):
        expected = {path.name: path.read_bytes() for path in (other / folder).iterdir()}
        assert len(expected) == 3
        there = {path.name: path.read_bytes() for path in (one / folder).iterdir()}
        assert sorted(n for n in expected | there if expected.get(n) != there.get(n)) == []
    commit = json.loads((one / "_commits" / "00000001.json").read_text())
    assert commit["device"] == "cpu"


def test_pruning_writes_the_same_bytes(on_cpus, on_gpus):
    assert_same_bytes(on_gpus[0] / "half", on_cpus / "pruned")


def assert_same_answers(one: Path, other: Path) -> None:
    for part in range(3):
        file = Path("answers") / f"part-{part:08d}.parquet"
        assert pq.read_table(one / file).drop_columns("seconds") == pq.read_table(other / file).drop_columns("seconds")


def test_answering_gives_the_same_answers(on_cpus, on_gpus):
    assert_same_answers(on_cpus / "answers", on_gpus[0] / "answers")


@pytest.mark.slow
def test_two_workers_and_a_measured_batch_size_on_gpus(more_on_gpus, prune, answer, tmp_path):
    measured = json.loads((more_on_gpus / "half" / "_job.json").read_text())["resolved"]["batch_size"]
    assert measured >= 1
    prune(tmp_path / "pruned", **RUN, batch_size=measured)
    answer(tmp_path / "pruned", tmp_path / "answers")
    assert_same_bytes(more_on_gpus / "half", tmp_path / "pruned")
    assert_same_answers(tmp_path / "answers", more_on_gpus / "answers")


def test_every_process_with_the_model_asks_for_its_share_of_a_gpu(prune, answer, monkeypatch, tmp_path):
    asked: dict[str, float] = {}
    map_shards, run_on_worker = stream._map_shards, stream.run_on_worker

    def see_stage(dataset: object, stage: Stage, most: int) -> object:
        asked[stage.work.__name__] = stage.num_gpus
        return map_shards(dataset, stage, most)

    def see_call(function: Callable[..., object], *arguments: object, num_gpus: float = 0.0) -> object:
        asked[function.__name__] = num_gpus
        return run_on_worker(function, *arguments, num_gpus=num_gpus)

    def measure(*_: object) -> int:
        return 4

    monkeypatch.setattr(stream, "_map_shards", see_stage)
    monkeypatch.setattr(tune, "run_on_worker", see_call)
    monkeypatch.setattr(tune, "_measure", measure)
    share = {"device": "cpu", "gpus_per_worker": 0.5}
    prune(tmp_path / "half", gpus=2, **{**RUN, "limit": 2}, **share, batch_size="auto")
    answer(tmp_path / "half", tmp_path / "answers", gpus=2, **share)
    without = {"_scan_stage": 0.0, "read_stage": 0.0, "write_stage": 0.0}
    assert asked == {**without, "measure": 0.5, "EncodeShards": 0.5, "AnswerShards": 0.5}


def notes_in(said: list[str]) -> list[str]:
    return [line for line in said if "compute on the CPU" in line]


def test_more_gpus_than_a_node_has_are_refused_and_a_device_that_is_asked_for_is_no_news(on_gpus):
    found = on_gpus[1]
    assert found["refused"].startswith("--gpus-per-worker 3: no node of the cluster has so many; the most is 2")
    assert found["said"]
    assert notes_in(found["said"]) == []


def test_a_gpu_that_torch_cannot_use_is_said_once(on_cpus, prune, answer, tmp_path):
    pruning = prune(tmp_path / "auto", gpus=2, **RUN)
    answering = answer(on_cpus / "pruned", tmp_path / "answers", gpus=2)
    assert [len(notes_in(said)) for said in (pruning, answering)] == [0 if torch.cuda.is_available() else 1] * 2
    assert (tmp_path / "auto" / "_SUCCESS").exists()
    if not torch.cuda.is_available():
        assert_same_answers(on_cpus / "answers", tmp_path / "answers")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use CUDA here")
def test_a_gpu_that_torch_cannot_use_is_refused_where_it_is_asked_for(on_cpus, answer, tmp_path):
    with pytest.raises(UserError, match=rf"--device cuda: a worker on .* its torch {re.escape(torch.__version__)} "):
        answer(on_cpus / "pruned", tmp_path / "answers", gpus=2, device="cuda")


@pytest.mark.parametrize(
    ("chosen", "gpus", "nodes", "placement", "workers"),
    [
        ("auto", None, [], Placement("cpu", 0.0), None),
        ("auto", None, [2.0, 1.0], Placement("auto", 1.0), 3),
        ("auto", 0.0, [2.0], Placement("cpu", 0.0), None),
        ("cpu", None, [2.0], Placement("cpu", 0.0), None),
        ("cpu", 0.5, [2.0], Placement("cpu", 0.5), 4),
        ("cuda", None, [1.0, 1.0], Placement("cuda", 1.0), 2),
        ("cuda", 0.0, [], Placement("cuda", 0.0), None),
        ("auto", 0.4, [2.0], Placement("auto", 0.4), 4),  # a share is never split over two GPUs
        ("auto", 0.1, [1.0], Placement("auto", 0.1), 10),
        ("auto", 2, [3.0, 1.0], Placement("auto", 2), 1),  # nor a worker over two nodes
    ],
)
def test_placement(chosen, gpus, nodes, placement, workers, monkeypatch):
    monkeypatch.setattr(device, "cluster_gpus", lambda: nodes)
    assert place(chosen, gpus, None, pytest.fail) == placement
    assert placement.workers == workers


@pytest.mark.parametrize(
    ("chosen", "gpus", "message"),
    [
        ("cuda", None, "--device cuda: the cluster has no GPU"),
        ("auto", 1.0, "--gpus-per-worker 1: no node of the cluster has so many; the most is 0"),
    ],
)
def test_placement_refused(chosen, gpus, message, monkeypatch):
    monkeypatch.setattr(device, "cluster_gpus", list)
    with pytest.raises(UserError, match=message):
        place(chosen, gpus, None, pytest.fail)


@pytest.mark.parametrize("gpus", [-1.0, 1.5, float("nan"), float("inf")])
def test_shares_that_no_worker_can_have_are_refused_before_any_cluster(gpus):
    with pytest.raises(UserError, match=f"--gpus-per-worker {gpus:g}: expected"):
        AnswerSettings(pruned="p", model="m", output="o", gpus_per_worker=gpus)


def test_a_cluster_that_may_grow_is_waited_for_aloud(monkeypatch):
    monkeypatch.setattr(device, "cluster_gpus", list)
    said: list[str] = []
    assert place("auto", 1.0, "10.0.0.1:6379", said.append) == Placement("auto", 1.0)
    assert len(said) == 1
    assert "waiting until the cluster has grown one" in said[0]


def test_the_device_of_a_worker(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [worker_device(choice).type for choice in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [worker_device(choice).type for choice in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(UserError, match="sees no CUDA"):
        worker_device("cuda")
