"""Packed questions against one ordinary forward pass per question, through the real processor."""

import torch
from packing import answer_logits, encode, pack_questions
from PIL import Image
from processing import build_processor, build_tokenizer
from questions import Question, all_questions
from scenes import NUM_TOKENS, make_scene
from tiny_model import build_model, normalized_pixels, patch_features, use_training_attention


def _some_questions(index: int) -> list[Question]:
    return [questions[0] for questions in all_questions(make_scene("train", index).objects).values() if questions]


def test_packed_logits_are_those_of_single_prompts() -> None:
    model, processor = build_model(3).eval(), build_processor()
    scene = make_scene("train", 5)
    image = Image.fromarray(scene.pixels())
    asked = _some_questions(5)
    with torch.no_grad():
        alone = []
        for question in asked:
            message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.prompt}]}
            text = processor.apply_chat_template([message], add_generation_prompt=True) + " " + question.answer
            inputs = processor(images=image, text=text, return_tensors="pt")
            num_learnt = len(encode(question.answer)) + 1
            alone.append(model(**inputs).logits[0, -num_learnt:])
        use_training_attention(model.model.language_model)
        features, _ = patch_features(model.model.vision_tower, normalized_pixels(scene.pixels()[None].copy()))
        visual = model.model.multi_modal_projector(features)
        packed = answer_logits(model, visual, pack_questions([asked], num_tokens=NUM_TOKENS))
    torch.testing.assert_close(packed, torch.cat(alone), atol=2e-4, rtol=1e-3)


def test_without_bos_only_the_prefix_is_shorter() -> None:
    asked = [_some_questions(6)]
    full, short = (pack_questions(asked, num_tokens=7, with_bos=flag) for flag in (True, False))
    assert len(full.prefix_ids) == len(short.prefix_ids) + 1
    assert torch.equal(full.ids, short.ids)
    assert torch.equal(full.positions[:, 1:] - 1, short.positions)


def test_encode_agrees_with_the_exported_tokenizer() -> None:
    tokenizer = build_tokenizer()
    for index in range(30):
        for question in _some_questions(index):
            for text in (question.prompt, question.answer):
                assert encode(text) == tokenizer.encode(text, add_special_tokens=False)
                if question.prompt != text:
                    assert tokenizer.decode(encode(text)) == text
