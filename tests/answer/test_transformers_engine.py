"""What runs together, what is computed once, and what is refused."""

import pytest
import torch

from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import Engine, Reply
from pipeline.answer.transformers_engine import TransformersEngine
from schemas.answers import FinishReason
from tests.answer.fakes import IMAGE, WORD, FakeAnswerer, question


def rows_of_batches(answerer) -> list[list[list[int]]]:
    return [batch["input_ids"].tolist() for batch in answerer.model.batches]


def test_replies_come_in_the_order_of_the_questions(answerer):
    engine: Engine = TransformersEngine(answerer, batch_size=2, batch_tokens=1000)
    questions = [question("24", "b", 3), question("3", "a"), question("222", "a"), question("2", "c", 1)]
    replies = engine.answer(questions, Decoding(3))
    word = [WORD]
    assert [(list(r.token_ids), r.finish_reason) for r in replies] == [
        (word * 3, FinishReason.LENGTH),
        (word, FinishReason.STOP),
        (word * 3, FinishReason.LENGTH),
        (word * 3, FinishReason.LENGTH),
    ]
    assert [r.text for r in replies] == [" 7 7 7 ", " 7 1 ", " 7 7 7 ", " 7 7 7 "], (
        "what the tokenizer decodes, end included"
    )
    assert {r.message for r in replies} == {None}
    assert all(r.seconds > 0 for r in replies)


def test_batches_hold_similar_lengths_and_one_image_beside_itself(answerer):
    answerer.shares_beginnings = False
    engine = TransformersEngine(answerer, batch_size=2, batch_tokens=1000)
    engine.answer(
        [question("4", "a", 3), question("22", "b"), question("6", "c"), question("2", "b"), question("8", "a", 3)],
        Decoding(1),
    )
    asked = [batch["mm_encoder_outputs"] for batch in answerer.model.batches]
    assert asked == [["b", "b"], ["c", "a"], ["a"]]
    padded, mask = answerer.model.batches[0]["input_ids"], answerer.model.batches[0]["attention_mask"]
    assert padded.tolist() == [[0, IMAGE, IMAGE, 2], [IMAGE, IMAGE, 2, 2]]
    assert mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]


def test_a_beginning_is_computed_once_for_all_that_share_it(answerer):
    engine = TransformersEngine(answerer, batch_size=8, batch_tokens=1000)
    engine.answer([question("2", "a"), question("44", "a"), question("5<>2", "a"), question("2", "b")], Decoding(1))
    assert answerer.model.passes == [3]
    (batch,) = answerer.model.batches
    assert batch["past_key_values"].rows == 4
    assert "mm_encoder_outputs" not in batch, "the features went into the shared pass"
    width = 3  # of the longest beginning: 5, image, image
    assert batch["input_ids"].shape == (4, width + 2)
    assert batch["attention_mask"].sum(1).tolist() == [3, 4, 4, 3]


@pytest.mark.parametrize(("prompts", "shares"), [(["2", "4"], False), (["2<>", "2<>"], True), (["2<>4", "3<>4"], True)])
def test_nothing_is_shared_where_nothing_can_be(answerer, prompts, shares):
    """A family that can't, prompts with nothing behind the image, other words before it."""
    answerer.shares_beginnings = shares
    TransformersEngine(answerer, batch_size=8, batch_tokens=1000).answer(
        [question(prompt) for prompt in prompts], Decoding(1)
    )
    assert answerer.model.passes == []
    assert [len(rows) for rows in rows_of_batches(answerer)] == [2]


def test_one_image_at_two_budgets_is_two_beginnings(answerer):
    questions = [question("2", "a", 1), question("4", "a", 2), question("6", "a", 2)]
    TransformersEngine(answerer, batch_size=8, batch_tokens=1000).answer(questions, Decoding(1))
    assert answerer.model.passes == [2]


def test_settings_that_look_at_the_prompt_take_one_at_a_time(answerer):
    answerer.model.generation_config.repetition_penalty = 1.5
    TransformersEngine(answerer, batch_size=8, batch_tokens=1000).answer([question("2"), question("4")], Decoding(1))
    assert [len(rows) for rows in rows_of_batches(answerer)] == [1, 1]


def test_a_model_that_takes_no_padding_takes_one_at_a_time(answerer):
    answerer.takes_padding = False
    TransformersEngine(answerer, batch_size=8, batch_tokens=1000).answer([question("2"), question("4")], Decoding(1))
    assert [len(rows) for rows in rows_of_batches(answerer)] == [1, 1]


