"""Folders in place of what lmms-eval's POPE, GQA and TextVQA fetch: hand-made documents over bundled scenes.

Fields are those of the data sets' cards: of POPE and TextVQA all of them, of GQA those that its card lists for every
configuration, and `answer`, which the task reads, beside `fullAnswer`.
"""

from pathlib import Path
from typing import Any

import datasets

SCENES = Path(__file__).resolve().parents[2] / "examples" / "scenes" / "images"
TEXT, TEXTS = datasets.Value("string"), datasets.Sequence(datasets.Value("string"))
NUMBER = datasets.Value("int32")

POPE = [("Is there a dog in the image?", "yes"), ("Is there a cat in the image?", "no")] * 3
GQA = [
    ("What color is the ball?", "red"),
    ("Is it raining?", "no"),
    ("What is he wearing?", "T-shirt"),
    ("What is on the left?", "traffic light"),
    ("Who is there?", "woman"),
    ("What is that?", "dark red"),
]
TEXTVQA = [
    ("what does the sign say?", ["stop"] * 10),
    ("what is the number?", ["2", "two", "2", "3", "3", "3", "many", "4", "two", "5"]),
    ("what brand is it?", ["dr. pepper", "dr pepper"] * 5),
    ("whose shop is it?", ["joe's"] * 4 + ["joes"] * 6),
    ("what is the price?", ["$1,000"] * 3 + ["1000"] * 7),
    ("what is written?", ["a red bus", "red bus", "the red bus!"] * 3 + ["bus"]),
]


def _image(number: int) -> dict[str, Any]:
    path = SCENES / f"{number:06d}.jpg"
    return {"bytes": path.read_bytes(), "path": path.name}


def _write(folder: Path, name: str, split: str, rows: list[dict[str, Any]], features: dict[str, Any]) -> str:
    data = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    (folder / name).mkdir(parents=True)
    data.to_parquet(folder / name / f"{split}-00000-of-00001.parquet")
    called = "default" if name == "data" else name
    return f"- config_name: {called}\n  data_files:\n  - split: {split}\n    path: {name}/{split}-*\n"


def _card(folder: Path, *configurations: str) -> None:
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(configurations) + "---\n")


def write_data_sets(folder: Path) -> None:
    """Write all three, each image shown by two documents."""
    pope, gqa, textvqa = (folder / "lmms-lab-encoder" / name for name in ("POPE", "GQA", "textvqa"))
    texts = dict.fromkeys(("id", "question_id", "question", "answer", "image_source", "category"), TEXT)
    rows = [
        {"id": str(n), "question_id": str(n + 1), "question": question, "answer": answer, "image_source": f"COCO_{n}",
         "image": _image(n // 2), "category": "adversarial"}
        for n, (question, answer) in enumerate(POPE)
    ]  # fmt: skip
    _card(pope, _write(pope, "data", "test", rows, {**texts, "image": datasets.Image()}))

    texts = dict.fromkeys(("id", "imageId", "question", "answer", "fullAnswer"), TEXT)
    rows = [
        {"id": f"2{n}", "imageId": f"n{n // 2}", "question": question, "answer": answer, "isBalanced": True,
         "fullAnswer": f"It is {answer}."}
        for n, (question, answer) in enumerate(GQA)
    ]  # fmt: skip
    images = [{"id": f"n{n}", "image": _image(n)} for n in range(3)]
    _card(
        gqa,
        _write(gqa, "testdev_balanced_instructions", "testdev", rows, {**texts, "isBalanced": datasets.Value("bool")}),
        _write(gqa, "testdev_balanced_images", "testdev", images, {"id": TEXT, "image": datasets.Image()}),
    )

    rows = [
        {"image_id": f"i{n // 2}", "question_id": 34602 + n, "question": question, "question_tokens": question.split(),
         "image": _image(n // 2), "image_width": 128, "image_height": 128, "flickr_original_url": "",
         "flickr_300k_url": "", "answers": answers, "image_classes": ["Sign"], "set_name": "val",
         "ocr_tokens": ["STOP"]}
        for n, (question, answers) in enumerate(TEXTVQA)
    ]  # fmt: skip
    features = {
        **dict.fromkeys(rows[0], TEXT),
        **dict.fromkeys(("question_tokens", "answers", "image_classes", "ocr_tokens"), TEXTS),
        **dict.fromkeys(("question_id", "image_width", "image_height"), NUMBER),
        "image": datasets.Image(),
    }
    _card(textvqa, _write(textvqa, "data", "validation", rows, features))
