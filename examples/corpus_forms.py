"""The first scenes of the bundled corpus in every form that a corpus may have, written by the tools that people use.

    python examples/corpus_forms.py forms          # then the commands of docs/corpora.md run on them

Needs the test extras (`datasets`, which brings pandas).
"""

import argparse
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import webdataset as wds

SCENES = Path(__file__).resolve().parent / "scenes"
COUNT = 12


def scenes() -> list[dict[str, Any]]:
    """Id, image bytes, name and prompts of the first scenes."""
    with open(SCENES / "scenes.jsonl") as lines:
        records = [json.loads(line) for _, line in zip(range(COUNT), lines, strict=False)]
    return [{**record, "bytes": (SCENES / record["image"]).read_bytes()} for record in records]


def write_forms(folder: Path) -> None:
    """Write all forms into a folder that is not there yet."""
    found = scenes()
    for name in ("first", "second/deeper"):
        (folder / "photos" / name).mkdir(parents=True)
    for number, scene in enumerate(found):
        place = folder / "photos" / ("first" if number < COUNT // 2 else "second/deeper")
        (place / f"{scene['id']}.jpg").write_bytes(scene["bytes"])
        scene["file"] = str((place / f"{scene['id']}.jpg").relative_to(folder / "photos"))
    _tars(folder, found)
    _tables(folder, found)
    _records(folder, found)
    _pairs(folder, found)


def _tars(folder: Path, found: list[dict[str, Any]]) -> None:
    for name in ("scenes.tar", "scenes.tar.gz"):
        with wds.TarWriter(str(folder / name)) as tar:  # compresses where the name says so
            for scene in found:
                tar.write({"__key__": scene["id"], "jpg": scene["bytes"], "json": {"prompts": scene["prompts"]}})
    with (
        pa.OSFile(str(folder / "scenes.tar.zst"), "wb") as file,
        pa.CompressedOutputStream(file, "zstd") as packed,
        open(folder / "scenes.tar", "rb") as tar,
    ):
        packed.write(tar.read())
    with wds.TarWriter(str(folder / "img2dataset.tar")) as tar:  # members as img2dataset names them
        for scene in found:
            caption = _caption(scene)
            record = {"caption": caption, "url": f"https://example.org/{scene['id']}.jpg", "key": scene["id"]}
            tar.write({"__key__": scene["id"], "jpg": scene["bytes"], "txt": caption, "json": record})
    with tarfile.open(folder / "scenes.tar") as archive:
        assert len(archive.getmembers()) == 2 * COUNT


def _caption(scene: dict[str, Any]) -> str:
    return f"a scene where {scene['prompts'][0]['prompt']} {scene['prompts'][0]['references'][0]}"


def _tables(folder: Path, found: list[dict[str, Any]]) -> None:
    rows = [
        {
            "image": {"bytes": scene["bytes"], "path": f"{scene['id']}.jpg"},
            "question": prompt["prompt"],
            "answer": prompt["references"],
            "kind": prompt["type"],
            "question_id": prompt["id"],
        }
        for scene in found
        for prompt in scene["prompts"]
    ]
    text = datasets.Value("string")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": text,
            "answer": datasets.List(text),
            "kind": text,
            "question_id": text,
        }
    )
    data = datasets.Dataset.from_list(rows, features)
    (folder / "hub").mkdir()
    data.to_parquet(folder / "hub" / "train-00000-of-00001.parquet")
    data.save_to_disk(folder / "saved")
    columns: dict[str, list[Any]] = {
        "questions": [[prompt["prompt"] for prompt in scene["prompts"]] for scene in found],
        "answers": [[prompt["references"] for prompt in scene["prompts"]] for scene in found],
        "kinds": [[prompt["type"] for prompt in scene["prompts"]] for scene in found],
        "ids": [[prompt["id"] for prompt in scene["prompts"]] for scene in found],
    }
    pd.DataFrame({"jpg": [scene["bytes"] for scene in found], **columns}).to_parquet(folder / "binary.parquet")
    pd.DataFrame({"file": [scene["file"] for scene in found], **columns}).to_parquet(folder / "paths.parquet")
    pd.DataFrame({"file": [f"photos/{scene['file']}" for scene in found], **columns}).to_json(
        folder / "other_keys.jsonl", orient="records", lines=True
    )


def _records(folder: Path, found: list[dict[str, Any]]) -> None:
    ours = [{"image": f"photos/{scene['file']}", "prompts": scene["prompts"]} for scene in found]
    (folder / "scenes.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ours))
    instruct = []
    for scene in found:
        turns = []
        for number, prompt in enumerate(scene["prompts"]):
            turns.append({"from": "human", "value": ("<image>\n" if number == 0 else "") + prompt["prompt"]})
            turns.append({"from": "gpt", "value": prompt["references"][0]})
        instruct.append({"id": scene["id"], "image": scene["file"], "conversations": turns})
    (folder / "llava.json").write_text(json.dumps(instruct, indent=2))
    (folder / "llava.jsonl").write_text("".join(json.dumps(record) + "\n" for record in instruct))


def _pairs(folder: Path, found: list[dict[str, Any]]) -> None:
    (folder / "val2014").mkdir()
    for scene in found:
        (folder / "val2014" / f"COCO_val2014_{int(scene['id']):012d}.jpg").write_bytes(scene["bytes"])
    asked = [(scene, prompt) for scene in found for prompt in scene["prompts"]]
    questions = [
        {"image_id": int(scene["id"]), "question": prompt["prompt"], "question_id": prompt["id"]}
        for scene, prompt in asked
    ]
    annotations = [
        {
            "question_id": prompt["id"],
            "image_id": int(scene["id"]),
            "answer_type": prompt["type"],
            "answers": [{"answer": answer, "answer_id": 1} for answer in prompt["references"]],
        }
        for scene, prompt in asked
    ]
    (folder / "questions.json").write_text(json.dumps({"data_subtype": "val2014", "questions": questions}))
    (folder / "annotations.json").write_text(json.dumps({"data_subtype": "val2014", "annotations": annotations}))
    captions = {
        "images": [{"id": int(s["id"]), "file_name": f"COCO_val2014_{int(s['id']):012d}.jpg"} for s in found],
        "annotations": [{"image_id": int(s["id"]), "id": n, "caption": _caption(s)} for n, s in enumerate(found)],
    }
    (folder / "captions.json").write_text(json.dumps(captions))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="to write into; it is not there yet")
    write_forms(parser.parse_args().folder)


if __name__ == "__main__":
    main()
