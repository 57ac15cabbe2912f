"""The row about vLLM without vLLM: what its process is given, and what becomes of what it says."""

import json
import stat
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.scaled_next import TINY
from benchmarks.serving_baselines import Limits
from benchmarks.serving_bench import ANSWER, UNTOUCHED, Bench, Case, Work
from benchmarks.serving_in_vllm import ARTIFACT, BLOCK, MARK, NEWLINE, PICTURES, of_artifact, of_pictures, renamed
from benchmarks.serving_tables import vllm_line
from benchmarks.serving_vllm import time_vllm
from pipeline.artifact.artifact import Artifact
from pipeline.budget import Budget
from pipeline.families.checkpoint import open_checkpoint
from pipeline.loader.shard import ShardLoader

WORK = Work(2, 2, 3)
CASE = Case(ANSWER, WORK, 20)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("vllm"), TINY, Limits(32, 16_384), torch.get_num_threads())


@pytest.fixture
def python(tmp_path):
    """Makes an interpreter that says these answers of each side, whatever it is told to run."""

    def make(answers, cached=10_000):
        path = tmp_path / "python"
        path.write_text(
            f"#!{sys.executable}\n"
            "import json, sys\n"
            f"mark, answers = {MARK!r}, {answers!r}[sys.argv[2]]\n"
            "print('a line of a library')\n"
            "print(mark + json.dumps({'loaded': '0.0'}), flush=True)\n"
            "for _ in sys.stdin:\n"
            "    found = {'wall_sec': 2.0 if sys.argv[2] == 'pictures' else 1.0, 'cpu_sec': 1.0}\n"
            f"    found['cached_tokens'] = {cached}\n"
            "    print(mark + json.dumps({**found, 'answers': answers}), flush=True)\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


@pytest.fixture(scope="module")
def answers(bench):
    return {PICTURES: bench.turn(Case(UNTOUCHED, WORK)).answers, ARTIFACT: bench.turn(CASE).answers}


def test_its_answers_are_compared_and_its_times_taken(bench, python, answers):
    timed = {Case("prune", WORK, 20).name: {"sec": 1.0}}
    found = time_vllm(bench, CASE, timed, python(answers), 2)
    assert (found["times"], found["times_with_pruning"]) == (2.0, 1.0)
    assert found["equal from pictures"] == found["equal from the artifact"] == WORK.answers
    assert "2.0 times the answers a second" in vllm_line(found)


def test_other_answers_are_not_timed(bench, python, answers):
    other = {**answers, ARTIFACT: {name: [tokens[0] + 1, *tokens[1:]] for name, tokens in answers[ARTIFACT].items()}}
    with pytest.raises(AssertionError, match="answers otherwise"):
        time_vllm(bench, CASE, {Case("prune", WORK, 20).name: {"sec": 1.0}}, python(other), 1)


def test_images_that_prompts_do_not_share_are_not_timed(bench, python, answers):
    least = WORK.images * (WORK.prompts - 1) * (TINY.visual_tokens // BLOCK * BLOCK)
    with pytest.raises(AssertionError, match="pictures: prompts about an image do not share"):
        time_vllm(bench, CASE, {Case("prune", WORK, 20).name: {"sec": 1.0}}, python(answers, least - 1), 1)


def test_it_is_given_the_rows_that_our_engine_reads(bench):
    output = bench.ours(CASE).output
    checkpoint, family = open_checkpoint(bench.model)
    answerer = family.answerer(checkpoint, torch.device("cpu"), torch.float32)
    loader = ShardLoader(Artifact(output))
    (newline,) = (w for name, w in load_file(f"{bench.model}/model.safetensors").items() if name.endswith(NEWLINE))
    asked = list(of_artifact(loader, newline))
    images = loader.load(0, Budget("all")).images
    for _, _, image_id, data in asked:
        nothing = torch.zeros(1, 0, dtype=torch.int64)
        own = answerer.image_inputs([images[image_id]], nothing, nothing)["mm_encoder_outputs"]["image"].pooler_output
        assert torch.equal(data["image_embeds"], own[0])
    pictures = list(of_pictures(bench.manifest(WORK)))
    assert [(name, text) for name, text, _, _ in asked] == [(name, text) for name, text, _, _ in pictures]


def test_its_checkpoint_is_the_same_under_other_names(bench, tmp_path):
    folder = renamed(Path(bench.model), tmp_path)
    old, new = (load_file(Path(one) / "model.safetensors") for one in (bench.model, folder))
    assert len(old) == len(new)
    assert all("vision_tower.vision_model." in name for name in new if "vision_tower" in name)
    assert sorted(w.sum().item() for w in old.values()) == sorted(w.sum().item() for w in new.values())
    assert json.loads((folder / "processor_config.json").read_text())["patch_size"] == TINY.patch
