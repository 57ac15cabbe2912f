"""The dataset card of an artifact: README.md, which says what lies there, how it was made and how to read it.

Its head is YAML that `datasets.load_dataset(folder, "selections")` follows. It stands outside of the manifest: it says
nothing that the records do not say, and people may change it. Its last line holds the sha256 of what stands above, by
which a card that nobody has changed is known; only such a card is ever written over.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import yaml

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import PAYLOADS
from pipeline.storage.paths import is_url
from schemas.records import JobRecord

CARD = "README.md"
_CONFIGS = {  # tables by the names of their files in commit records
    "selections": "one row a distinct image: its ranking, gains, sensitivities and positions",
    "answers": "one row a prompt: its answer, and the score where there are references",
    "prompts": "one row an input prompt, with its status",
    "errors": "one row a failed input, with its reason",
    "features.parquet": "one row a distinct image: the features of its kept tokens, best first",
}
_TARS = "features.webdataset"
_OF_THE_MACHINE = frozenset(("platform", "processor", "model", "pruned"))  # of a job's environment
_METHOD = "https://arxiv.org/abs/2509.24837"
_MARK = "<!-- written by zoo-prune; sha256 of what stands above: "


def has_card(artifact: Artifact) -> bool:
    """Whether there is a card, anybody's."""
    return artifact.store.stat(CARD) is not None


def write_card(artifact: Artifact, say: Callable[[str], None]) -> None:
    """Write the card of an artifact whose shards are all committed, unless people have changed the one that is there.

    The same records give the same bytes: it names no time, no machine and no place.

    Raises:
        UserError: a record is damaged, or the card can't be written.
    """
    if has_card(artifact) and not _is_ours(artifact.store.read(CARD)):
        say(f"{artifact.store.locate(CARD)} was changed by hand and stays as it is; remove it to get a new one")
        return
    artifact.store.put(CARD, card_of(artifact))


def _is_ours(card: bytes) -> bool:
    text, mark, digest = card.rpartition(_MARK.encode())
    return bool(mark) and digest == _end(text)


def _end(text: bytes) -> bytes:
    return f"{hashlib.sha256(text).hexdigest()} -->\n".encode()


def card_of(artifact: Artifact) -> bytes:
    """The card as it stands in the file."""
    job = artifact.read_job()
    assert job is not None, "a job that has finished has begun"
    rows: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    files: dict[str, list[str]] = {}
    for record in artifact.commits():
        counts.update(record.counts)
        for name, entry in record.files.items():
            rows[name] += entry.rows
            files.setdefault(name, []).append(entry.path)
    tables = [name for name in _CONFIGS if name in files]
    head = {
        "tags": ["zoo-prune", "visual-token-pruning"],
        # `datasets` refuses a table without any row, as that of the errors mostly is
        "configs": [
            _config(artifact, name, files[name], is_default=name == tables[0]) for name in tables if rows[name]
        ],
    }
    body = [*_title(job), "", *_tables(rows, files, tables), "", *_reading(job, tables, _TARS in files)]
    body += ["", *_counts(counts), "", *_settings(job), "", *_versions(job), "", *_citing()]
    text = f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n".join(body) + "\n\n"
    return text.encode() + _MARK.encode() + _end(text.encode())


def _config(artifact: Artifact, name: str, paths: list[str], *, is_default: bool) -> dict[str, Any]:
    """The entry of a table; its files one by one where others lie beside them, else by a pattern."""
    folder, _, first = paths[0].rpartition("/")
    pattern = f"{first.partition('-')[0]}-*.parquet"
    beside = {entry.key for entry in artifact.store.list(f"{folder}/") if entry.key.endswith(".parquet")}
    known = set(paths)
    path = f"{folder}/{pattern}" if beside == known else sorted(known)
    default = {"default": True} if is_default else {}
    return {"config_name": folder, **default, "data_files": [{"split": "train", "path": path}]}


def _title(job: JobRecord) -> list[str]:
    if job.kind == "answer":
        return [
            "# Answers over a pruned corpus",
            "",
            "The prompts of an image-prompt corpus, answered by a vision-language model that saw of each image those",
            "visual tokens that zoo-prune had ranked highest.",
        ]
    lines = [
        "# Pruned visual tokens",
        "",
        "The images of an image-prompt corpus as a vision-language model sees them, with their visual tokens ranked by",
        f"zoo-prune (the method: [ZOO-Prune]({_METHOD})). The first k entries of a `ranking` are the selection at k.",
    ]
    if job.settings.get("features") == "none":
        lines += ["", "Rankings alone: no features are stored (`--features none`), so it can't be answered from."]
    return lines


