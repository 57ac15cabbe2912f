"""Forms in which checkpoints of one model are saved: each works as the untouched model does, or is refused by name.

The table in docs/families.md says which; every cell of it is tried here.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, GenerationConfig

from pipeline.budget import Budget
from pipeline.cluster.environment import own_dtype
from pipeline.errors import UserError
from pipeline.families.base import torch_dtype
from pipeline.families.checkpoint import _LANGUAGE_WEIGHTS, answering_identity, identity, open_checkpoint
from pipeline.families.generation_settings import check_generation
from tests.families.models import TINY

CPU = torch.device("cpu")
DOCS = Path(__file__).resolve().parents[2] / "docs" / "families.md"
LANGUAGE = re.compile(r"model\.(language_model|text_model)\.|lm_head\.")
SAME, REFUSED, NONE = "same", "refused", "-"

LACKING = r"lacks \d+ tensors it needs"

Rename = Callable[[str], str]


@dataclass(frozen=True)
class Variant:
    """A way to save a checkpoint.

    `change` rewrites the folder of a family's tiny checkpoint and gives False where the family has no such form. `same`
    compares with the untouched model; `refusal` is how it reads where it is refused.
    """

    change: Callable[[Any, Path], bool]
    same: Callable[[Any, Path], None]
    refusal: str = LACKING


def edit(file: Path, **changes: Any) -> bool:
    """Set keys of a JSON file, or take them out where the value is None."""
    data = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({key: value for key, value in {**data, **changes}.items() if value is not None}))
    return True


def write_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: one.clone().contiguous() for name, one in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip


def stock_weights(case: Any) -> dict[str, torch.Tensor]:
    """The model's tensors under the names of its own parameters."""
    return dict(case.stock.named_parameters())


def names(rename: Rename, having: str = "") -> Callable[[Any, Path], bool]:
    """Tensors under other names, of which the language model's are still told from the others.

    It is a form of families that have tensors whose names begin with `having`.
    """

    def change(case: Any, folder: Path) -> bool:
        if not any(name.startswith(having) for name in stock_weights(case)):
            return False
        renamed = {rename(name): tensor for name, tensor in stock_weights(case).items()}
        write_weights(folder, renamed)
        language = {rename(name) for name in stock_weights(case) if LANGUAGE.match(name)}
        assert {name for name in renamed if _LANGUAGE_WEIGHTS.match(name)} == language
        return True

    return change


def as_they_are(name: str) -> str:
    return name


def model_apart(name: str) -> str:
    """As before Transformers 4.52: each part with a root of its own, towers with a level more."""
    name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name).removeprefix("model.")
    of_clip = r"embeddings\.(class|patch|position)_embedding\b|encoder\.layers|p\w+_layernorm"  # and SigLIP
    return re.sub(rf"^vision_tower\.(?={of_clip})", "vision_tower.vision_model.", name)


def language_first(name: str) -> str:
    """As Qwen's own repositories: the language model is the root."""
    name = re.sub(r"^model\.visual\.", "visual.", name)
    return re.sub(r"^model\.language_model\.", "model.", name)


def visual_inside(name: str) -> str:
    """As Qwen's with the tower beside the language model's layers."""
    return re.sub(r"^model\.language_model\.", "model.", name)


def without_root(name: str) -> str:
    """As saved from the model without its head, which is added."""
    return name.removeprefix("model.")


def doubled(name: str) -> str:
    """As some releases of Transformers 5 saved it."""
    return re.sub(r"^model\.language_model\.", "model.language_model.model.", name)


def stored_as(dtype: torch.dtype, told: bool) -> Callable[[Any, Path], bool]:
    def change(case: Any, folder: Path) -> bool:
        write_weights(folder, {name: tensor.to(dtype) for name, tensor in stock_weights(case).items()})
        parts = json.loads((folder / "config.json").read_text())
        parts = {key: {**part, "dtype": None} for key, part in parts.items() if isinstance(part, dict)}
        return edit(folder / "config.json", **parts, dtype=str(dtype).removeprefix("torch.") if told else None)

    return change


def sharded(case: Any, folder: Path) -> bool:
    (folder / "model.safetensors").unlink()
    case.stock.save_pretrained(folder, max_shard_size="60KB")
    return (folder / "model.safetensors.index.json").exists()


def tied(head: str) -> Callable[[Any, Path], bool]:
    """Config says that the head is the embedding; the head is absent from the file, in it, or another one."""

    def change(case: Any, folder: Path) -> bool:
        weights = stock_weights(case)
        embedding = next(name for name in weights if name.endswith("embed_tokens.weight"))
        weights.pop("lm_head.weight", None)  # of a model that is tied already, it is none
        if head != "absent":
            weights["lm_head.weight"] = weights[embedding] if head == "present" else weights[embedding].flip(0)
        write_weights(folder, weights)
        return say_tied(folder, True)

    return change


