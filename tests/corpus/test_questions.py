"""Files of questions and annotations as VQAv2 has them, of captions as COCO has them."""

import json

import pytest

from pipeline.corpus.questions import Pairing
from pipeline.corpus.reading import Reading
from pipeline.corpus.resolve import resolve_corpus
from pipeline.errors import UserError
from tests.corpus.conftest import scan_all, sha256

ASKED = [(7, 70, "what ?"), (9, 90, "where ?"), (7, 71, "who ?"), (11, 110, "why ?")]


@pytest.fixture
def vqa(tmp_path, jpegs):
    """Questions, annotations and a folder of images; the two of image 7 do not stand together."""
    (tmp_path / "train2014").mkdir()
    for number, image in enumerate((7, 9)):
        (tmp_path / "train2014" / f"COCO_train2014_{image:012d}.jpg").write_bytes(jpegs[number])
    questions = {
        "info": {"year": 2017},
        "data_subtype": "train2014",
        "questions": [{"image_id": image, "question_id": one, "question": text} for image, one, text in ASKED],
    }
    annotations = {
        "annotations": [
            {
                "question_id": one,
                "image_id": image,
                "answer_type": "other",
                "multiple_choice_answer": f"a{one}",
                "answers": [{"answer": f"a{one}", "answer_id": n} for n in range(2)] + [{"answer": "x"}],
            }
            for image, one, _ in reversed(ASKED)
        ]
    }
    (tmp_path / "q.json").write_text(json.dumps(questions))
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    return tmp_path


@pytest.mark.parametrize("step", [None, 60, 150])
@pytest.mark.parametrize("root", ["train2014", "."])
def test_an_image_is_a_sample_with_all_its_questions_and_their_answers(vqa, jpegs, step, root):
    rows = scan_all(f"{vqa}/q.json+{vqa}/a.json", step=step, image_root=str(vqa / root))
    assert [row.reason for row in rows] == [None, None, "missing_file"]
    assert [row.image_id for row in rows[:2]] == [sha256(data) for data in jpegs[:2]]
    assert [[(p.prompt_id, p.prompt) for p in row.prompts] for row in rows] == [
        [("70", "what ?"), ("71", "who ?")],
        [("90", "where ?")],
        [("110", "why ?")],
    ]
    assert rows[0].prompts[1].references == ["a71", "a71", "x"]
    assert rows[0].prompts[1].type == "other"
    prefix = "" if root == "train2014" else "train2014/"
    assert rows[0].source.endswith(f"/{prefix}COCO_train2014_000000000007.jpg")


def test_questions_alone_have_no_references_and_prompts_may_be_added(vqa):
    rows = scan_all(vqa / "q.json", image_root=str(vqa / "train2014"), prompts=("more ?",))
    assert [(p.prompt, p.references) for p in rows[0].prompts] == [("what ?", []), ("who ?", []), ("more ?", [])]


def test_pairs_by_braces(vqa):
    for name in ("q", "a"):
        (vqa / f"{name}2.json").write_bytes((vqa / f"{name}.json").read_bytes())
    found = resolve_corpus([f"{vqa}/{{q,q2}}.json+{vqa}/{{a,a2}}.json"])
    assert [(item.path[-7:], item.partner[-7:]) for item in found] == [("/q.json", "/a.json"), ("q2.json", "a2.json")]
    sizes = [(vqa / name).stat().st_size for name in ("q.json", "a.json")]
    assert {item.size_bytes for item in found} == {sum(sizes)}
    with pytest.raises(UserError, match="stands for 2 files of questions and 1 of annotations"):
        resolve_corpus([f"{vqa}/{{q,q2}}.json+{vqa}/a.json"])
    (vqa / "l.json").write_text("[]")
    with pytest.raises(UserError, match=r"l\.json is no JSON object; a pair is of questions and annotations"):
        resolve_corpus([f"{vqa}/q.json+{vqa}/l.json"])


@pytest.mark.parametrize("order", [("images", "annotations"), ("annotations", "images")])
@pytest.mark.parametrize("step", [None, 40])
def test_captions_of_an_image_are_references_of_one_prompt(tmp_path, jpegs, order, step):
    members = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 40} for n in range(3)],
        "annotations": [{"image_id": n % 3, "id": n, "caption": f"c{n}"} for n in range(6)],
    }
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpegs[number])
    (tmp_path / "c.json").write_text(json.dumps({"info": {}, **{key: members[key] for key in order}}))
    rows = scan_all(tmp_path / "c.json", step=step, caption_prompt="say !")
    assert [row.image_id for row in rows] == [sha256(data) for data in jpegs[:3]]
    assert [[(p.prompt, p.references, p.type) for p in row.prompts] for row in rows] == [
        [("say !", [f"c{n}", f"c{n + 3}"], "caption")] for n in range(3)
    ]


