"""The bundled corpus through vLLM: equal answers, also where a worker is killed; refusals before any work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.answer.engine import Question
from pipeline.answer.job import answer_corpus
from pipeline.answer.settings import AnswerSettings
from pipeline.answer.stage import posed
from pipeline.answer.transformers_engine import TransformersEngine
from pipeline.artifact.artifact import Artifact
from pipeline.families.checkpoint import open_checkpoint
from pipeline.families.generation_settings import end_tokens
from pipeline.loader.shard import ShardLoader
from tests.faults.fault_tools import answers_of, commits, kill_a_worker, wait_for
from tests.vllm.corpus import BUDGETS, COLOURS, NEW_TOKENS, corpus_answers

pytestmark = pytest.mark.vllm
REPO = Path(__file__).resolve().parents[2]
TIE = 1e-3  # of logits, between tokens that either engine may take
EQUAL = 0.995  # of answers at least


@pytest.fixture(scope="module")
def answerer(tiny_llava):
    checkpoint, family = open_checkpoint(tiny_llava)
    return family.answerer(checkpoint, torch.device("cpu"), torch.float32)


@torch.inference_mode()
def next_logits(answerer, question: Question, begun: list[int]) -> torch.Tensor:
    """What Transformers makes of each token behind an answer that has begun."""
    ids = torch.tensor([[*answerer.token_ids(question.prompt, question.image), *begun]])
    mask = torch.ones_like(ids)
    inputs = answerer.image_inputs([question.image], ids, mask)
    return answerer.model(input_ids=ids, attention_mask=mask, **inputs).logits[0, -1]


@pytest.fixture(scope="module")
def in_vllm(pruned_all, tiny_llava, run_in_vllm, tmp_path_factory):
    """What vLLM answered."""
    file = tmp_path_factory.mktemp("corpus") / "found.json"
    run_in_vllm("tests.vllm.corpus", str(pruned_all), tiny_llava, str(file))
    return json.loads(file.read_text())


def test_answers_keep_to_a_form(in_vllm):
    """Whatever the prompt: each answer is one of the words, as the regular expression says."""
    answers = in_vllm["in form"]
    assert len(answers) == 40
    assert {answer.strip() for answer in answers} <= set(COLOURS)
    assert len(set(answers)) > 1


def test_answers_differ_at_most_by_near_ties(pruned_all, in_vllm, answerer):
    found = in_vllm["answers"]
    expected = corpus_answers(str(pruned_all), TransformersEngine(answerer, batch_size=32, batch_tokens=1 << 15))
    (end,) = end_tokens(answerer.model.generation_config)
    artifact = Artifact(pruned_all)
    for budget, answers in expected.items():
        assert len(answers) > 1000
        assert found[budget].keys() == answers.keys()
        differing = [prompt for prompt, tokens in answers.items() if tokens != found[budget][prompt]]
        assert 1 - len(differing) / len(answers) >= EQUAL, f"{budget}: {len(differing)} of {len(answers)} differ"
        some = {*differing, *list(answers)[:3]}  # of the others too, to see that the logits are those of the answers
        for record in artifact.checked_commits():
            loaded = ShardLoader(artifact).load(record.shard, BUDGETS[budget])
            for prompt in loaded.prompts:
                if prompt.prompt_id not in some:
                    continue
                ours, theirs = ([*tokens[prompt.prompt_id], end] for tokens in (answers, found[budget]))
                place = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
                question = Question(posed(prompt), loaded.images[prompt.image_id])
                logits = next_logits(answerer, question, ours[:place])
                taken = logits[[ours[place], theirs[place]]]
                assert logits.max() - taken.min() < TIE, f"{budget}: {prompt.prompt_id} differs at token {place}"


@pytest.mark.ray
def test_a_killed_worker_is_replaced_and_nothing_is_lost(pruned_all, tiny_llava, vllm_python, without_ray, tmp_path):
    """The job over Ray, its one worker killed after the first shard; the artifact's own shards are made again."""
    options = {"pruned": str(pruned_all), "model": tiny_llava, "tokens": "16", "max_new_tokens": NEW_TOKENS}
    with without_ray():
        answer_corpus(AnswerSettings(output=str(tmp_path / "calm"), **options), lambda line: None)
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "jobs.answer_corpus", *given, "--output", str(tmp_path / "killed")]
    command += ["--engine", "vllm", "--engine-python", vllm_python, "--workers", "1"]
    job = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert wait_for(lambda: commits(tmp_path / "killed") or job.poll() is not None, timeout_sec=300)
        assert job.poll() is None, job.stdout.read()
        assert wait_for(lambda: kill_a_worker(job.pid, "AnswerShards"), timeout_sec=60)
        said, _ = job.communicate(timeout=300)
    finally:
        job.kill()
    assert job.returncode == 0, said
    assert answers_of(tmp_path / "killed") == answers_of(tmp_path / "calm")
    record = json.loads((tmp_path / "killed" / "_job.json").read_text())
    assert record["environment"]["engine_vllm"]