def _tables(rows: Mapping[str, int], files: Mapping[str, list[str]], tables: list[str]) -> Iterator[str]:
    yield from ("| folder | rows | files | what |", "|---|---|---|---|")
    for name in tables:
        yield f"| `{name.partition('.')[0]}/` | {rows[name]:,} | {len(files[name]):,} | {_CONFIGS[name]} |"
    if _TARS in files:
        what = "WebDataset tars: `<image_id>.features.safetensors`, in pick order, beside `<image_id>.json`"
        yield f"| `features/` | {rows[_TARS]:,} | {len(files[_TARS]):,} | {what} |"
    if PAYLOADS in files:
        what = "where the features of each image lie in its tar, and their sha256"
        yield f"| `{PAYLOADS}/` | {rows[PAYLOADS]:,} | {len(files[PAYLOADS]):,} | {what} |"


def _reading(job: JobRecord, tables: list[str], has_tars: bool) -> Iterator[str]:
    table = tables[0]
    yield from ("## How to read it", "", "In this folder:", "", "```python")
    yield from ("import os", "from datasets import load_dataset", "")
    yield f'{table} = load_dataset(os.getcwd(), "{table}", split="train")'
    yield from ("```", "", "```python", "import pandas as pd  # polars: pl.read_parquet with the same pattern", "")
    yield from (f'{table} = pd.read_parquet("{table}")', "```")
    if has_tars:
        yield from ("", "```python", "import glob, webdataset as wds", "from safetensors.torch import load", "")
        yield 'for sample in wds.WebDataset(sorted(glob.glob("features/shard-*.tar")), shardshuffle=False):'
        yield '    features = load(sample["features.safetensors"])["features"]  # (K, O), best token first'
        yield "```"
    yield ""
    if job.kind == "prune":
        yield "SQL over it: `zoo-prune query --pruned .`. What the columns mean: `schemas/selections.py` of zoo-prune."
    else:
        yield "SQL over it: `zoo-prune query --pruned PRUNED --answers .`, where PRUNED is what was answered."
    yield "`manifest.json` lists every file with its sha256; this card is not among them. Tables without rows are no"
    yield "configuration of `datasets`, which refuses them."


def _counts(counts: Mapping[str, int]) -> Iterator[str]:
    yield from ("## Counts", "", *_table(("count", "number"), sorted(counts.items())))


def _settings(job: JobRecord) -> Iterator[str]:
    flat = {**dict(_flat(job.settings)), **{f"{name} (measured)": value for name, value in job.resolved.items()}}
    yield from ("## Settings", "", *_table(("setting", "value"), flat.items()))
    yield from (line for note in job.notes for line in ("", note))


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    """Settings in settings as `pruned.max_tokens`; without the places of the corpus."""
    for name, value in sorted(settings.items()):
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.") if name != "corpus" else ()
        else:
            yield f"{before}{name}", value


def _versions(job: JobRecord) -> Iterator[str]:
    model = job.environment.get("model", "")
    named = [] if not model or os.path.isabs(model) or is_url(model) else [("checkpoint", model)]  # else it is a place
    yield from ("## Model", "", *_table(("part", "sha256"), [*named, *sorted(job.model.items())]), "")
    versions = sorted((name, version) for name, version in job.environment.items() if name not in _OF_THE_MACHINE)
    yield from ("## Versions", "", *_table(("package", "version"), [("schema", job.schema_version), *versions]))


def _citing() -> list[str]:
    return ["## Citing", "", f"The method is that of ZOO-Prune, arXiv 2509.24837 ({_METHOD})."]


def _table(titles: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> Iterator[str]:
    yield from (f"| {titles[0]} | {titles[1]} |", "|---|---|")
    for name, value in rows:
        shown = f"{value:,}" if titles[1] == "number" else _shown(value)
        yield f"| {name} | {shown} |"


def _shown(value: Any) -> str:
    """A value as JSON, a text as it is; nothing that would end the cell."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text.replace("|", "\\|").replace("\n", " ")
