"""What goes between lmms-eval and zoo-prune: a task as a corpus, and answers and grades on their way back.

It imports neither of the two, so that either environment can run it.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

TASK, MANIFEST, IMAGES = "task.json", "manifest.jsonl", "images"
SHOWN = 5  # prompts that a sentence names
EXIT_REFUSED = 2


class Refusal(Exception):  # noqa: N818  # it is said to the user, as it is
    """What can't be done, in one sentence: what, where, and what to do."""


@dataclass(frozen=True)
class Request:
    """What lmms-eval asks about one document of a task."""

    doc_id: int
    prompt: str
    references: Sequence[str]
    image: Image.Image


@dataclass(frozen=True)
class Exported:
    """A prompt of an exported task."""

    prompt_id: str
    doc_id: int
    prompt: str
    references: tuple[str, ...]
    image_id: str


@dataclass(frozen=True)
class Export:
    """An exported task: what `task.json` says, and its prompts by their ids."""

    task: dict[str, Any]
    prompts: dict[str, Exported]

    @property
    def name(self) -> str:
        return str(self.task["task"])


def write_corpus(folder: Path, task: dict[str, Any], requests: Iterable[Request]) -> dict[str, Any]:
    """Write a task as images and a JSONL manifest, and last of all `task.json`; what that says.

    An image is written once, however many documents show it, as the pixels that lmms-eval's models get: a PNG, named by
    the sha256 of its bytes, which is its id in all of zoo-prune's tables. An export that broke off is begun again.

    Args:
        folder: where it goes; must not be there, be empty, or hold such an export.
        task: what `task.json` says beside the counts; its `task` is the type of all prompts and begins their ids.
        requests: one a document.

    Raises:
        Refusal: the folder holds something else, or a whole export.
    """
    _check_free(folder)
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    names: dict[str, str] = {}  # of image files by the sha256 of their pixels
    number = 0
    with open(folder / f"{MANIFEST}.partial", "w", encoding="utf-8") as manifest:
        for request in requests:
            pixels = request.image.convert("RGB")
            raw = pixels.tobytes()
            key = f"{pixels.size} {hashlib.sha256(raw).hexdigest()}"
            if key not in names:
                names[key] = _write_image(folder / IMAGES, Image.frombytes("RGB", pixels.size, raw))
            prompt = {
                "id": f"{task['task']}/{request.doc_id}",
                "prompt": request.prompt,
                "references": list(request.references),
                "type": task["task"],
            }
            manifest.write(json.dumps({"image": f"{IMAGES}/{names[key]}.png", "prompts": [prompt]}) + "\n")
            number += 1
    (folder / f"{MANIFEST}.partial").replace(folder / MANIFEST)
    whole = {**task, "exported": number, "images": len(set(names.values()))}
    _write_whole(folder / TASK, (json.dumps(whole, indent=2, sort_keys=True) + "\n").encode())
    return whole


def _check_free(folder: Path) -> None:
    if (folder / TASK).exists():
        raise Refusal(f"--output {folder} holds an exported task; name another folder, or remove it")
    if folder.exists():
        others = sorted({path.name for path in folder.iterdir()} - {IMAGES, MANIFEST, f"{MANIFEST}.partial"})
        if others:
            raise Refusal(f"--output {folder} holds {others[0]}, which is of no exported task; name another folder")


def _write_image(folder: Path, image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)  # it is read a few times and removed
    name = hashlib.sha256(stream.getvalue()).hexdigest()
    _write_whole(folder / f"{name}.png", stream.getvalue())
    return name


