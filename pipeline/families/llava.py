"""LLaVA-1.5: CLIP (or SigLIP) tower, Linear-GELU-Linear projector, one fixed square grid, 1-D positions.

The stock modules do all the work; the subclasses below only leave parts of them out, so that nothing else is loaded.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import (
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaMultiModalProjector,
    LlavaPreTrainedModel,
)

from pipeline.families.base import (
    Checkpoint,
    EncodedImage,
    Family,
    KeptImage,
    Segment,
)
from pipeline.families.loading import captured, load_part
from pipeline.families.prompting import render_prompt
from zoo_ops import ProjectorSpec

PLACEHOLDER = "<image>"
DEFAULT_TEMPLATE = "USER: <image>\n{prompt} ASSISTANT:"


class _VisionSide(LlavaPreTrainedModel):
    """`LlavaModel` without its language model."""

    get_image_features = LlavaModel.get_image_features

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        return False  # stock parameter names: Transformers' renamings of old checkpoints apply


class _LanguageModel(LlavaModel):
    """`LlavaModel` without its vision tower and projector."""

    def __init__(self, config: Any) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        return False


class _LanguageSide(LlavaForConditionalGeneration):
    """`LlavaForConditionalGeneration` without its vision tower and projector."""

    def __init__(self, config: Any) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = _LanguageModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        return False


class LlavaPreparer:
    """Resizes and crops as the checkpoint's image processor does, and stays in uint8."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._processor = AutoImageProcessor.from_pretrained(checkpoint.path)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Pixels (3, height, width) uint8."""
        return self._processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]


class LlavaEncoder:
    """Vision tower and projector."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self._processor = AutoImageProcessor.from_pretrained(checkpoint.path)
        self._model = load_part(_VisionSide, checkpoint, device, dtype)
        projector = self._model.multi_modal_projector
        self.projector = ProjectorSpec(
            linear_in=projector.linear_1, activation=projector.act, linear_out=projector.linear_2
        )
        self._patch_size = checkpoint.config.vision_config.patch_size

    @torch.inference_mode()
    def encode(self, pixels: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[EncodedImage]:
        """One tower pass over the batch; all images have the same prepared size."""
        inputs = self._processor(
            list(pixels),
            do_resize=False,
            do_center_crop=False,
            input_data_format="channels_first",
            return_tensors="pt",
        )["pixel_values"].to(self._model.device, self._model.dtype)
        with captured(self._model.multi_modal_projector) as seen:
            self._model.get_image_features(pixel_values=inputs)
        rows, cols = (side // self._patch_size for side in inputs.shape[-2:])
        return [
            EncodedImage(features, projected, [Segment(0, 0, rows, cols)], (rows, cols, 1))
            for features, projected in zip(seen.input, seen.output, strict=True)
        ]


class LlavaAnswerer:
    """Tokenizer and language model; kept tokens are numbered consecutively."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
        self.model = load_part(_LanguageSide, checkpoint, device, dtype)
        self.image_token_id = checkpoint.config.image_token_id

    def render(self, prompt: str) -> str:
        """The prompt in the checkpoint's chat template, else in LLaVA-1.5's."""
        return render_prompt(self.tokenizer, prompt, placeholder=PLACEHOLDER, default_template=DEFAULT_TEMPLATE)

    def num_image_tokens(self, image: KeptImage) -> int:
        """K."""
        return len(image.indices_K)

    def image_inputs(self, images: Sequence[KeptImage], input_ids_BT: Tensor, mask_BT: Tensor) -> dict[str, Any]:
        """The kept features in place of the vision tower's output."""
        features = [image.features_KO.to(self.model.device, self.model.dtype) for image in images]
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}}  # type: ignore[arg-type]


FAMILY = Family(
    name="llava",
    preparer=LlavaPreparer,
    encoder=LlavaEncoder,
    answerer=LlavaAnswerer,
    projector_weights=r"(^|\.)multi_modal_projector\.",
)