@pytest.mark.parametrize(("new_tokens", "batches"), [(5, [3]), (6, [2, 1]), (60, [1, 1, 1])])
def test_texts_that_reach_the_limit_of_a_rotation_run_alone(answerer, monkeypatch, new_tokens, batches):
    """The last positions are below 103, 103 and 104: text, image and 100 tokens before pruning."""
    forgotten = []
    where = "pipeline.answer.transformers_engine"
    monkeypatch.setattr(f"{where}.fixed_rotation_limit", lambda model: 110)
    monkeypatch.setattr(f"{where}.forget_long_texts", forgotten.append)
    questions = [question("2"), question("4"), question("66")]
    TransformersEngine(answerer, batch_size=8, batch_tokens=1000).answer(questions, Decoding(new_tokens))
    assert [len(rows) for rows in rows_of_batches(answerer)] == batches
    assert len(forgotten) == batches.count(1)


def test_a_refused_prompt_costs_the_others_nothing(answerer):
    engine = TransformersEngine(answerer, batch_size=8, batch_tokens=1000)
    first, second, third = engine.answer([question("2"), question("no!"), question("4")], Decoding(2))
    assert second == Reply(None, (), FinishReason.REFUSED, 0.0, "no! can't be posed")
    assert (first.text, third.text) == (" 7 7 ", " 7 7 ")
    assert [len(rows) for rows in rows_of_batches(answerer)] == [2]


def test_nothing_asked_and_nothing_posable(answerer):
    engine = TransformersEngine(answerer, batch_size=8, batch_tokens=1000)
    assert engine.answer([], Decoding(2)) == []
    assert [r.finish_reason for r in engine.answer([question("!")], Decoding(2))] == [FinishReason.REFUSED]
    assert answerer.model.batches == []


@pytest.mark.parametrize(
    ("own", "ends", "expected"), [(4, 1, 4), (None, 3, 3), (-1, None, 0), (IMAGE, [IMAGE, 2], 2), (50, None, 0)]
)
def test_padding_is_a_token_and_never_the_image(answerer, own, ends, expected):
    answerer.model.generation_config.pad_token_id = own
    answerer.model.generation_config.eos_token_id = ends
    TransformersEngine(answerer, batch_size=8, batch_tokens=1000).answer([question("2")], Decoding(1))
    assert answerer.model.batches[0]["pad_token_id"] == expected
    assert torch.equal(answerer.model.batches[0]["input_ids"], torch.tensor([[IMAGE, IMAGE, 2]]))


def padded_tokens(answerer, new_tokens: int) -> list[int]:
    return [len(rows) * (len(rows[0]) + new_tokens) for rows in rows_of_batches(answerer)]


def test_a_long_question_does_not_pad_the_others_to_its_length(answerer):
    """32 questions of which one has 10,000 tokens; the others run as they do without it."""
    answerer.shares_beginnings = False
    short = [question("2" * (1 + n % 3), f"{n}") for n in range(31)]
    engine = TransformersEngine(answerer, batch_size=16, batch_tokens=1000)
    alone = engine.answer(short, Decoding(3))
    batches = rows_of_batches(answerer)
    answerer.model.batches.clear()
    replies = engine.answer([*short[:7], question("2" * 10_000, "long"), *short[7:]], Decoding(3))
    assert rows_of_batches(answerer)[:-1] == batches
    assert [len(rows) for rows in rows_of_batches(answerer)] == [16, 15, 1]
    assert [reply.token_ids for n, reply in enumerate(replies) if n != 7] == [reply.token_ids for reply in alone]
    assert replies[7].text == " 7 7 7 "


def test_long_questions_run_together_as_far_as_their_tokens_may(answerer):
    answerer.shares_beginnings = False
    lengths = [10, 95, 30, 45, 40, 96, 97, 12, 200]
    engine = TransformersEngine(answerer, batch_size=8, batch_tokens=200)
    replies = engine.answer([question("2" * (n - 1), f"{n}", 1) for n in lengths], Decoding(3))
    assert [len(reply.token_ids) for reply in replies] == [3] * len(lengths)
    widths = [[sum(row) for row in batch["attention_mask"].tolist()] for batch in answerer.model.batches]
    assert widths == [[10, 12], [30, 45, 40], [95, 96], [97], [200]]
    assert [tokens for tokens in padded_tokens(answerer, 3) if tokens > 200] == [203]


def test_a_prompt_beyond_the_context_is_refused_alone():
    answerer = FakeAnswerer(context=6)
    engine = TransformersEngine(answerer, batch_size=8, batch_tokens=1000)
    replies = engine.answer([question("2222"), question("22222"), question("2")], Decoding(4))
    assert [reply.text is None for reply in replies] == [False, True, False]
    message = (
        "the prompt has 7 tokens with its image, the model takes 6 (max_position_embeddings); "
        "shorten it, or answer with fewer --tokens"
    )
    assert replies[1] == Reply.refusal(message)
