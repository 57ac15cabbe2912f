"""Wrong or damaged checkpoints: one clear sentence each; and only the part that is needed is ever loaded."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from pipeline.budget import Budget
from pipeline.errors import UserError
from pipeline.families import FAMILIES, family_of
from pipeline.families.checkpoint import identity, open_checkpoint
from pipeline.families.loading import check_buildable
from pipeline.prune.select import resolve_estimator
from tests.families.models import SIGLIP, TINY

CPU = torch.device("cpu")


@pytest.fixture
def copy_of(case: Callable[[str], Any], tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint to damage."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(case(name).folder, tmp_path / name))

    return make


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def encoder(folder: Path) -> Any:
    checkpoint, family = open_checkpoint(str(folder))
    return family.encoder(checkpoint, CPU, torch.float32)


def test_an_architecture_without_adapter_is_named_with_those_that_have_one(copy_of):
    folder = copy_of("llava")
    change_config(folder, model_type="bert")
    with pytest.raises(UserError, match=r"model type 'bert' is not supported; supported are gemma3, .*smolvlm"):
        open_checkpoint(str(folder))


def test_every_family_of_the_registry_has_a_tiny_model():
    assert set(FAMILIES) == set(TINY)


def test_missing_and_foreign_shards_are_named(case, tmp_path):
    folder = tmp_path / "sharded"
    shutil.copytree(case("llava").folder, folder)
    (folder / "model.safetensors").unlink()
    case("llava").stock.save_pretrained(folder, max_shard_size="60KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    whole = encoder(folder)
    assert torch.equal(whole.projector.linear_in.weight, case("llava").encoder.projector.linear_in.weight)
    foreign = folder / "model-00009-of-00009.safetensors"
    shutil.copy(shards[0], foreign)
    with pytest.raises(UserError, match=r"model-00009-of-00009\.safetensors is no shard of model.safetensors.index"):
        open_checkpoint(str(folder))
    foreign.unlink()
    shards[1].unlink()
    with pytest.raises(UserError, match=f"1 of {len(shards)} safetensors shards are missing, e.g. {shards[1].name}"):
        open_checkpoint(str(folder))
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor model.safetensors.index.json"):
        open_checkpoint(str(folder))


def test_a_checkpoint_without_projector_is_refused(copy_of):
    folder = copy_of("llava")
    file = folder / "model.safetensors"
    left = {name: tensor for name, tensor in load_file(file).items() if "projector" not in name}
    save_file(left, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="no projector weights"):
        identity(*open_checkpoint(str(folder)))
    with pytest.raises(UserError, match=r"lacks 4 tensors it needs, e.g. .*multi_modal_projector.linear_1.bias"):
        encoder(folder)


def test_config_and_projector_that_do_not_belong_together_are_refused(copy_of):
    folder = copy_of("internvl")
    change_config(folder, downsample_ratio=0.25)
    with pytest.raises(UserError, match="config and weights do not belong together"):
        encoder(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_select_strategy": "full"}, "keeps the class token"),
        ({"vision_config": {"model_type": "pixtral"}}, "its vision tower is a pixtral"),
    ],
)
def test_llava_configs_that_are_not_handled_say_why(copy_of, changes, message):
    folder = copy_of("llava")
    change_config(folder, **changes)
    with pytest.raises(UserError, match=message):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_a_grid_that_lacks_a_patch_is_refused_as_the_model_refuses_it(copy_of, case, name):
    folder = copy_of(name)
    tower = {**SIGLIP, "vision_use_head": False}
    change_config(folder, vision_feature_select_strategy="default", vision_config=tower)
    with pytest.raises(UserError, match="leaves out the first patch of a SigLIP tower"):
        open_checkpoint(str(folder))
    stock = TINY[name].stock(AutoConfig.from_pretrained(folder))
    with pytest.raises((ValueError, RuntimeError)), torch.no_grad():
        stock.model.get_image_features(**case(name).pixel_inputs(case(name).images[0]))


@pytest.mark.parametrize("where", ["quantization_config", "text_config", "vision_config"])
def test_quantised_weights_are_refused_by_name(copy_of, where):
    folder = copy_of("llava")
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config = json.loads((folder / "config.json").read_text())
    changed = {**config[where], "quantization_config": quantised} if where in config else quantised
    change_config(folder, **{where: changed})
    with pytest.raises(UserError, match=r"config\.json has a quantization_config \(bitsandbytes\); weights are loaded"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(("file", "key"), [("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer"),
                                           ("preprocessor_config.json", "AutoImageProcessor")])  # fmt: skip
def test_code_of_a_checkpoint_is_never_asked_about(copy_of, monkeypatch, file, key):
    """Transformers would ask on the terminal whether to run it."""
    folder = copy_of("llava")
    (folder / "code.py").write_text("raise SystemExit('ran')\n")
    data = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    named = {"model_type": "of_its_own", "tokenizer_class": "OfItsOwn", "image_processor_type": "OfItsOwn"}
    (folder / file).write_text(json.dumps({**data, **named, "auto_map": {key: ["code.C", None]}}))
    if key == "AutoConfig":
        (folder / file).write_text(json.dumps({**data, **named, "auto_map": {key: "code.C"}}))
    asked: list[object] = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "n")
    if key == "AutoConfig":
        with pytest.raises(UserError, match=r"config\.json \(auto_map\) asks for code of its own to be run"):
            open_checkpoint(str(folder))
    else:
        checkpoint, family = open_checkpoint(str(folder))
        with contextlib.suppress(UserError):
            family.preparer(checkpoint)
        with contextlib.suppress(UserError):
            family.answerer(checkpoint, CPU, torch.float32)
    assert asked == []


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "idefics3"])
@pytest.mark.parametrize("pad", [4000, -4000])
def test_a_pad_token_that_is_none_is_one_sentence_before_any_work(copy_of, name, pad):
    folder = copy_of(name)
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change_config(folder, text_config={**text, "pad_token_id": pad}, pad_token_id=pad)
    checkpoint, _ = open_checkpoint(str(folder))
    message = f"pad_token_id in its config.json is {pad}, which is no token of its vocabulary of {text['vocab_size']};"
    with pytest.raises(UserError, match=message) as caught:
        check_buildable(checkpoint)
    assert "\n" not in str(caught.value)


def test_a_config_that_describes_no_model_is_one_sentence(copy_of):
    folder = copy_of("llava")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change_config(folder, text_config={**text, "hidden_act": "of_its_own"})
    with pytest.raises(UserError, match=r"no model can be built of its config\.json \(KeyError: "):
        check_buildable(open_checkpoint(str(folder))[0])


@pytest.mark.parametrize("name", TINY)
def test_a_wrong_image_processor_is_named(copy_of, name):
    folder = copy_of(name)
    other = TINY["llava" if name != "llava" else "qwen2_vl"]
    for file in ("preprocessor_config.json", "processor_config.json"):
        (folder / file).unlink(missing_ok=True)
    checkpoint, family = open_checkpoint(str(folder))
    with pytest.raises(UserError, match="its image processor can't be used"):
        family.preparer(checkpoint)
    other.processor().save_pretrained(folder)
    with pytest.raises(UserError, match=r"asks for \w+, but a \w+ model takes \w+"):
        family.preparer(checkpoint)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "idefics3"])
def test_a_wrong_tokenizer_is_named(copy_of, name):
    folder = copy_of(name)
    change_config(folder, image_token_id=40, image_token_index=40)
    checkpoint, family = open_checkpoint(str(folder))
    with pytest.raises(UserError, match="config and tokenizer do not belong together"):
        family.answerer(checkpoint, CPU, torch.float32)


@pytest.mark.parametrize("name", TINY)
def test_each_side_holds_its_own_part_only(case, name):
    case = case(name)
    vision = {parameter for parameter, _ in case.encoder._model.named_parameters()}
    language = {parameter for parameter, _ in case.answerer().model.named_parameters()}
    everything = {parameter.removeprefix("model.") for parameter, _ in case.stock.named_parameters()}
    assert not [one for one in vision if "language_model" in one or "text_model.embed" in one or "lm_head" in one]
    assert not [one for one in language if any(word in one for word in ("vision", "visual", "projector", "connector"))]
    both = vision | {one.removeprefix("model.") for one in language}
    assert both == everything
    shared = vision & {one.removeprefix("model.") for one in language}
    assert shared == ({"image_newline"} if name in ("llava_next", "llava_onevision") else set())


@pytest.mark.parametrize("name", TINY)
def test_projectors_are_known_from_the_config_alone(case, name):
    checkpoint, family = case(name).opened
    projector = family.projector(checkpoint.config)
    assert projector.closed_form_obstacle == case(name).encoder.projector.closed_form_obstacle
    if TINY[name].linear:
        for selector in ("zoo", "zoo_centered", "zoo_coverage", "sensitivity"):
            with pytest.raises(UserError, match=r"the projector is linear.*constant.*divprune_centered, coverage, fea"):
                resolve_estimator(projector, selector, "closed_form")
        assert resolve_estimator(projector, "divprune", "closed_form")[0] == "none"
    elif name == "gemma3":
        estimator, note = resolve_estimator(projector, "zoo", "closed_form")
        assert estimator == "directional"
        assert note is not None
        assert "directional in place of closed_form" in note
    else:
        for estimator in ("closed_form", "directional", "finite_difference"):
            assert resolve_estimator(projector, "zoo", estimator) == (estimator, None)


@pytest.mark.parametrize("name", TINY)
def test_several_images_in_one_prompt_are_refused(case, name):
    case = case(name)
    own = case.tiny.image_text
    prompts = [f"what is <image> in <image> w{n}" for n in range(1)] + [f"{own} w1 {own}", f"<image> and {own}"]
    asked = [(0, prompt) for prompt in [*prompts, "this is fine"]]
    replies = case.replies(asked, case.kept(Budget("count", 4)), batch_size=4, max_new_tokens=2)
    assert [reply.finish_reason for reply in replies] == ["refused"] * 3 + ["length"]


def test_a_prompt_without_template_gets_the_familys_own(copy_of, case):
    folder = copy_of("llava")
    without_template(folder)
    checkpoint, family = open_checkpoint(str(folder))
    answerer = family.answerer(checkpoint, CPU, torch.float32)
    assert answerer.render("what is this") == "USER: <image>\nwhat is this ASSISTANT:"
    assert answerer.render("what <image> is this") == "USER: what <image> is this ASSISTANT:"
    assert family_of("llava") is family


def without_template(folder: Path) -> None:
    for file in folder.glob("chat_template*"):
        file.unlink()
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": None}))


def test_a_template_in_the_processors_old_place_is_found(copy_of):
    folder = copy_of("qwen2_vl")
    without_template(folder)
    template = (
        "{% for m in messages %}Q: {% for c in m.content %}{{ c.text or '<|image_pad|>' }}{% endfor %}{% endfor %} A:"
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    checkpoint, family = open_checkpoint(str(folder))
    answerer = family.answerer(checkpoint, CPU, torch.float32)
    assert answerer.render("what is this") == "Q: <|image_pad|>what is this A:"


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "idefics3"])
def test_a_template_that_knows_no_images_is_refused(copy_of, name):
    folder = copy_of(name)
    for template in ("{{ messages[0]['content'] + 'x' }}", "{% for m in messages %}hello{% endfor %}"):
        without_template(folder)
        (folder / "chat_template.jinja").write_text(template)
        checkpoint, family = open_checkpoint(str(folder))
        with pytest.raises(UserError, match="its chat template can't pose a prompt about an image"):
            family.answerer(checkpoint, CPU, torch.float32)


def test_a_checkpoint_without_tokenizer_is_refused(copy_of):
    folder = copy_of("llava")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    checkpoint, family = open_checkpoint(str(folder))
    with pytest.raises(UserError, match="its tokenizer can't be used"):
        family.answerer(checkpoint, CPU, torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float7"}, "config.json can't be used .*float7"),
        ({"vision_feature_layer": None}, "config.json can't be used .*vision_feature_layer"),
        ({"vision_config": "x"}, "config.json can't be used .*vision_config"),
        ({"vision_feature_select_strategy": "odd"}, "config.json can't be used .*vision_feature_select_strategy"),
        ({"image_token_index": "4"}, "config.json can't be used .*image_token_index"),
        ({"image_token_index": -1}, "its config.json is -1, no token's id"),
    ],
)
def test_values_of_a_config_that_mean_nothing_are_one_sentence(copy_of, changes, message):
    folder = copy_of("llava")
    change_config(folder, **changes)
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


def test_a_file_that_holds_no_object_is_one_sentence(copy_of):
    folder = copy_of("llava")
    (folder / "generation_config.json").write_text("[1]")
    with pytest.raises(UserError, match="its weights can't be loaded"):
        encoder(folder)
    (folder / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(UserError, match=r"preprocessor_config\.json can't be read as JSON \(it holds no object\)"):
        identity(*open_checkpoint(str(folder)))
