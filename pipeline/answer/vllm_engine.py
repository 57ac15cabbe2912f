"""The engine that generates with vLLM, in a worker whose environment has it.

vLLM is imported when the engine is loaded and runs in the worker's own process: what ends the worker ends it too, and
no process of it is left behind. Its model classes are those of integrations/vllm.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.answer.decoding import Decoding, finished
from pipeline.answer.engine import Question, Reply
from pipeline.answer.generate_settings import GenerateSettings
from pipeline.answer.posing import prompt_ids
from pipeline.answer.served import ARCHITECTURES, BLOCK_TOKENS, LIMITS
from pipeline.answer.vllm_prompt import key_of, with_one_token
from pipeline.cluster.attempts import ProcessSpentError
from pipeline.errors import UserError
from pipeline.families.base import Prompter, UnusablePromptError, torch_dtype
from pipeline.families.checkpoint import open_checkpoint
from pipeline.families.generation_settings import Followed, followed
from pipeline.families.loading import first_line

_CPU_CACHE_BYTES = 4 << 30  # for keys and values, unless VLLM_CPU_KVCACHE_SPACE says how many GiB
# Read by vLLM as it is imported; what the user has set stands.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else all workers of a node would sit on the same processors
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True, slots=True)
class Request:
    """One question as vLLM takes it."""

    token_ids: list[int]  # with one image token
    image: Mapping[str, Tensor]  # see `Prompter.image_embeds`
    key: str  # of the image, see `key_of`
    sampling: Mapping[str, Any]  # arguments of vLLM's SamplingParams


class Generator(Protocol):
    """A running vLLM."""

    context: int  # tokens of a prompt with its answer

    def add(self, request: Request) -> None:
        """Take a request, to be run with others. Raises `ValueError` where vLLM refuses it."""

    def run(self) -> list[list[int]]:
        """Token ids that were generated for each request since the last run, in their order."""


def load(settings: GenerateSettings, device: torch.device) -> Callable[[int], "VllmEngine"]:
    """The engine, which is the same at any batch size: vLLM makes its own batches, of so many requests at most.

    Raises:
        UserError: this environment can't run the model with vLLM.
    """
    checkpoint, family = open_checkpoint(settings.model)
    dtype = torch_dtype(settings.dtype)
    prompter = family.answerer(checkpoint, torch.device("cpu"), dtype, settings.positions, language=False)
    vllm = Vllm(
        str(checkpoint.path),
        family.name,
        settings.dtype,
        device,
        most=settings.batch_size,
        most_tokens=settings.batch_tokens,
        gpu_share=settings.gpu_share,
    )
    engine = VllmEngine(prompter, vllm, followed(checkpoint, "vllm"))
    return lambda _batch_size: engine


class Vllm:
    """vLLM in this process, with the model class for rows of pruned images.

    Args:
        model: folder of the checkpoint.
        family: of it.
        dtype: of weights and computation.
        device: CPU or CUDA.
        most: requests that run at once at most.
        most_tokens: of a pass of the model at most, and rows that images running at once have room for. Where an image
            finds none, its prompts begin without it, and each reads its rows for itself.
        gpu_share: of one GPU, that this worker may use.

    Raises:
        UserError: vLLM or its model class is missing, or it can't run the model.
    """

    def __init__(
        self,
        model: str,
        family: str,
        dtype: str,
        device: torch.device,
        *,
        most: int,
        most_tokens: int,
        gpu_share: float,
    ) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        on_cpu = device.type == "cpu"
        of_device: dict[str, Any] = {"gpu_memory_utilization": 0.9 * min(1.0, gpu_share or 1.0)}
        if on_cpu:
            of_device = {
                "kv_cache_memory_bytes": _CPU_CACHE_BYTES,
                "block_size": BLOCK_TOKENS,
                "enforce_eager": True,
            }
        try:
            import vllm
            import zoo_prune_vllm  # noqa: F401  # vLLM finds it by itself
        except ImportError as error:
            raise UserError(
                f"--engine vllm: a worker's environment lacks {error.name} ({first_line(error)}); give --engine-python "
                "the interpreter of an environment that has it: `make vllm-env` builds one"
            ) from error
        try:
            self._llm = vllm.LLM(
                model,
                dtype=dtype,
                hf_overrides={"architectures": [ARCHITECTURES[family]]},
                enable_mm_embeds=True,
                limit_mm_per_prompt=dict(LIMITS),
                mm_processor_cache_gb=0,  # rows pass through as they are
                enable_prefix_caching=True,
                generation_config="vllm",  # the checkpoint's own settings come with each request
                max_model_len=-1,  # as long as the model takes, or as memory has room for
                max_num_seqs=most,
                max_num_batched_tokens=max(most, most_tokens),
                seed=0,
                **of_device,
            )
        except Exception as error:  # of whatever the model, the device and the memory are not fit for
            raise UserError(
                f"--engine vllm: vLLM {vllm.__version__} can't run this model here "
                f"({type(error).__name__}: {first_line(error)}); mend that, or answer with --engine transformers"
            ) from error
        self._vllm = vllm
        self.context = int(self._llm.llm_engine.model_config.max_model_len)
        self.cached_tokens = self.prompt_tokens = 0  # of all runs: how many of the prompts' tokens were there already

    def add(self, request: Request) -> None:
        """See `Generator`."""
        structured = request.sampling.get("structured_outputs")
        made = {} if structured is None else {"structured_outputs": self._structured(structured)}
        self._llm.enqueue(
            {
                "prompt_token_ids": list(request.token_ids),
                "multi_modal_data": {"image": dict(request.image)},
                "multi_modal_uuids": {"image": [request.key]},
            },
            self._vllm.SamplingParams(**{**request.sampling, **made}),
            use_tqdm=False,
        )

    def _structured(self, form: Mapping[str, str]) -> Any:
        from vllm.sampling_params import StructuredOutputsParams

        return StructuredOutputsParams(**form)

    def run(self) -> list[list[int]]:
        """See `Generator`."""
        outputs = self._llm.wait_for_completion(use_tqdm=False)
        for output in outputs:
            self.cached_tokens += output.num_cached_tokens or 0
            self.prompt_tokens += len(output.prompt_token_ids)
        return [list(output.outputs[0].token_ids) for output in outputs]


class VllmEngine:
    """An `Engine` over a running vLLM.

    Args:
        prompter: the family's, without its language model.
        vllm: that generates.
        its: generation settings of the checkpoint.
    """

    def __init__(self, prompter: Prompter, vllm: Generator, its: Followed) -> None:
        self._prompter, self._vllm, self._followed = prompter, vllm, its

    def answer(self, questions: Sequence[Question], decoding: Decoding) -> list[Reply]:
        """Replies to questions, in their order. Those about one image follow each other, so they share its beginning.

        Raises:
            ProcessSpentError: vLLM died over them.
        """
        started = time.perf_counter()
        replies: dict[int, Reply] = {}
        asked: list[int] = []
        for number, request in self._requests(questions, decoding, replies):
            try:
                self._vllm.add(request)
                asked.append(number)
            except ValueError as error:
                replies[number] = Reply.refusal(f"vLLM refuses the prompt: {' '.join(str(error).split())}")
        try:
            generated = self._vllm.run()
        except Exception as error:
            raise ProcessSpentError(f"vLLM died: {type(error).__name__}: {error}") from error
        seconds = (time.perf_counter() - started) / max(1, len(asked))
        for number, token_ids in zip(asked, generated, strict=True):
            found = finished(self._prompter.tokenizer, token_ids, self._followed.ends, decoding.stop)
            replies[number] = Reply(found.text, found.token_ids, found.finish_reason, seconds)
        return [replies[number] for number in range(len(questions))]

    def _requests(
        self, questions: Sequence[Question], decoding: Decoding, replies: dict[int, Reply]
    ) -> Iterator[tuple[int, Request]]:
        """Questions that can be posed, with their numbers, image after image; refusals of others go into `replies`."""
        by_image: dict[int, list[int]] = {}
        for number, question in enumerate(questions):
            by_image.setdefault(id(question.image), []).append(number)
        for numbers in by_image.values():
            image = self._prompter.image_embeds(questions[numbers[0]].image)
            key = key_of(questions[numbers[0]].image.image_id, image)
            for number in numbers:
                try:
                    ids = self._token_ids(questions[number], decoding, rows=len(image["image_embeds"]))
                except UnusablePromptError as error:
                    replies[number] = Reply.refusal(str(error))
                    continue
                yield number, Request(ids, image, key, self._sampling_of(questions[number], decoding))

    def _token_ids(self, question: Question, decoding: Decoding, *, rows: int) -> list[int]:
        """The prompt with one image token, in whose place vLLM puts `rows` of them. Raises `UnusablePromptError`."""
        ids = prompt_ids(self._prompter, question, decoding)
        if len(ids) >= self._vllm.context:
            raise UnusablePromptError(
                f"the prompt has {len(ids):,} tokens with its image, and vLLM takes {self._vllm.context:,} with the "
                "answer; shorten it, answer with fewer --tokens, or give vLLM more memory"
            )
        return with_one_token(ids, self._prompter.image_token_id, rows=rows)

    def _sampling_of(self, question: Question, decoding: Decoding) -> dict[str, Any]:
        sampling: dict[str, Any] = {
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "repetition_penalty": self._followed.repetition_penalty,
            "stop_token_ids": self._followed.ends,
            # The checkpoint's generation settings say what ends an answer, not its tokenizer; a form ends with the
            # end that vLLM knows.
            "ignore_eos": not decoding.is_structured,
            "detokenize": bool(decoding.stop),
        }
        if not decoding.is_greedy:
            sampling |= {"top_p": decoding.top_p, "seed": decoding.seed_of(question.prompt_id)}
        if decoding.stop:
            sampling["stop"] = list(decoding.stop)
        if decoding.json_schema is not None:
            sampling["structured_outputs"] = {"json": decoding.json_schema}
        elif decoding.regex is not None:
            sampling["structured_outputs"] = {"regex": decoding.regex}
        return sampling