def say_tied(folder: Path, value: bool) -> bool:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    return edit(folder / "config.json", tie_word_embeddings=value, text_config={**text, "tie_word_embeddings": value})


def untied_without_head(case: Any, folder: Path) -> bool:
    weights = stock_weights(case)
    weights.pop("lm_head.weight", None)
    write_weights(folder, weights)
    return say_tied(folder, False)


def same_weights(case: Any, folder: Path) -> None:
    """Both sides together hold the tensors, bit for bit, that the untouched model loads from the folder."""
    checkpoint, family = open_checkpoint(str(folder))
    dtype = torch_dtype(own_dtype(checkpoint))
    stock, info = case.tiny.stock.from_pretrained(folder, output_loading_info=True)
    vision = family.encoder(checkpoint, CPU, dtype)._model
    language = family.answerer(checkpoint, CPU, dtype).model
    ours = {f"model.{name}": one for name, one in vision.named_parameters()}
    ours |= dict(language.named_parameters(remove_duplicate=False))
    theirs = dict(stock.named_parameters(remove_duplicate=False))
    assert not info["missing_keys"], "else there is nothing to compare with"
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
    assert identity(checkpoint, family)["projector"] == answering_identity(checkpoint, family)["projector"]


def processor(**changes: Any) -> Callable[[Any, Path], bool]:
    """Another class name in preprocessor_config.json; `{}` in it stands for the family's own."""

    def change(case: Any, folder: Path) -> bool:
        file = folder / "preprocessor_config.json"
        own = json.loads(file.read_text())["image_processor_type"].removesuffix("Pil").removesuffix("Fast")
        base = own.removesuffix("ImageProcessor")
        return edit(file, **{key: value and value.format(base) for key, value in changes.items()})

    return change


def nested_processor(_case: Any, folder: Path) -> bool:
    """As `AutoProcessor.save_pretrained` writes it today."""
    file = folder / "preprocessor_config.json"
    inner = json.loads(file.read_text())
    file.unlink()
    return edit(folder / "processor_config.json", image_processor=inner)


def same_pixels(case: Any, folder: Path) -> None:
    checkpoint, family = open_checkpoint(str(folder))
    ours = family.preparer(checkpoint)._processor
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert type(ours) is type(theirs)
    assert ours.to_dict() == theirs.to_dict()
    assert theirs.size == case.tiny.processor().size, "the settings of the folder, not of the class"


def template_in(file: str) -> Callable[[Any, Path], bool]:
    def change(case: Any, folder: Path) -> bool:
        source = folder / "chat_template.jinja"
        if not source.exists():
            return False
        template = source.read_text()
        source.unlink()
        return edit(folder / file, chat_template=template)

    return change


def no_template(_case: Any, folder: Path) -> bool:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return edit(folder / "tokenizer_config.json", chat_template=None)


def same_prompt(case: Any, folder: Path) -> None:
    checkpoint, family = open_checkpoint(str(folder))
    image = case.kept(Budget("count", 3))[f"{1:064x}"]
    for prompt in ("what is this", "what <image> of w1"):
        ids = family.answerer(checkpoint, CPU, torch.float32).token_ids(prompt, image)
        assert ids == case.answerer().token_ids(prompt, image)


def familys_prompt(case: Any, folder: Path) -> None:
    checkpoint, family = open_checkpoint(str(folder))
    answerer = family.answerer(checkpoint, CPU, torch.float32)
    assert answerer.tokenizer.chat_template is None
    text = answerer.render("w5 w6")
    assert text.count(case.tiny.placeholder) == 1
    assert "w5 w6" in text


def generation(file: dict[str, Any] | None, **config: Any) -> Callable[[Any, Path], bool]:
    def change(_case: Any, folder: Path) -> bool:
        (folder / "generation_config.json").unlink()
        if file is not None:
            edit(folder / "generation_config.json", **file)
        return edit(folder / "config.json", **config)

    return change


def same_generation(case: Any, folder: Path) -> None:
    """The settings that `generate` goes by; what they do is tried in test_generation_settings.py."""
    checkpoint, family = open_checkpoint(str(folder))
    check_generation(checkpoint)
    ours: GenerationConfig = family.answerer(checkpoint, CPU, torch.float32).model.generation_config
    assert ours.to_dict() == case.tiny.stock.from_pretrained(folder).generation_config.to_dict()


