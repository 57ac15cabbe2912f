"""The view `grades`: outputs of grade jobs, beside the answers that they grade."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import dataset_of
from pipeline.errors import UserError
from pipeline.storage import Store
from schemas.records import CommitRecord, JobRecord
from schemas.tables import GRADES

_OWN = "answers/"  # begins the paths of the answers that were graded, among what grades were made from
SCHEMA = GRADES.append(pa.field("budget", pa.string())).append(pa.field("against", pa.string()))


def grades_of(grades: Sequence[Path | str], answers: Sequence[Path | str]) -> ds.Dataset:
    """All grades, with the budget of the answers they grade, and that of the answers these were compared with.

    Raises:
        UserError: a folder is no sound artifact of grades, none of the answers is what it grades, or two of them hold
            grades that could not be told apart.
    """
    return ds.UnionDataset(
        SCHEMA, [dataset_of(store, keys, SCHEMA, holds) for store, keys, holds in _files(grades, answers)]
    )


def _files(
    grades: Sequence[Path | str], answers: Sequence[Path | str]
) -> Iterator[tuple[Store, list[str], ds.Expression]]:
    """Store and files of each artifact of grades, and what is true of all of its rows."""
    hashes_of = _hashes(answers) if grades else {}
    seen: dict[tuple[object, ...], Path | str] = {}
    for path in grades:
        artifact = Artifact(path)
        job = artifact.require_job("grade", "--grades")
        records, listed = list(artifact.checked_commits()), artifact.listing()
        budget, against = str(job.settings["answers"]["tokens"]), _against(job)
        _check_graded(path, records, hashes_of.get(budget, {}))
        same = seen.setdefault((budget, against, tuple(job.settings["metric"])), path)
        if same is not path:
            raise UserError(f"--grades {same} and {path} grade the same answers by the same metrics; name one of them")
        holds = ds.field("budget") == budget
        if against is not None:
            holds &= ds.field("against") == against
        yield artifact.store, [artifact.file_of(record, "grades", listed).path for record in records], holds


def _hashes(answers: Sequence[Path | str]) -> dict[str, dict[str, str]]:
    """sha256 of the files of each artifact of answers, by its budget."""
    found = {}
    for path in answers:
        artifact = Artifact(path)
        tokens = str(artifact.require_job("answer", "--answers").settings["tokens"])
        found[tokens] = {
            entry.path: entry.sha256 for record in artifact.checked_commits() for entry in record.files.values()
        }
    return found


def _check_graded(path: Path | str, records: Sequence[CommitRecord], hashes: Mapping[str, str]) -> None:
    """Refuse grades that were not all made from these answers, sha256 by path."""
    for record in records:
        own = {name: value for name, value in record.sources.items() if name.startswith(_OWN)}
        if not own or not own.items() <= hashes.items():
            raise UserError(
                f"--grades {path}: it grades none of the --answers as they are; name those that it grades, or run "
                "its grade job again"
            )


def _against(job: JobRecord) -> str | None:
    other = job.settings["against"]
    return None if other is None else str(other["tokens"])
