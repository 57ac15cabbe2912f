"""Batches: padding and its masks, token ids and labels."""

from dataclasses import replace

import pytest
import torch

from pipeline.datasets.collate import Collate, first_reference, images_of
from pipeline.datasets.torch_dataset import PrunedDataset
from pipeline.errors import UserError
from pipeline.families.base import KeptImage, UnusablePromptError

IMAGE, END = 7, 2


class Words:
    """Prompts and answers as numbers: an image token for each kept token, then a token for each word."""

    eos_token_id, bos_token, image_token_id = END, None, IMAGE

    @property
    def tokenizer(self) -> "Words":
        return self

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [IMAGE if word == "<image>" else 10 + len(word) for word in text.split()]}

    def token_ids(self, prompt: str, image: KeptImage) -> list[int]:
        if "0-2" in prompt:
            raise UnusablePromptError("no words for it")
        return [IMAGE] * len(image.indices_K) + [100 + len(word) for word in prompt.split()]


@pytest.fixture
def samples(make):
    """Two samples with three kept tokens each, and one with two."""
    given = list(PrunedDataset(make((3,))))
    two = next(iter(PrunedDataset(make((3,)), tokens=2)))
    return [*given, two]


def test_features_are_padded_and_masked(samples):
    batch = Collate()([samples[0], samples[3]])
    assert batch["features"].shape == (2, 3, 2)
    assert batch["features_mask"].tolist() == [[True, True, True], [True, True, False]]
    assert batch["indices"].tolist() == [[0, 1, 3], [0, 3, -1]]
    assert torch.equal(batch["features"][0], samples[0].image.features_KO)
    assert torch.equal(batch["features"][1, :2], samples[3].image.features_KO)
    assert batch["features"][1, 2].eq(0).all()
    assert batch["prompt_id"] == ["0-0", "0-0"]
    assert batch["references"] == [["answer 0-0"]] * 2
    assert not {"input_ids", "labels"} & batch.keys()


@pytest.mark.parametrize(
    ("answer", "told"),
    [("a <image>", "the answer 'a <image>' holds the token that stands for the image"), (None, "gave None, expected")],
)
def test_an_answer_that_can_not_be_learnt_is_named(samples, answer, told):
    with pytest.raises(UserError, match=f"^prompt 0-0: .*{told}"):
        Collate(Words(), answer=lambda _: answer)(samples[:1])


def test_images_come_back_out_of_a_batch(samples):
    asked = [replace(s, image=replace(s.image, extras_KO={"deepstack.0": s.image.features_KO + 1})) for s in samples]
    for sample, image in zip(asked, images_of(Collate()(asked)), strict=True):
        assert (image.image_id, image.selection) == (sample.image.image_id, sample.image.selection)
        assert torch.equal(image.indices_K, sample.image.indices_K)
        assert torch.equal(image.features_KO, sample.image.features_KO)
        assert torch.equal(image.extras_KO["deepstack.0"], sample.image.extras_KO["deepstack.0"])


def test_labels_are_the_answer_and_its_end_alone(samples):
    collate = Collate(Words(), answer=first_reference, pad_token_id=99)
    batch = collate([samples[0], samples[3]])
    prompt = [104, 102, 103, 101]  # "what is 0-0 ?", by the lengths of its words
    assert batch["input_ids"].tolist() == [
        [7, 7, 7, *prompt, 16, 13, END],
        [7, 7, *prompt, 16, 13, END, 99],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 10, [1] * 9 + [0]]
    assert batch["labels"].tolist() == [[-100] * 7 + [16, 13, END], [-100] * 6 + [16, 13, END, -100]]


def test_without_answers_prompts_end_where_the_answer_would_begin(samples):
    batch = Collate(Words())(samples[:1])
    assert batch["input_ids"].tolist() == [[7, 7, 7, 104, 102, 103, 101]]
    assert "labels" not in batch


def test_what_cannot_be_learnt_is_named(samples):
    with pytest.raises(UserError, match=r"prompt 0-2 can't be posed \(no words for it\)"):
        Collate(Words())(samples[:3])
    samples[0].prompt.references = []
    with pytest.raises(UserError, match="prompt 0-0 has no reference that could be learnt"):
        Collate(Words(), answer=first_reference)(samples[:1])
    with pytest.raises(UserError, match="give `tokens` too"):
        Collate(answer=first_reference)