BF16, FP16 = torch.bfloat16, torch.float16
VARIANTS = {
    "names: as the model's parameters": Variant(names(as_they_are), same_weights),
    "names: `language_model.model.*`, `vision_tower.*`": Variant(
        names(model_apart, "model.vision_tower."), same_weights
    ),
    "names: `model.layers.*`, `visual.*`": Variant(names(language_first, "model.visual."), same_weights),
    "names: `model.layers.*`, `model.visual.*`": Variant(names(visual_inside, "model.visual."), same_weights),
    "names: without `model.`": Variant(names(without_root), same_weights),
    "names: `model.language_model.model.*`": Variant(names(doubled, "model.language_model."), same_weights),
    "stored in bfloat16": Variant(stored_as(BF16, told=True), same_weights),
    "stored in float16": Variant(stored_as(FP16, told=True), same_weights),
    "stored in bfloat16, no dtype in config.json": Variant(stored_as(BF16, told=False), same_weights),
    "shards and an index": Variant(sharded, same_weights),
    "tied head, absent": Variant(tied("absent"), same_weights),
    "tied head, present": Variant(tied("present"), same_weights),
    "tied head, another one present": Variant(tied("another"), same_weights),
    "head absent and not tied": Variant(untied_without_head, same_weights),
    "processor: `...ImageProcessor`": Variant(processor(image_processor_type="{}ImageProcessor"), same_pixels),
    "processor: `...ImageProcessorFast`": Variant(processor(image_processor_type="{}ImageProcessorFast"), same_pixels),
    "processor: `...FeatureExtractor`": Variant(
        processor(image_processor_type=None, feature_extractor_type="{}FeatureExtractor"), same_pixels
    ),
    "processor: no name": Variant(processor(image_processor_type=None), same_pixels),
    "processor: in processor_config.json": Variant(nested_processor, same_pixels),
    "template: chat_template.json": Variant(template_in("chat_template.json"), same_prompt),
    "template: processor_config.json": Variant(template_in("processor_config.json"), same_prompt),
    "template: tokenizer_config.json": Variant(template_in("tokenizer_config.json"), same_prompt),
    "template: none (the family's)": Variant(no_template, familys_prompt),
    "generation_config.json": Variant(generation({"eos_token_id": [3, 5], "do_sample": True}), same_generation),
    "generation settings: none": Variant(generation(None), same_generation),
    "generation settings: in config.json": Variant(generation(None, eos_token_id=[3, 5]), same_generation),
    "`quantization_config`": Variant(
        lambda _case, folder: edit(folder / "config.json", quantization_config={"quant_method": "fp8"}),
        same_weights,
        r"quantization_config \(fp8\)",
    ),
    "`auto_map`, a model of its own": Variant(
        lambda _case, folder: edit(folder / "config.json", model_type="own", auto_map={"AutoConfig": "code.Config"}),
        same_weights,
        "asks for code of its own to be run",
    ),
    "`auto_map`, a model of Transformers": Variant(
        lambda _case, folder: edit(folder / "config.json", auto_map={"AutoConfig": "code.Config"}), same_weights
    ),
}


def documented() -> dict[str, dict[str, str]]:
    """Variant -> family -> what docs/families.md says of it."""
    lines = (
        DOCS.read_text().split("<!-- variants: begin -->")[1].split("<!-- variants: end -->")[0].strip().splitlines()
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")]
    families = [re.sub(r"\W", "", name) for name in rows[0][1:]]
    return {row[0]: dict(zip(families, row[1:], strict=True)) for row in rows[1:]}


def test_the_table_has_every_variant_and_family():
    table = documented()
    assert list(table) == list(VARIANTS)
    assert all(set(row) == set(TINY) for row in table.values())
    assert {cell for row in table.values() for cell in row.values()} == {SAME, REFUSED, NONE}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_what_the_table_says(case, tmp_path, name, variant):
    case, one, said = case(name), VARIANTS[variant], documented()[variant][name]
    folder = Path(shutil.copytree(case.folder, tmp_path / name))
    exists = one.change(case, folder)
    assert exists == (said != NONE)
    if said == SAME:
        one.same(case, folder)
    elif said == REFUSED:
        with pytest.raises(UserError, match=one.refusal):
            one.same(case, folder)
        if one.refusal == LACKING:
            _, info = case.tiny.stock.from_pretrained(folder, output_loading_info=True)
            assert info["missing_keys"], "the untouched model would make these tensors up"


def test_storage_in_half_precision_is_half_precision(case, tmp_path):
    """Else the variants would compare float32 with float32."""
    folder = Path(shutil.copytree(case("llava").folder, tmp_path / "llava"))
    stored_as(BF16, told=False)(case("llava"), folder)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {BF16}
    assert own_dtype(open_checkpoint(str(folder))[0]) == "bfloat16"
