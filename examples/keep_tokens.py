"""Which tokens of a photo does a LLaVA keep? python examples/keep_tokens.py [photo] [model] [tokens] -> kept.png"""

import sys

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from zoo_ops import estimate_sensitivity, rank_tokens

defaults = ["examples/scenes/images/000001.jpg", "examples/tiny-llava", "28"]
photo, name, tokens = sys.argv[1:] + defaults[len(sys.argv) - 1 :]
model = LlavaForConditionalGeneration.from_pretrained(name)
pixels = AutoProcessor.from_pretrained(name).image_processor(Image.open(photo).convert("RGB"), return_tensors="pt")
with torch.no_grad():
    tower = model.model.vision_tower(**pixels, output_hidden_states=True)
    features = tower.hidden_states[model.config.vision_feature_layer][:, 1:]
    layers = model.model.multi_modal_projector
    projector = torch.nn.Sequential(layers.linear_1, layers.act, layers.linear_2)
    ranking = rank_tokens(projector(features), estimate_sensitivity(features, projector), max_tokens=int(tokens))
side = int(features.shape[1] ** 0.5)
light = torch.full((side * side,), 0.25).index_fill(0, ranking.indices_BK[0], 1.0).reshape(1, 1, side, side)
shown = pixels["pixel_values"] - pixels["pixel_values"].min()
shown = (255 * shown / shown.max() * torch.nn.functional.interpolate(light, shown.shape[2:]))[0]
Image.fromarray(shown.byte().permute(1, 2, 0).numpy()).resize((448, 448), 0).save("kept.png")
