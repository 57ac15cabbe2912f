"""Models whose images are one run of tokens, numbered like text."""

from vllm.model_executor.models.interns1 import InternS1ForConditionalGeneration
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration
from vllm.model_executor.models.llava_onevision import LlavaOnevisionForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY

from zoo_prune_vllm.rows import KeptRows, KeptRowsDummies, KeptRowsInfo, KeptRowsProcessor

_processed = MULTIMODAL_REGISTRY.register_processor(KeptRowsProcessor, info=KeptRowsInfo, dummy_inputs=KeptRowsDummies)


@_processed
class KeptLlava(KeptRows, LlavaForConditionalGeneration):
    """LLaVA-1.5."""


@_processed
class KeptLlavaNext(KeptRows, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT; its newlines come among the rows."""


@_processed
class KeptLlavaOnevision(KeptRows, LlavaOnevisionForConditionalGeneration):
    """LLaVA-OneVision, images; its newlines come among the rows."""


@_processed
class KeptInternVL(KeptRows, InternS1ForConditionalGeneration):
    """InternVL in Transformers' form, which is the form that vLLM has of InternS1."""
