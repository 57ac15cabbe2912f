"""The benchmark of serving runs whole at small size, and its arithmetic is that of the models it builds."""

import json

import pytest
import torch
from transformers import LlavaNextForConditionalGeneration

from benchmarks import serving
from benchmarks.scaled_next import ORIGINAL, SCALED, TINY, arithmetic, save_model
from benchmarks.serving_baselines import Clock, Limits, Stock
from benchmarks.serving_bench import ANSWER, IN_REQUEST, PRUNE, SHARED, UNTOUCHED, Bench, Work, operations
from benchmarks.serving_tables import arithmetic_lines, gain_lines, leading_line

pytestmark = pytest.mark.long

SMALL = ("--small", "--images", "2", "--long-images", "2", "--repeats", "1", "--threads", "1")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("serving") / "serving.json"
    found = serving.main([*SMALL, "--output", str(path)])
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))
    return path


@pytest.fixture(scope="module")
def result(stored):
    return json.loads(stored.read_text())


def test_every_row_of_the_table_is_measured(result):
    rows = {(row["baseline"], row["ours"]): row for row in result["ratios"] if row["goal"] is not None}
    both = f"{PRUNE} + {ANSWER}"
    assert {names: row["goal"] for names, row in rows.items()} == {
        (UNTOUCHED, both): 12, (UNTOUCHED, ANSWER): 15, (SHARED, ANSWER): 8, (SHARED, both): 5, (IN_REQUEST, both): 4,
    }  # fmt: skip
    assert {row["prompts"] for names, row in rows.items() if names[0] == IN_REQUEST} == {1}
    assert {row["new_tokens"] for row in result["ratios"]} == {3, 5}
    assert {row["tokens"] for row in result["ratios"]} == {20, 40}
    for row in rows.values():
        theirs = [case for case in result["cases"].values() if case["side"] == row["baseline"]]
        case = next(one for one in theirs if (one["images"], one["new_tokens"]) == (2, 3))
        ours = [
            one["sec"]
            for one in result["cases"].values()
            if one["side"] in row["ours"].split(" + ")
            and (one["tokens"], one["prompts"]) == (20, row["prompts"])
            and (one["side"] == PRUNE or one["new_tokens"] == 3)
            and one["images"] == 2
        ]
        assert row["times"] == pytest.approx(case["sec"] / sum(ours))


def test_answers_were_compared_before_anything_was_timed(result):
    found = result["equality"]
    assert [name for name in found if " = " in name] == [
        "untouched = prefix shared",
        "untouched = all tokens kept",
        "in request with our selection = artifact, 20 tokens",
    ]
    assert found["distinct answers of the untouched model"] > found["images"]
    assert 0.2 < found["kept alike by the published estimator"] <= 1


def test_parts_make_up_the_whole(result):
    for case in result["cases"].values():
        assert sum(case["parts_sec"].values()) == pytest.approx(case["sec"])
    parts = {
        case["side"]: {name for name, sec in case["parts_sec"].items() if sec} for case in result["cases"].values()
    }
    assert parts[SHARED] == {"prepare", "encode", "prefill", "decode", "other"}
    assert parts[PRUNE] == {"prepare", "encode", "score", "rank", "write", "other"}
    assert parts[ANSWER] >= {"load", "prefill", "write", "other"}
    assert parts[IN_REQUEST] >= {"prepare", "encode", "score", "rank", "prefill"}


def test_memory_bytes_and_first_tokens_are_there(result):
    assert {*result["memory"]} == {UNTOUCHED, SHARED, IN_REQUEST, PRUNE, ANSWER}
    first = result["first_token_sec"]
    assert first[f"{PRUNE} + {ANSWER}"] == first[PRUNE] + first[ANSWER]
    read = result["bytes"]["artifact_bytes_an_image"]
    assert 20 * TINY.text_width * 4 < read["20"] < read["40"]


