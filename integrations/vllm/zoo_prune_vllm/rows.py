"""Kept rows of images as requests bring them: what is accepted, and how many tokens they take the place of.

An image is a tensor `image_embeds` (K, O), in raster order, newlines among them where the model has newlines. Models
that place tokens on a grid also take `kept_hw` (K, 2), row and column of each kept token, and `true_hw` (2,), rows and
columns of the whole grid. In a prompt one image token stands for each image.

No image processor of the checkpoint takes part, so none of its files is needed, and pixels are refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from transformers import BatchFeature
from vllm.config import VllmConfig
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import DictEmbeddingItems, ModalityDataItems, MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)

from zoo_prune_vllm import LIMITS

ROWS, PLACES, GRID = "image_embeds", "kept_hw", "true_hw"
UNUSED = ("image_grid_thw",)  # what stock models count rows by, and clients of both may send


class KeptRowsParser(MultiModalDataParser):
    """Checks what a request brings, so that a bad request is refused and never reaches the model.

    Args:
        width: numbers in a row.
        on_grid: the model places tokens on a grid.
    """

    # Sizes of placeholders come from the rows themselves; the others may be lists of numbers in JSON.
    embedding_fields: ClassVar = {"image": {ROWS: "values", PLACES: "metadata", GRID: "metadata"}}

    def __init__(self, width: int, *, on_grid: bool) -> None:
        super().__init__(expected_hidden_size=width)
        self._width, self._on_grid = width, on_grid

    def _parse_image_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        if data is None:
            return None
        images = self._images(data)
        if not images:
            raise ValueError(f"a request names images and brings no {ROWS}")
        for image in images:
            self._check(image)
        names = (ROWS, PLACES, GRID) if self._on_grid else (ROWS,)
        return DictEmbeddingItems(
            {name: [image[name] for image in images] for name in names},  # type: ignore[misc]
            modality="image",
            required_fields=set(names),
            fields_factory=lambda _: fields(on_grid=self._on_grid),
        )

    def _images(self, data: Any) -> list[dict[str, Tensor]]:
        """One mapping an image, of whatever form a request may have."""
        if isinstance(data, Mapping):  # one image, or each name with a batch
            data = {name: value for name, value in data.items() if value is not None and name not in UNUSED}
            rows = data.get(ROWS)
            if isinstance(rows, Tensor) and rows.ndim == 2:
                return [data]
            counts = {name: len(value) for name, value in data.items()}
            if len(set(counts.values())) > 1:
                raise ValueError(f"an image's tensors must come in equal numbers, but there are {counts}")
            return [
                {name: data[name][number] for name in data} for number in range(len(rows) if rows is not None else 0)
            ]
        if isinstance(data, Tensor):
            data = [data] if data.ndim == 2 else list(data)
        if isinstance(data, (list, tuple)) and all(isinstance(one, Tensor) for one in data):
            return [{ROWS: one} for one in data]
        if isinstance(data, (list, tuple)) and all(isinstance(one, Mapping) for one in data):
            return [image for one in data for image in self._images(one)]
        raise ValueError(
            f"this architecture takes the kept rows of pruned images ({ROWS}), not {type(data).__name__}; "
            "for raw images start vLLM with the checkpoint's own architecture"
        )

    def _check(self, image: Mapping[str, Tensor]) -> None:
        rows = image.get(ROWS)
        if not isinstance(rows, Tensor) or rows.ndim != 2 or not len(rows) or not rows.is_floating_point():
            raise ValueError(
                f"{ROWS} must be a floating tensor (K, {self._width}) with K of at least 1, not {_form(rows)}"
            )
        if rows.shape[1] != self._width:
            raise ValueError(f"{ROWS} has rows of {rows.shape[1]} numbers, and this model's have {self._width}")
        if not self._on_grid:
            return
        places, grid = image.get(PLACES), image.get(GRID)
        if not isinstance(places, Tensor) or not isinstance(grid, Tensor):
            raise ValueError(
                f"this model places tokens on a grid: beside {ROWS} an image needs {PLACES} (K, 2) and {GRID} (2,)"
            )
        forms = {PLACES: (places, (len(rows), 2)), GRID: (grid, (2,))}
        for name, (tensor, shape) in forms.items():
            if tensor.shape != shape or tensor.is_floating_point():
                raise ValueError(f"{name} must be whole numbers {shape}, not {_form(tensor)}")
        if bool((places < 0).any() or (places >= grid).any()):
            raise ValueError(f"{PLACES} holds a place outside the grid of {int(grid[0])} x {int(grid[1])} in {GRID}")


def _form(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def fields(*, on_grid: bool) -> dict[str, MultiModalFieldConfig]:
    """How vLLM keeps the tensors of an image together."""
    places = {name: MultiModalFieldConfig.batched("image", keep_on_cpu=True) for name in (PLACES, GRID, *UNUSED)}
    return {ROWS: MultiModalFieldConfig.batched("image"), **(places if on_grid else {})}


class KeptRowsInfo(BaseProcessingInfo):
    """What vLLM asks of a model before it starts, for models without a grid."""

    on_grid = False

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self.ctx.model_config.get_inputs_embeds_size()

    def get_data_parser(self) -> KeptRowsParser:
        """The parser of this model's requests."""
        return KeptRowsParser(self.width, on_grid=self.on_grid)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of images, nothing else."""
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """An image may fill the whole context, since nothing here knows how many tokens were kept."""
        return {"image": seq_len}


class GridRowsInfo(KeptRowsInfo):
    """The same for models that place tokens on a grid; rows of deepstack models hold all levels side by side."""

    on_grid = True

    @property
    def width(self) -> int:
        """Numbers in a row."""
        levels = getattr(self.get_hf_config().vision_config, "deepstack_visual_indexes", ())
        return super().width * (1 + len(levels))


class KeptRowsDummies(BaseDummyInputsBuilder[KeptRowsInfo]):
    """Inputs with which vLLM would measure a vision tower, which there is not."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """No text."""
        return ""

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: MultiModalDummyOptions
    ) -> Mapping[str, Any]:
        """No image."""
        return {}


class KeptRowsProcessor(BaseMultiModalProcessor[KeptRowsInfo]):
    """Puts as many image tokens into a prompt as its images have rows."""

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """See vLLM; refuses prompts in which image tokens and images are not one for one."""
        images, token = inputs.mm_data_items.get_count("image", strict=False), self._token
        found = list(inputs.prompt).count(token)
        if found != images:
            raise ValueError(
                f"the prompt holds image token {token} {found} times and brings {images} images; "
                "each image takes exactly one, in whose place its rows go"
            )
        return super().apply(inputs, timing_ctx)

    @property
    def _token(self) -> int:
        token: int = self.info.get_hf_config().image_token_id
        return token

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return fields(on_grid=self.info.on_grid)

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        def tokens(number: int) -> list[int]:
            rows = out_mm_kwargs["image"][number][ROWS].data
            assert isinstance(rows, Tensor)
            return [self._token] * len(rows)

        return [PromptReplacement(modality="image", target=[self._token], replacement=tokens)]


def refuse_tower(vllm_config: VllmConfig) -> None:
    """Refuse settings with which vLLM would build the vision tower.

    Raises:
        ValueError: naming the option.
    """
    settings = vllm_config.model_config.get_multimodal_config()
    if any(settings.get_limit_per_prompt(name) for name in LIMITS) or not settings.enable_mm_embeds:
        raise ValueError(
            "this architecture takes kept rows of pruned images and builds no vision tower: start vLLM with "
            '--enable-mm-embeds --limit-mm-per-prompt \'{"image": 0, "video": 0}\''
        )


class KeptRows:
    """Before a model class of vLLM: images are rows that a request brings, any number of them each."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        refuse_tower(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._rows_dtype = vllm_config.model_config.dtype

    def embed_multimodal(self, **tensors: Any) -> list[Tensor]:
        """Rows (K, O) of each image, which may differ in their number."""
        return [rows.to(self._rows_dtype) for rows in tensors.get(ROWS, ())]
