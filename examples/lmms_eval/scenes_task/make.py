"""Two small tasks of lmms-eval's form over the bundled scenes: YAML files, their functions, and a Parquet file each.

python examples/lmms_eval/scenes_task/make.py out/scenes-tasks
"""

import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

HERE = Path(__file__).resolve().parent
SCENES = HERE.parents[1] / "scenes"
COUNT = 60  # scenes
# What `datasets` reads from the file's metadata: without it the column would be a struct and no image.
FEATURES = {
    **{name: {"dtype": "string", "_type": "Value"} for name in ("question_id", "question", "answer", "category")},
    "image": {"_type": "Image"},
}


def scenes(count: int = COUNT) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The first bundled scenes that can be read: their record and the bytes of their image."""
    with open(SCENES / "scenes.jsonl", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            data = (SCENES / record["image"]).read_bytes()
            if count and _is_image(data):
                count -= 1
                yield record, data


def _is_image(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data)).load()
    except OSError:
        return False
    return True


def rows(yes_or_no: bool, count: int = COUNT) -> list[dict[str, Any]]:
    """Documents: a question each, of yes or no, or of one word."""
    return [
        {
            "question_id": prompt["id"],
            "question": prompt["prompt"],
            "answer": prompt["references"][0],
            "category": prompt["type"],
            "image": {"bytes": data, "path": Path(record["image"]).name},
        }
        for record, data in scenes(count)
        for prompt in record["prompts"]
        if prompt["references"] and prompt["type"] != "caption" and (prompt["type"] == "exist") == yes_or_no
    ]


def make_tasks(folder: Path) -> None:
    """Write both tasks into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("scenes_exist.yaml", "scenes_words.yaml", "utils.py"):
        shutil.copy(HERE / name, folder / name)
    for name, yes_or_no in (("scenes_exist", True), ("scenes_words", False)):
        table = pa.Table.from_pylist(rows(yes_or_no))
        metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
        pq.write_table(table.replace_schema_metadata(metadata), folder / f"{name}.parquet")


if __name__ == "__main__":
    make_tasks(Path(sys.argv[1]))
