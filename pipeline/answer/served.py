"""A server for one artifact: the name under which it serves the model, and the command that starts it."""

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from pipeline.answer.checks import MODEL_PARTS
from pipeline.answer.engine import ServerSettings
from pipeline.answer.settings import AnswerSettings
from schemas.records import JobRecord

# The architecture of the plugin integrations/vllm for each family.
ARCHITECTURES = {
    "llava": "ZooPruneLlavaForConditionalGeneration",
    "llava_next": "ZooPruneLlavaNextForConditionalGeneration",
    "llava_onevision": "ZooPruneLlavaOnevisionForConditionalGeneration",
    "internvl": "ZooPruneInternVLForConditionalGeneration",
    "qwen2_vl": "ZooPruneQwen2VLForConditionalGeneration",
    "qwen2_5_vl": "ZooPruneQwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "ZooPruneQwen3VLForConditionalGeneration",
}
LIMITS = {"image": 0, "video": 0}  # of `limit_mm_per_prompt`, with which vLLM builds no vision tower
BLOCK_TOKENS = 32  # of the prefix cache: prompts about one image share whole blocks
BATCH_TOKENS = 32_768  # of a pass of the model, and rows of images running at once, which else share nothing


def served_name(prune_job: JobRecord) -> str:
    """The name of the model that pruned an artifact: of its family, and of what the artifact's features fit."""
    parts = {part: prune_job.model[part] for part in MODEL_PARTS}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"zoo-prune-{parts['family']}-{digest[:12]}"


def server_of(settings: AnswerSettings, prune_job: JobRecord) -> ServerSettings | None:
    """The server that the settings of an answer job name, if they name one."""
    if settings.server is None:
        return None
    return ServerSettings(
        url=settings.server,
        model=settings.served_model or served_name(prune_job),
        api_key=settings.api_key,
        concurrency=settings.concurrency,
        timeout_sec=settings.request_timeout_sec,
        trust_template=settings.trust_server_template,
    )


def server_command(
    prune_job: JobRecord, model: str, *, dtype: str, port: int, chat_template: str | None, python: str = sys.executable
) -> list[str]:
    """The command that starts vLLM's server of OpenAI's protocol for an artifact.

    Args:
        prune_job: record of the job that made the artifact.
        model: folder of the checkpoint, or its hub id.
        dtype: the model runs in.
        port: on the loopback address.
        chat_template: file with one, where the checkpoint has none.
        python: interpreter of the environment that has vLLM and the plugin.
    """
    overrides: Mapping[str, Any] = {"architectures": [ARCHITECTURES[prune_job.model["family"]]]}
    return [
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", model),
        *("--served-model-name", served_name(prune_job), "--dtype", dtype, "--host", "127.0.0.1", "--port", str(port)),
        *("--hf-overrides", json.dumps(overrides), "--enable-mm-embeds"),
        *("--limit-mm-per-prompt", json.dumps(LIMITS)),
        *("--block-size", str(BLOCK_TOKENS), "--enable-prefix-caching", "--generation-config", "vllm"),
        *("--max-num-batched-tokens", str(BATCH_TOKENS)),
        *(("--chat-template", chat_template) if chat_template is not None else ()),
    ]
