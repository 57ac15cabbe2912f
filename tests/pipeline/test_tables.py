"""The files of features are those that webdataset writes and reads."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds

from pipeline.artifact.tables import write_features
from schemas.tables import FEATURES

REPO = Path(__file__).resolve().parents[2]


def test_the_bytes_are_those_of_webdatasets_own_writer(small_pruned, tmp_path):
    root = small_pruned(tmp_path / "pruned", shards=1)
    selections = pq.read_table(root / "selections" / "part-00000000.parquet")
    payloads = [b"", b"x" * 511, b"\x00\xff" * 50_000]
    rows = [
        {"image_id": image, "num_kept": 2, "width": 3, "dtype": "float32", "features": payload}
        for image, payload in zip(selections["image_id"].to_pylist(), payloads, strict=True)
    ]
    files = write_features(tmp_path / "out", 0, selections, pa.Table.from_pylist(rows, FEATURES), ("webdataset",))
    entry = files["features.webdataset"]
    written = tmp_path / "out" / entry.path
    with wds.TarWriter(str(tmp_path / "theirs.tar"), encoder=False, mtime=0, user="", group="") as writer:
        for sample in wds.WebDataset(str(written), shardshuffle=False):
            writer.write({name: sample[name] for name in ("__key__", "features.safetensors", "json")})
    assert written.read_bytes() == (tmp_path / "theirs.tar").read_bytes()
    read = list(wds.WebDataset(str(written), shardshuffle=False))
    assert [sample["features.safetensors"] for sample in read] == payloads
    assert [json.loads(sample["json"])["image_id"] for sample in read] == selections["image_id"].to_pylist()
    assert (entry.rows, entry.size_bytes) == (3, written.stat().st_size)


def test_a_writing_process_imports_no_torch():
    """It needs none, and its start would take seconds and hundreds of megabytes more."""
    code = "import sys, pipeline.prune.write; print({'torch', 'transformers', 'webdataset'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
