"""`cls_attention`: the attention of stock CLIP towers, and a tower that does not notice that it is listened to."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaConfig

from pipeline.budget import Budget
from pipeline.errors import UserError
from pipeline.families.class_attention import attention_refusal, layer_before_projector
from pipeline.prune.select import SelectSettings, require_attention, select_tokens
from tests.families.models import CLIP, SIGLIP, TINY

CLIP_TOWERS = ("llava", "llava_next")
OTHERS = [name for name in TINY if name not in CLIP_TOWERS]


def stock_attention(case: Any, number: int) -> torch.Tensor:
    """Of one of the images, as the stock tower returns it: pictures x patches, summed over the heads."""
    config = case.stock.config
    tower = CLIPVisionModel(config.vision_config).eval()
    tower.load_state_dict(case.stock.model.vision_tower.state_dict())
    tower.set_attn_implementation("eager")
    pixels = case.pixel_inputs(case.images[number])["pixel_values"].flatten(0, -4)
    with torch.no_grad():
        output = tower(pixels, output_attentions=True, output_hidden_states=True)
    # The layer whose output the projector reads, found by that output.
    read = output.hidden_states[config.vision_feature_layer]
    (layer,) = [n for n, hidden in enumerate(output.hidden_states[1:]) if hidden is read]
    return output.attentions[layer][:, :, 0, 1:].sum(1)


def test_llavas_attention_is_that_of_the_stock_tower(case):
    case = case("llava")
    for number, image in enumerate(case.encoded):
        assert image.class_attention is not None
        expected = stock_attention(case, number)[0]
        assert torch.allclose(image.class_attention(), expected, rtol=1e-4, atol=1e-6)


def test_llava_nexts_attention_is_packed_as_its_features_are(case):
    """Every token is given its own patch's: those of the overview come first, the tiles' are unpadded."""
    case = case("llava_next")
    for number, image in enumerate(case.encoded):
        assert image.class_attention is not None
        paid = image.class_attention()
        expected = stock_attention(case, number)
        per_tile = expected.shape[1]
        assert torch.allclose(paid[:per_tile], expected[0], rtol=1e-4, atol=1e-6)
        side = int(per_tile**0.5)
        tile_N, row_N, col_N = image.places().T
        for token in range(per_tile, len(paid)):
            merged = image.segments[1]
            row, col = int(row_N[token]) + merged.top, int(col_N[token]) + merged.left
            patch = row % side * side + col % side
            assert paid[token] == pytest.approx(float(expected[int(tile_N[token]), patch]), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", CLIP_TOWERS)
def test_the_ranking_is_by_attention(case, name):
    case = case(name)
    for image, row in zip(case.encoded, case.rows("cls_attention"), strict=True):
        paid = image.class_attention()
        groups = torch.zeros(len(paid), dtype=torch.int64) if image.groups_N is None else image.groups_N
        for group in groups.unique():
            tokens = [token for token in row["ranking"] if groups[token] == group]
            assert paid[tokens].tolist() == sorted(paid[tokens].tolist(), reverse=True)


@pytest.mark.parametrize("name", CLIP_TOWERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_listening_does_not_change_one_bit_of_the_tower(case, name, dtype):
    case = case(name)
    checkpoint, family = case.opened
    listening = family.encoder(checkpoint, torch.device("cpu"), dtype)
    deaf = family.encoder(checkpoint, torch.device("cpu"), dtype)
    deaf._attention._attention = None
    sizes = [(image.height, image.width) for image in case.images]
    packed = listening.pack(case.pixels, sizes)
    for one, other in zip(listening.encode(packed), deaf.encode(packed), strict=True):
        assert other.class_attention is None
        assert one.class_attention is not None
        one.class_attention()
        assert torch.equal(one.features_ND.view(torch.uint8), other.features_ND.view(torch.uint8))
        assert torch.equal(one.projected_NO.view(torch.uint8), other.projected_NO.view(torch.uint8))


def test_batches_of_other_images_do_not_change_the_ranking(case):
    case = case("llava_next")
    settings = SelectSettings(Budget("all"), "cls_attention")
    ids = [f"{number:064x}" for number in range(len(case.encoded))]
    together = select_tokens(case.encoded, ids, case.encoder.projector, settings)
    for image, image_id, expected in zip(case.encoded, ids, together, strict=True):
        (alone,) = select_tokens([image], [image_id], case.encoder.projector, settings)
        assert torch.equal(alone.ranking_K, expected.ranking_K)
        assert torch.equal(alone.gain_K, expected.gain_K)


@pytest.mark.parametrize("place", [-1, -2, -3, 1, 2, 3])
def test_the_layer_before_the_projector(place):
    """Counted as hidden states are: of a tower of three layers there are four."""
    config = LlavaConfig(vision_config=CLIP, text_config={"model_type": "llama"}, vision_feature_layer=place)
    tower = CLIPVisionModel(CLIPVisionConfig(**CLIP)).eval()
    outputs = []
    for layer in tower.encoder.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    hidden = tower(torch.randn(1, 3, 28, 28), output_hidden_states=True).hidden_states
    assert torch.equal(outputs[layer_before_projector(config)], hidden[place])


@pytest.mark.parametrize(
    ("vision", "place", "reason"),
    [
        (SIGLIP, -2, "it takes the attention of a CLIP tower's class token, and the model's .* a siglip_vision_model"),
        (CLIP, [-2, -3], r"vision_feature_layer of the model's config is \[-2, -3\], which names no one layer"),
        (CLIP, 0, "vision_feature_layer of the model's config is 0, which"),
        (CLIP, -4, "vision_feature_layer of the model's config is -4, which"),
    ],
)
def test_configs_without_such_a_layer_say_why(vision, place, reason):
    config = LlavaConfig(vision_config=vision, text_config={"model_type": "llama"}, vision_feature_layer=place)
    assert re.search(reason, attention_refusal(config))


@pytest.mark.parametrize("name", OTHERS)
def test_towers_without_class_token_are_refused_by_name(case: Callable[[str], Any], name: str) -> None:
    case_of = case(name)
    checkpoint, family = case_of.opened
    tower = checkpoint.config.vision_config.model_type
    with pytest.raises(UserError) as raised:
        require_attention(family, checkpoint, "cls_attention")
    message = str(raised.value)
    assert message.startswith("--selector cls_attention: ")
    assert f"the model's vision tower is a {tower}; use one of the selectors zoo, " in message
    assert "cls_attention" not in message.removeprefix("--selector cls_attention")
    assert all(image.class_attention is None for image in case_of.encoded)
    require_attention(family, checkpoint, "divprune")