@pytest.mark.parametrize("step", [None, 50])
def test_odd_entries_have_rows(tmp_path, jpegs, step):
    (tmp_path / "1.jpg").write_bytes(jpegs[0])
    (tmp_path / "q.json").write_text(
        json.dumps(
            {
                "questions": [
                    {"image_id": "1", "question_id": 1, "question": "what ?"},
                    5,
                    {"image_id": [1], "question": "x"},
                    {"image_id": "1", "question_id": {}, "question": 5},
                    {"image_id": "../1", "question": "out ?"},
                ]
            }
        )
    )
    (tmp_path / "a.json").write_text('{"annotations": [{"question_id": 1, "answer": "yes"}, 5, {"image_id": 1}]}')
    rows = scan_all(f"{tmp_path}/q.json+{tmp_path}/a.json", step=step)
    reasons = [row.reason for row in rows]
    assert sorted(map(str, reasons)) == ["None", *["bad_record"] * 4, "unsafe_path"]
    good = next(row for row in rows if row.reason is None)
    assert [(p.prompt, p.references, p.status) for p in good.prompts] == [
        ("what ?", ["yes"], "ok"),
        ("", [], "bad_prompt"),
    ]
    (tmp_path / "a.json").write_text('{"annotations": [{"question_id": 1, "answer": "yes"}, {"quest')
    rows = scan_all(f"{tmp_path}/q.json+{tmp_path}/a.json", step=step)
    assert sum(row.reason == "damaged_file" for row in rows) == 1


def test_another_json_object_is_refused(tmp_path):
    (tmp_path / "q.json").write_text('{"licences": [1], "name": "x"}')
    with pytest.raises(UserError, match=r"q\.json holds neither 'questions' nor 'images'.*\['licences', 'name'\]"):
        scan_all(tmp_path / "q.json")


def test_a_question_without_an_image_keeps_its_row(vqa):
    (vqa / "q.json").write_text(json.dumps({"questions": [{"question_id": 1, "question": "which image ?"}]}))
    (row,) = scan_all(vqa / "q.json")
    assert (row.reason, [(p.prompt_id, p.prompt) for p in row.prompts]) == ("bad_record", [("1", "which image ?")])


def test_answers_of_several_annotations_of_a_question_are_all_kept(vqa):
    each = [{"question_id": 70, "answer": "yes", "answer_type": "t"}, {"question_id": 70, "answers": ["no", "yes"]}]
    (vqa / "a.json").write_text(json.dumps({"annotations": each}))
    first = scan_all(f"{vqa}/q.json+{vqa}/a.json", image_root=str(vqa / "train2014"))[0].prompts[0]
    assert (first.references, first.type) == (["yes", "no", "yes"], "t")


@pytest.mark.parametrize("second", ["q.json", "empty.json"])
def test_a_second_file_without_annotations_is_refused(vqa, second):
    (vqa / "empty.json").write_text('{"annotations": [], "info": 1}')
    with pytest.raises(UserError, match=rf"{second} holds no 'annotations', or none in them; its members are \['"):
        scan_all(f"{vqa}/q.json+{vqa}/{second}")
    with pytest.raises(UserError, match=r"a\.json holds neither .* name a file of questions \(before that of their"):
        scan_all(f"{vqa}/a.json+{vqa}/q.json")


def test_files_that_do_not_belong_together_are_told(vqa):
    """`extra ?` is asked about every image and has no answers anywhere."""
    reading = Reading(prompts=("extra ?",))
    pairing = Pairing("q.json", "a.json")
    for row in scan_all(f"{vqa}/q.json+{vqa}/a.json", prompts=reading.prompts):
        pairing.add(row.prompts, reading)
    assert (pairing.asked, pairing.answered, pairing.is_wrong, pairing.note()) == (4, 4, False, None)
    pairing.asked += 1
    assert pairing.note() == "1 of 5 questions of q.json have no answer in a.json"
    pairing.answered = 0
    assert pairing.is_wrong
    assert "not one of 5 questions of q.json has an answer in a.json; name two files that" in pairing.refusal()
    assert not Pairing("q.json", "a.json").is_wrong


def test_an_image_without_a_name_in_a_file_without_a_subset_is_called_by_its_number(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"images": [{"id": 60}], "annotations": []}))
    assert scan_all(tmp_path / "c.json")[0].source.endswith("/000000000060.jpg")
