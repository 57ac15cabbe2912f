"""What tests of reports share: answers over any pruned artifact, made without a model, and a hostile corpus."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import write_table
from pipeline.grading.grader import DEFAULT
from pipeline.report.html import Report, gather, render
from pipeline.report.settings import ReportSettings
from schemas.answers import AnswerRow, FinishReason
from schemas.choice import BudgetTrial, Choice, ControlTrial, Difference, GroupLoss, Sampled
from schemas.columns import table_of
from schemas.records import CommitRecord, JobRecord, to_json
from schemas.tables import SCHEMA_VERSION

TURNED = "\u202egpj.exe\u2066"
HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    '<img src="https://example.org/x" onerror="window.hacked = 1">',
    '"><svg/onload=window.hacked=1>',
    "</textarea></style></title><b onmouseover='window.hacked = 1'>",
    "{{ 7 * 7 }} {% raw %} <!--",
    "javascript:window.hacked=1 &lt;i&gt; ]]>",
    f"a name that turns: {TURNED} and ends \u2028\x1b[2J",
)

Given = Callable[[dict[str, Any]], tuple[str | None, float | None]]  # a prompt -> its answer and score


def write_answers(
    root: Path,
    pruned: Path,
    tokens: str,
    given: Given,
    seen: int | dict[str, int] | None = None,
    selector: str | None = None,
) -> Path:
    """A finished output of an answer job over every prompt that can be posed.

    Args:
        tokens: the budget that is asked for.
        given: what is answered.
        seen: tokens of an image that the model saw, of all or of those named; without it as many as are stored.
        selector: that chose them, where it is a control's.
    """
    artifact, source = Artifact(root), Artifact(pruned)
    job = source.require_job("prune", "--pruned")
    settings = {**job.settings, "corpus": "one", **({"selector": selector} if selector else {})}
    artifact.adopt_job(JobRecord("answer", SCHEMA_VERSION, {"tokens": tokens, "pruned": settings}, {}, {}))
    kept: dict[str, int] = {}
    of_each = seen if isinstance(seen, dict) else {}
    of_all = None if isinstance(seen, dict) else seen
    for record in source.commits():
        with source.opened(record, "selections") as stream:
            kept |= {row["image_id"]: row["num_kept"] for row in pq.read_table(stream).to_pylist()}
        with source.opened(record, "prompts") as stream:
            prompts = [row for row in pq.read_table(stream).to_pylist() if row["status"] == "ok"]
        rows = []
        for prompt in prompts:
            text, score = given(prompt)
            rows.append(
                AnswerRow(
                    prompt_id=prompt["prompt_id"],
                    image_id=prompt["image_id"],
                    answer=text,
                    answer_tokens=[],
                    finish_reason=FinishReason.STOP if text is not None else FinishReason.REFUSED,
                    tokens=of_each.get(prompt["image_id"]) or of_all or kept[prompt["image_id"]],
                    seconds=0.001 * (of_all or 4),
                    type=prompt["type"],
                    references=prompt["references"],
                    correct=None if score is None else score >= 1,
                    metric=DEFAULT,
                    score=score,
                    shard=record.shard,
                    message=None if text is not None else HOSTILE[0],
                )
            )
        files = {"answers": write_table(root, "answers", record.shard, table_of(AnswerRow, rows))}
        sources = {entry.path: entry.sha256 for name, entry in record.files.items() if name != "errors"}
        artifact.commit(
            CommitRecord(
                record.shard, files, {"prompts": len(rows)}, {"load": 0.5, "generate": 2.0}, None, 1.8e9, sources, "cpu"
            )
        )
    artifact.finish({"num_shards": 1})
    return root


def hostile_corpus(folder: Path) -> Path:
    """A manifest whose names, prompts, references and types are all out to break a page; two images can't be read."""
    folder.mkdir()
    lines = []
    for number, text in enumerate(HOSTILE * 2):
        name = f"{number} {text.replace('/', '_')}"[:80].replace("\n", " ") + ".png"
        pixels = np.random.default_rng(number).integers(0, 255, (40, 64, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        (folder / name).write_bytes(stream.getvalue() if number not in (3, 4) else b"no image")
        prompts = [
            {"id": f"{text} {number}-{n}", "prompt": text, "references": [text], "type": HOSTILE[(number + n) % 7]}
            for n in range(2)
        ]
        lines.append(json.dumps({"image": name, "prompts": prompts}))
    (folder / "all.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "all.jsonl"


def report_on(pruned: Path, answers: Sequence[Path] = (), **changes: Any) -> Report:
    """The report over these outputs, before it is a page."""
    said: list[str] = []
    settings = ReportSettings(pruned=str(pruned), answers=tuple(map(str, answers)), output="/none.html", **changes)
    return gather(settings, said.append)


def page_on(pruned: Path, answers: Sequence[Path] = (), **changes: Any) -> str:
    """The page over these outputs."""
    return render(report_on(pruned, answers, **changes)).decode()


def write_choice(folder: Path, selector: str = "zoo", chosen: str | None = "0.25", name: str = "random") -> Path:
    """An output of choose_budget: two budgets, one control."""

    def difference(points: float) -> Difference:
        return Difference(points=points, low=points - 0.5, high=points + 0.5)

    trials = [
        BudgetTrial(
            tokens=tokens, mean_tokens=mean, score=98 - loss, loss=difference(loss), bound=loss + 0.4,
            verdict="safe" if tokens == chosen else "not safe", images_to_settle=None,
            groups=(GroupLoss(type=name, metric="exact", prompts=9, images=3, all_tokens=98.0, score=98 - loss,
                              loss=difference(loss)),),
            controls=(ControlTrial(selector=name, seeds=3, score=80.0, loss=difference(18.0), bound=19.0,
                                   ahead=difference(18 - loss), does_as_well=False),),
        )
        for tokens, mean, loss in (("0.25", 64.0, 0.5), ("0.125", 32.0, 3.0))
    ]  # fmt: skip
    choice = Choice(
        corpus=("photos/*.tar",), model="org/model", selector=selector, tolerance=2.0, confidence=0.95,
        sample=Sampled(asked=500, seed=0, images=480, prompts=2000, refused=0, without_references=0,
                       metrics=("exact",)),
        all_tokens=98.0, mean_tokens=256.0, budgets=tuple(trials), chosen=chosen,
        findings=(f"--tokens {chosen} is the smallest budget measured.", name),
    )  # fmt: skip
    folder.mkdir()
    (folder / "choice.json").write_bytes(to_json(choice.model_dump(mode="json")))
    return folder
