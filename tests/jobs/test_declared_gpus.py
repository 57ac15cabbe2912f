"""Both jobs on a cluster that declares GPUs, in one Ray of its own: the output of a cluster without, byte for byte."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.cluster import device
from pipeline.cluster.device import Placement, place, worker_device
from pipeline.errors import UserError

REPO = Path(__file__).resolve().parents[2]
RUN = {"limit": 17, "shard_size": 8, "max_tokens": "4"}  # shards of 8, 8 and 1 images
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
found = {"calls": {}, "said": {}, "refused": {}}

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

def attempt(name, function, settings):
    said = found["said"][name] = []
    try:
        function(settings, said.append)
    except UserError as error:
        found["refused"][name] = str(error)

def prune(name, **how):
    output = f"{given['folder']}/{name}"
    named = {"corpus": (given["corpus"],), "model": given["model"], "output": output}
    attempt(name, prune_corpus, PruneSettings(**named, **given["run"], **how))

def answer(name, **how):
    output = f"{given['folder']}/{name}"
    named = {"pruned": given["pruned"], "model": given["model"], "output": output}
    attempt(name, answer_corpus, AnswerSettings(**named, **given["answer"], **how))

one = {"workers": 1}  # each worker starts for seconds; how many there are by default, test_placement tells
prune("auto", batch_size="auto", **one)
prune("half", device="cpu", gpus_per_worker=0.5, workers=2)  # as many workers as CPUs
prune("three", gpus_per_worker=3.0)
answer("answers-auto", **one)
answer("answers-half", device="cpu", gpus_per_worker=0.5, **one)
if not torch.cuda.is_available():
    answer("cuda", device="cuda", **one)
print(json.dumps(found))
"""
SIZES = [1, 1, 7, 3, 1, 20, 2, 1]


@pytest.fixture(scope="module")
def on_cpus(prune, without_ray, tiny_llava, tmp_path_factory) -> Path:
    """Both jobs without Ray."""
    folder = tmp_path_factory.mktemp("cpus")
    prune(folder / "pruned", **RUN)
    settings = AnswerSettings(pruned=str(folder / "pruned"), model=tiny_llava, output=str(folder / "answers"), **ANSWER)
    with without_ray():
        answer_corpus(settings, lambda _: None)
    return folder


@pytest.fixture(scope="module")
def on_gpus(on_cpus, scenes_tars, tiny_llava, tmp_path_factory) -> tuple[Path, dict]:
    """Where the program's outputs lie, and what it found."""
    folder = tmp_path_factory.mktemp("gpus")
    given = {"folder": str(folder), "corpus": scenes_tars, "model": tiny_llava, "pruned": str(on_cpus / "pruned")}
    arguments = json.dumps({**given, "run": RUN, "answer": ANSWER, "sizes": SIZES})
    command = [sys.executable, "-c", PROGRAM, arguments]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("gpus", "actors"), [("1", 2), ("0.5", 4)])
def test_an_actor_on_a_gpu_gets_one_whole_shard_a_call(gpus, actors, on_gpus):
    calls = on_gpus[1]["calls"][gpus]
    assert sorted((call["shards"], call["rows"]) for call in calls) == [([n], size) for n, size in enumerate(SIZES)]
    assert {call["gpus"] for call in calls} == {1}
    assert len({call["actor"] for call in calls}) <= actors


def test_pruning_writes_the_same_bytes(on_cpus, on_gpus):
    for folder in ("selections", "prompts", "errors", "features"):
        expected = {path.name: path.read_bytes() for path in (on_cpus / "pruned" / folder).iterdir()}
        assert len(expected) == 3
        there = {path.name: path.read_bytes() for path in (on_gpus[0] / "half" / folder).iterdir()}
        assert sorted(n for n in expected | there if expected.get(n) != there.get(n)) == []
    commit = json.loads((on_gpus[0] / "half" / "_commits" / "00000001.json").read_text())
    assert commit["device"] == "cpu"


@pytest.mark.parametrize("name", ["answers-auto", "answers-half"])
def test_answering_gives_the_same_answers(name, on_cpus, on_gpus):
    if name == "answers-auto" and torch.cuda.is_available():
        pytest.skip("auto computes on CUDA here")
    for part in range(3):
        file = Path("answers") / f"part-{part:08d}.parquet"
        one, other = pq.read_table(on_cpus / file.parent / file), pq.read_table(on_gpus[0] / name / file)
        assert one.drop_columns("seconds") == other.drop_columns("seconds")


def test_a_gpu_that_torch_cannot_use_is_said_once_or_refused(on_gpus):
    _, found = on_gpus
    notes = {name: [line for line in said if "compute on the CPU" in line] for name, said in found["said"].items()}
    if not torch.cuda.is_available():
        assert [len(notes.pop(name)) for name in ("auto", "answers-auto")] == [1, 1]
        assert found["refused"]["cuda"].startswith("--device cuda: a worker on ")
        assert f"its torch {torch.__version__} " in found["refused"]["cuda"]
    assert not any(notes.values())


def test_a_measured_batch_size_and_too_many_gpus(on_gpus):
    folder, found = on_gpus
    assert json.loads((folder / "auto" / "_job.json").read_text())["resolved"]["batch_size"] >= 1
    assert (folder / "auto" / "_SUCCESS").exists()
    assert found["refused"]["three"].startswith(
        "--gpus-per-worker 3: no node of the cluster has so many; the most is 2"
    )
    assert found["refused"].keys() <= {"three", "cuda"}


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