def _write_whole(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def read_corpus(folder: Path) -> Export:
    """What `write_corpus` wrote.

    Raises:
        Refusal: there is none, or not all of it.
    """
    try:
        task = json.loads((folder / TASK).read_text(encoding="utf-8"))
        lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        name = Path(str(error.filename)).name
        raise Refusal(f"--corpus {folder} has no {name}; name the output of a finished export.py") from error
    prompts = {}
    for line in lines:
        record = json.loads(line)
        (prompt,) = record["prompts"]
        prompts[prompt["id"]] = Exported(
            prompt_id=prompt["id"],
            doc_id=int(prompt["id"].rpartition("/")[2]),
            prompt=prompt["prompt"],
            references=tuple(prompt["references"]),
            image_id=Path(record["image"]).stem,
        )
    if len(prompts) != task["exported"]:
        raise Refusal(
            f"--corpus {folder} has {len(prompts)} prompts where its {TASK} says {task['exported']}; export it again"
        )
    return Export(task, prompts)


@dataclass(frozen=True)
class Output:
    """A finished output of a job of zoo-prune."""

    option: str
    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def at(cls, folder: Path, kind: str, option: str) -> "Output":
        """Raises `Refusal` where there is none, or not all of it yet."""
        try:
            job = json.loads((folder / "_job.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise Refusal(f"{option} {folder} has no _job.json; name the output of zoo-prune {kind}") from error
        if job.get("kind") != kind:
            raise Refusal(
                f"{option} {folder} is the output of zoo-prune {job.get('kind')}; name one of zoo-prune {kind}"
            )
        if not (folder / "_SUCCESS").exists():
            raise Refusal(f"{option} {folder} is not finished; run its zoo-prune {kind} again to complete it")
        return cls(option, folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")))

    def rows(self, table: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows of a table, shard by shard.

        Raises:
            Refusal: a file is not the one that the manifest names.
        """
        for shard in self.manifest["shards"]:
            entry = shard["files"][table]
            path = self.folder / entry["path"]
            data = path.read_bytes() if path.exists() else b""
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise Refusal(f"{self.option} {self.folder}: {entry['path']} is damaged or missing; run its job again")
            yield from pq.read_table(io.BytesIO(data), columns=list(columns)).to_pylist()


@dataclass(frozen=True)
class Answers:
    """Our answers to the prompts of an exported task."""

    by_prompt: dict[str, str]
    missing: dict[str, str]  # why there is none, by prompt id


def read_answers(folder: Path, export: Export) -> Answers:
    """The answers to the prompts of a task in the output of an answer job; of other prompts' answers nothing is read.

    Raises:
        Refusal: these are no answers, none to this task, or answers about other images or references.
    """
    found: dict[str, str] = {}
    missing: dict[str, str] = {}
    columns = ("prompt_id", "image_id", "answer", "references", "message")
    for row in Output.at(folder, "answer", "--answers").rows("answers", columns):
        asked = export.prompts.get(row["prompt_id"])
        if asked is None:
            continue
        what = _difference(asked, row)
        if what is not None:
            raise Refusal(
                f"--answers {folder}: the answer to {asked.prompt_id} is about {what} than the exported prompt's; name "
                "answers over this export"
            )
        if row["answer"] is None:
            missing[asked.prompt_id] = f"refused: {row['message']}"
        else:
            found[asked.prompt_id] = row["answer"]
    if not found and not missing:
        raise Refusal(f"--answers {folder} holds no answer to a prompt of {export.name}; name answers over this export")
    missing |= dict.fromkeys(
        sorted(export.prompts.keys() - found.keys() - missing.keys()),
        "not among the answers; zoo-prune query over the table errors of the pruned corpus may say why",
    )
    return Answers(found, missing)


def _difference(asked: Exported, row: dict[str, Any]) -> str | None:
    if row["image_id"] != asked.image_id:
        return "another image"
    return None if tuple(row["references"] or ()) == asked.references else "other references"


@dataclass(frozen=True)
class Grades:
    """Our grades of the answers to a task."""

    metric: str
    score: dict[str, float | None]  # by prompt id
    measures: dict[str, float]  # of all of them, by their names


def read_grades(folder: Path, export: Export) -> Grades:
    """The grades of a task in the output of a grade job.

    Raises:
        Refusal: these are no grades, or none of this task.
    """
    output = Output.at(folder, "grade", "--grades")
    scores, metrics = {}, set()
    for row in output.rows("grades", ("prompt_id", "metric", "score")):
        if row["prompt_id"] in export.prompts:
            scores[row["prompt_id"]] = row["score"]
            metrics.add(row["metric"])
    if not scores:
        raise Refusal(f"--grades {folder} holds no grade of a prompt of {export.name}; name grades of these answers")
    (metric,) = metrics  # of a type of prompts there is one
    lines = [line for line in output.manifest["scores"] if line["type"] == export.name and not line["of_all"]]
    return Grades(metric, scores, {line["measure"]: line["value"] for line in lines})
