"""`ray.data.llm` over vLLM answers rows of `engine_rows` as our own Transformers engine answers the same prompts."""

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from pipeline.answer.job import answer_corpus
from pipeline.answer.settings import AnswerSettings
from pipeline.datasets.ray_dataset import engine_rows

REPO = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("VLLM_PYTHON")
END, NEW_TOKENS = 2, 12
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        PYTHON is None,
        reason="VLLM_PYTHON names no interpreter of an environment with vLLM; `make test-vllm` builds one",
    ),
]


def processor(model: str) -> Any:
    """What docs/training.md shows, on CPUs and in vLLM's own environment."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs={
            "hf_overrides": {"architectures": ["ZooPruneLlavaForConditionalGeneration"]},
            "enable_mm_embeds": True,
            "limit_mm_per_prompt": {"image": 0, "video": 0},
            "max_num_batched_tokens": 32_768,
            "dtype": "float32",
            "enforce_eager": True,
            "block_size": 32,
        },
        prepare_multimodal_stage=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
        batch_size=16,
        placement_group_config={"bundles": [{"CPU": 1}]},
        runtime_env={
            "py_executable": PYTHON,
            "env_vars": {
                "PYTHONPATH": str(REPO),
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_NO_USAGE_STATS": "1",
            },
        },
    )
    return build_processor(
        config,
        postprocess=lambda row: {"prompt_id": row["prompt_id"], "tokens": [int(t) for t in row["generated_tokens"]]},
    )


def test_answers_are_those_of_transformers_token_for_token(prune, without_ray, tiny_llava, tmp_path, ray_session):
    """Of images that keep different numbers of tokens; a row that has the reason why it can't be asked passes."""
    pruned, budget = str(tmp_path / "pruned"), "mean:24"
    prune(tmp_path / "pruned", limit=12, shard_size=8, max_tokens="64")
    with without_ray():
        settings = {"pruned": pruned, "model": tiny_llava, "output": str(tmp_path / "answers"), "tokens": budget}
        answer_corpus(AnswerSettings(**settings, max_new_tokens=NEW_TOKENS), print)
    parts = sorted((tmp_path / "answers" / "answers").glob("*.parquet"))
    answers = {row["prompt_id"]: row for part in parts for row in pq.read_table(part).to_pylist()}
    assert len(answers) >= 40
    assert len({row["tokens"] for row in answers.values()}) > 3
    ray.data.DataContext.get_current().enable_progress_bars = False
    sampling = {"temperature": 0.0, "max_tokens": NEW_TOKENS}
    rows = engine_rows(pruned, model=tiny_llava, tokens=budget, num_cpus=0.5, sampling_params=sampling)
    refused = min(answers)
    rows = rows.map(lambda row: {**row, "__inference_error__": "no" if row["prompt_id"] == refused else ""})
    found = {row["prompt_id"]: row for row in processor(tiny_llava)(rows).iter_rows()}
    assert found.keys() == answers.keys()
    assert found.pop(refused)["__inference_error__"] == "no"
    for prompt_id, row in found.items():
        tokens = list(row["tokens"])
        assert (tokens[:-1] if tokens[-1] == END else tokens) == answers[prompt_id]["answer_tokens"], prompt_id
