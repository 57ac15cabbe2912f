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
    prune(tmp_path / "pruned", limit=12, shard_size=8, max_tokens="64")
    expected = {}
    with without_ray():
        answer_corpus(
            AnswerSettings(
                pruned=str(tmp_path / "pruned"), model=tiny_llava, output=str(tmp_path / "answers"), tokens="0.1",
                max_new_tokens=NEW_TOKENS,
            ),
            print,
        )  # fmt: skip
    for part in sorted((tmp_path / "answers" / "answers").glob("*.parquet")):
        for row in pq.read_table(part).to_pylist():
            expected[row["prompt_id"]] = row["answer_tokens"]
    assert len(expected) >= 40
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = engine_rows(
        str(tmp_path / "pruned"), model=tiny_llava, tokens="0.1", num_cpus=0.5,
        sampling_params={"temperature": 0.0, "max_tokens": NEW_TOKENS},
    )  # fmt: skip
    found = {row["prompt_id"]: list(row["tokens"]) for row in processor(tiny_llava)(rows).iter_rows()}
    assert {prompt: tokens[:-1] if tokens[-1] == END else tokens for prompt, tokens in found.items()} == expected