def test_a_part_that_is_measured_again_is_put_into_the_results_that_are_there(stored, result, tmp_path):
    path = tmp_path / "serving.json"
    path.write_text(json.dumps({**result, "memory": {}}))
    serving.main([*SMALL, "--only", "memory", "--output", str(path)])
    again = json.loads(path.read_text())
    assert {*again["memory"]} == {*result["memory"]}
    assert {*again["measured_again"]} == {"memory"}
    assert {name: again[name] for name in result if name != "memory"} == {
        name: result[name] for name in result if name != "memory"
    }
    assert stored.read_text() == json.dumps(result, indent=1) + "\n"


def test_a_side_that_answers_otherwise_is_not_timed(monkeypatch, tmp_path):
    def shared(self, asked, new_tokens, clock):
        answers = self.untouched(asked, new_tokens, clock)
        return {name: [*tokens[:-1], tokens[-1] + 1] for name, tokens in answers.items()}

    monkeypatch.setattr(Stock, "shared", shared)
    bench = Bench(tmp_path, TINY, Limits(32, 16_384), torch.get_num_threads())
    with pytest.raises(AssertionError, match="a shared prefix changes an answer"):
        serving.check_equality(bench, 20, 3)


def test_every_cost_of_the_scaled_model_is_divided_alike():
    original, scaled = arithmetic(ORIGINAL, 30), arithmetic(SCALED, 30)
    for name in ("tower_gflop_an_image", "projector_gflop_an_image", "text_gflop_a_token", "reading_gflop_a_prompt"):
        assert original[name] / scaled[name] == pytest.approx(64, rel=0.02)
    for name in ("tower_attention_share", "text_attention_share", "cache_of_a_prompt_per_weights"):
        assert original[name] == pytest.approx(scaled[name], rel=0.02)
    assert (ORIGINAL.visual_tokens, ORIGINAL.newlines) == (SCALED.visual_tokens, SCALED.newlines) == (2880, 48)


def test_operations_are_those_of_the_checkpoint(tmp_path):
    model = LlavaNextForConditionalGeneration.from_pretrained(save_model(tmp_path, TINY))
    layers = model.model.language_model.layers
    assert TINY.text_flops() == 2 * sum(w.numel() for w in layers.parameters() if w.ndim == 2)
    projector = model.model.multi_modal_projector
    assert TINY.projector_flops() == 2 * sum(w.numel() for w in projector.parameters() if w.ndim == 2)
    tower = sum(w.numel() for w in model.model.vision_tower.encoder.parameters() if w.ndim == 2)
    patches = 2 * TINY.side**2 * model.model.vision_tower.embeddings.patch_embedding.weight.numel()
    products = TINY.tower_flops()["products"] / TINY.tiles
    assert products == 2 * (TINY.side**2 + 1) * tower + patches
    work = Work(3, 5, 8)
    assert operations(TINY, UNTOUCHED, work, 0) > operations(TINY, SHARED, work, 0) > operations(TINY, ANSWER, work, 20)


def test_a_part_inside_another_belongs_to_it():
    clock = Clock()
    with clock.part("outer"), clock.part("inner"):
        pass
    assert {*clock.seconds} == {"outer"}


def test_texts_say_what_the_results_say(result):
    text = leading_line(result, {16: 0.0625, 8: 0.03125}, {16: ["90.0 % on plain scenes"], 8: ["1 %"]})
    row = next(row for row in result["ratios"] if row["goal"] is not None)
    assert f"**{row['times']:.1f} times the answers a second**" in text
    assert "20 of 80 visual tokens (25.0 %)" in text
    assert "16 of 256 tokens (6.25 %)" in text
    assert "90.0 % on plain scenes" in text
    lines = gain_lines(result)
    assert sum(line.startswith(f"| {UNTOUCHED} | {PRUNE} + {ANSWER} |") for line in lines) == 3
    assert any(line.startswith(f"| {PRUNE} | 20 | 5 |  |") for line in lines)
    assert "| language model, a token | 12.952 GFLOP |" in "\n".join(arithmetic_lines(result))
