"""What a person would write without Ray: a DataLoader that decodes, a loop that encodes, scores, selects and writes.

    python benchmarks/bare_loop.py --index out/photos/_index --model examples/tiny-llava --output out/bare

The yardstick of `benchmarks/throughput.py`. It calls the stage functions of the pipeline on the same images in the
same mini-batches, so its files must be the pipeline's, byte for byte; it has no retries, time-outs, commits or resume.
Prints one JSON line: when its first model batch began, when its last file was written, images, seconds a stage.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    # In place of this folder, which holds a file by the name of a standard module (selectors).
    sys.path[0] = str(ROOT)

import argparse
import json
import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from jobs.console import quiet_libraries
from pipeline.artifact.index import read_index
from pipeline.artifact.tables import write_features, write_table
from pipeline.budget import parse_budget
from pipeline.cluster.environment import own_dtype
from pipeline.corpus.decode import decode_image
from pipeline.corpus.fetch import Place, read_bytes
from pipeline.families.checkpoint import open_checkpoint
from pipeline.families.loading import limit_threads
from pipeline.prune.ahead import Laps
from pipeline.prune.encode import (
    EncodeSettings,
    decision_of,
    feature_row,
    image_id_of,
    kept_rows,
    load_encoder,
    size_of,
)
from pipeline.prune.rows import DecodedRow
from pipeline.prune.select import SelectSettings, TokenSelector
from pipeline.prune.write import prompt_rows
from pipeline.storage import LocalStore
from schemas.columns import rows_of, table_of
from schemas.samples import IndexRow
from schemas.selections import ErrorRow, FeatureRow, PromptRow, SelectionRow


class Images(Dataset):
    """Read, decode and prepare one image at a time, in a process of the DataLoader."""

    def __init__(self, rows: list[IndexRow], model: str) -> None:
        self._rows, self._model, self._preparer = rows, model, None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int, int]:
        if self._preparer is None:
            limit_threads(1)
            checkpoint, family = open_checkpoint(self._model)
            self._preparer = family.preparer(checkpoint)
        row = self._rows[number]
        image = decode_image(read_bytes(Place(row.path, row.offset, row.size, row.within), row.image_id))
        return torch.from_numpy(np.ascontiguousarray(self._preparer.prepare(image))), image.width, image.height


def bare_loop(
    index_folder: Path, model: str, output: Path, max_tokens: str, batch_size: int, decoders: int, shards: list[int]
) -> dict[str, Any]:
    """Prune the shards of an index.

    Args:
        index_folder: `_index` of an artifact; all its images must be sound, none repeated.
        model: checkpoint folder.
        output: folder for the tables.
        max_tokens: as in `jobs/prune_corpus.py`.
        batch_size: images a forward pass; divides the size of every shard but the last.
        decoders: processes of the DataLoader.
        shards: numbers.
    """
    index = read_index(LocalStore(index_folder.parent))
    assert index is not None
    tables = [rows_of(IndexRow, index.read_shard(shard)) for shard in shards]
    rows = [row for table in tables for row in table]
    assert all(row.slot is not None and row.reason is None for row in rows), "bad or repeated image"
    assert all(len(table) % batch_size == 0 for table in tables[:-1]), "a batch would span two shards"
    limit_threads(1)
    checkpoint, _ = open_checkpoint(model)
    settings = EncodeSettings(
        model, own_dtype(checkpoint), batch_size, "model", SelectSettings(parse_budget(max_tokens, ""))
    )
    encoder = load_encoder(settings, torch.device("cpu"))
    selector = TokenSelector(encoder.projector, settings.select)
    loader = DataLoader(
        Images(rows, model), batch_size=batch_size, num_workers=decoders, collate_fn=list, prefetch_factor=8
    )
    seconds: dict[str, float] = defaultdict(float)
    waiting = iter(tables)
    table = next(waiting)
    selections: list[SelectionRow] = []
    features: list[FeatureRow] = []
    done = 0
    began = 0.0
    for batch in loader:
        began = began or time.time()
        some = [
            DecodedRow(
                shard=row.shard, source=row.source, image_id=row.image_id, reason=None, message=None,
                width=width, height=height,
            )
            for row, (_, width, height) in zip(rows[done : done + len(batch)], batch, strict=True)
        ]  # fmt: skip
        laps = Laps(torch.device("cpu"))
        images = encoder.encode(encoder.pack([image.numpy() for image, _, _ in batch], [size_of(row) for row in some]))
        laps.lap("encode")
        ranked = selector.rank(images, [image_id_of(row) for row in some], laps)
        laps.add_to(seconds)
        chosen = ranked.selections(ranked.tensors())
        for row, image, selection in zip(some, images, chosen, strict=True):
            selections.append(decision_of(row, image, selection))
            features.append(feature_row(row, kept_rows(image, selection), "model"))
        done += len(batch)
        if len(selections) == len(table):
            mark = time.perf_counter()
            write_shard_files(output, table, selections, features)
            seconds["write"] += time.perf_counter() - mark
            table, selections, features = next(waiting, []), [], []
    return {"began": began, "ended": time.time(), "images": done, "seconds": dict(seconds)}


def write_shard_files(
    output: Path, rows: list[IndexRow], selections: list[SelectionRow], features: list[FeatureRow]
) -> None:
    """The five files of a shard."""
    shard, decisions = rows[0].shard, table_of(SelectionRow, selections)
    write_table(output, "selections", shard, decisions)
    write_table(output, "prompts", shard, table_of(PromptRow, prompt_rows(rows)))
    write_table(output, "errors", shard, table_of(ErrorRow, []))
    write_features(output, shard, decisions, table_of(FeatureRow, features), ("webdataset",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--index", required=True, type=Path, help="the _index folder of an artifact")
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--max-tokens", default="64")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--decoders", type=int, default=1, help="processes of the DataLoader (default 1)")
    parser.add_argument("--shards", required=True, help="FIRST:END")
    given = parser.parse_args()
    first, end = map(int, given.shards.split(":"))
    quiet_libraries()
    result = bare_loop(
        given.index, given.model, given.output, given.max_tokens, given.batch_size, given.decoders, [*range(first, end)]
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
