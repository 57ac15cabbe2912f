"""Parquet files and saved data sets: images in every form that Hugging Face writes, prompts from columns."""

import io
import itertools
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus import cells
from pipeline.corpus.fetch import Fetcher, Place
from pipeline.corpus.packed import DamagedError
from pipeline.corpus.resolve import resolve_corpus
from pipeline.corpus.scan import scan
from pipeline.errors import UserError
from pipeline.storage.input_file import InputReadError
from tests.corpus.conftest import scan_all, sha256, units_of

NAMED = {"prompt_column": "question", "reference_column": "answer"}


def image_array(jpegs: list[bytes], form: str, names: list[str]) -> pa.Array:
    if form == "struct":
        return pa.array([{"bytes": data, "path": name} for data, name in zip(jpegs, names, strict=True)])
    if form == "struct of paths":
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        return pa.array([{"bytes": None, "path": name} for name in names], kind)
    return pa.array(jpegs, pa.large_binary()) if form == "binary" else pa.array(names)


@pytest.fixture
def names(tmp_path, jpegs):
    (tmp_path / "images").mkdir()
    for number, data in enumerate(jpegs):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(data)
    return [f"images/{number}.jpg" for number in range(len(jpegs))]


def table(jpegs, form, names) -> pa.Table:
    asked = pa.array([f"what {number} ?" for number in range(len(jpegs))])
    return pa.table({"other": asked, "image": image_array(jpegs, form, names), "question": asked, "answer": asked})


@pytest.mark.parametrize(
    ("step", "form"),
    [
        *itertools.product([None, 61, 3000], ["struct", "struct of paths", "binary", "path"]),
        *[(1, form) for form in ("struct of paths", "path")],
        *[pytest.param(1, form, marks=pytest.mark.slow) for form in ("struct", "binary")],  # larger files
    ],
)
def test_parquet_in_every_form_of_image(tmp_path, jpegs, names, form, step):
    path = tmp_path / "a.parquet"
    pq.write_table(table(jpegs, form, names), path, row_group_size=2)
    rows = scan_all(path, step=step, **NAMED)
    assert [row.image_id for row in rows] == [sha256(data) for data in jpegs]
    assert [row.sample for row in rows] == list(range(6))
    assert [(p.prompt_id, p.prompt, p.references) for p in rows[4].prompts] == [
        ("a.parquet@4#0", "what 4 ?", ["what 4 ?"])
    ]
    assert rows[4].source == ("a.parquet@4" if form == "binary" else "a.parquet@4/images/4.jpg")
    assert (rows[4].within or "").startswith("parquet:") == (form in ("struct", "binary"))


def test_a_shard_reads_its_row_groups_and_no_other_column(tmp_path, jpegs, names, monkeypatch):
    monkeypatch.setattr(cells, "BATCH_ROWS", 2)
    pq.write_table(table(jpegs, "struct", names), tmp_path / "a.parquet", row_group_size=4)
    rows = scan_all(tmp_path / "a.parquet")
    asked = []
    real = cells.batches_of
    monkeypatch.setattr(cells, "batches_of", lambda *given: asked.append(given[1:]) or real(*given))
    places = [Place(row.path, row.offset, row.size, row.within) for row in rows]
    with Fetcher() as fetcher:
        for number in (1, 2, 3, 4, 5):
            assert fetcher.bytes_at(places[number]) == jpegs[number]
        assert asked == [(0, 0, ["image.bytes"]), (1, 4, ["image.bytes"])]
        assert fetcher.bytes_at(places[4]) == jpegs[4], "of the batch that is held"
        assert len(asked) == 2
        for number in (2, 0):
            assert fetcher.bytes_at(places[number]) == jpegs[number]
        assert len(asked) == 4
        with pytest.raises(DamagedError, match="row 99: it has 6 rows"):
            fetcher.bytes_at(Place(places[0].path, 99, 1, places[0].within))


def test_a_folder_of_parquet_is_its_files_and_grows(tmp_path, jpegs, names, prune):
    (tmp_path / "d" / "data").mkdir(parents=True)
    for number, name in enumerate(("train-00001.parquet", "data/train-00000.parquet")):
        pq.write_table(table(jpegs[number::2], "struct", names[number::2]), tmp_path / "d" / name)
    found = resolve_corpus([str(tmp_path / "d")])
    assert [os.path.relpath(item.path, tmp_path) for item in found] == [
        "d/data/train-00000.parquet",
        "d/train-00001.parquet",
    ]
    settings = {"corpus": (str(tmp_path / "d"),), "prompt_column": "question", "max_tokens": "2"}
    prune(tmp_path / "out", **settings)
    pq.write_table(table(jpegs[:1], "binary", names[:1]), tmp_path / "d" / "train-00002.parquet")
    assert "indexed 7 samples: 6 distinct images in 2 shards, 7 prompts" in prune(tmp_path / "out", **settings)


def test_odd_rows_have_their_reasons(tmp_path, jpegs):
    (tmp_path / "in").mkdir()
    paths = [None, "../out.jpg", "/etc/hostname", "none.jpg", "s3://b/1.jpg", "", "in"]
    pq.write_table(pa.table({"image": pa.array(paths)}), tmp_path / "a.parquet")
    reasons = ["bad_record", "unsafe_path", "unsafe_path", "missing_file", "not_local", "bad_record", "not_a_file"]
    assert [row.reason for row in scan_all(tmp_path / "a.parquet", prompts=("what ?",))] == reasons
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    odd = [None, {"bytes": None, "path": None}, {"bytes": b"", "path": "x"}, {"bytes": jpegs[0], "path": "../up"}]
    pq.write_table(pa.table({"image": pa.array(odd, kind)}), tmp_path / "b.parquet")
    rows = scan_all(tmp_path / "b.parquet")
    assert [row.reason for row in rows] == ["bad_record", "bad_record", None, None]
    assert [row.source for row in rows[2:]] == ["b.parquet@2/x", "b.parquet@3"]


def test_columns_that_can_not_be_read_are_named(tmp_path, jpegs):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"img": [jpegs[0]], "label": [1]}), path)
    with pytest.raises(UserError, match=r"has no column 'image'; its columns are img, label: say with --image-column"):
        scan_all(path)
    (row,) = scan_all(path, image_column="img")
    assert (row.image_id, row.prompts, row.keys) == (sha256(jpegs[0]), [], ["label"])
    pq.write_table(pa.table({"image": [[jpegs[0]]]}), path)
    with pytest.raises(UserError, match=r"its column .image. holds list.*a prompt is about one image"):
        scan_all(path)
    path.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(UserError, match="can't be read as Parquet"):
        scan_all(path)


def test_a_damaged_page_is_one_row_and_the_other_row_groups_are_read(tmp_path, jpegs, names):
    path = tmp_path / "a.parquet"
    pq.write_table(table(jpegs, "binary", names), path, row_group_size=2, compression="snappy", use_dictionary=False)
    of = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    begin = of.data_page_offset
    data[begin : begin + 60] = bytes(255 - byte for byte in data[begin : begin + 60])
    path.write_bytes(data)
    rows = scan_all(path)
    assert [row.reason for row in rows] == [None, None, "damaged_file", None, None]
    assert [row.sample for row in rows] == [0, 1, 2, 4, 5]
    assert "row group 1, rows 2 and on: " in rows[2].message


def test_conversations_and_prompts_in_columns(tmp_path, jpegs):
    turns = [
        {"from": "human", "value": "what ?"},
        {"from": "gpt", "value": "a cat"},
        {"from": "human", "value": "and ?"},
    ]
    ours = [{"id": "a", "prompt": "who ?", "references": ["x"], "type": None}]
    pq.write_table(pa.table({"image": [jpegs[0]], "conversations": [turns]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [jpegs[1]], "prompts": [ours]}), tmp_path / "b.parquet")
    first, second = scan_all(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert [(p.prompt, p.references, len(p.messages or ())) for p in first.prompts] == [
        ("what ?", ["a cat"], 0),
        ("and ?", [], 3),
    ]
    assert [(p.prompt_id, p.prompt, p.references) for p in second.prompts] == [("a", "who ?", ["x"])]


def write_stream(path, batches: list[pa.RecordBatch], **options) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batches[0].schema, **options) as stream:
        for batch in batches:
            stream.write_batch(batch)


@pytest.mark.parametrize("form", ["struct", "struct of paths", "binary", "path"])
def test_arrow_streams_in_every_form_of_image(tmp_path, jpegs, names, form):
    write_stream(tmp_path / "a.arrow", table(jpegs, form, names).to_batches(max_chunksize=4))
    rows = scan_all(tmp_path / "a.arrow", **NAMED)
    assert [row.image_id for row in rows] == [sha256(data) for data in jpegs]
    assert [p.prompt for row in rows for p in row.prompts] == [f"what {number} ?" for number in range(6)]
    assert {row.within for row in rows} == {None}
    data = (tmp_path / "a.arrow").read_bytes()
    if form in ("struct", "binary"):
        assert [data[row.offset : row.offset + row.size] for row in rows] == jpegs


def test_a_damaged_stream_keeps_what_came_before(tmp_path, jpegs, names):
    path = tmp_path / "a.arrow"
    write_stream(path, table(jpegs, "binary", names).to_batches(max_chunksize=2))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    rows = scan_all(path)
    assert [row.reason for row in rows] == [None, None, "damaged_file"]
    assert "rows 2 and on" in rows[-1].message
    write_stream(path, table(jpegs, "binary", names).to_batches(), options=pa.ipc.IpcWriteOptions(compression="zstd"))
    (row,) = scan_all(path)
    assert (row.reason, "its batches are compressed" in row.message) == ("damaged_file", True)
    path.write_bytes(b"no arrow at all" * 10)
    with pytest.raises(UserError, match="can't be read as an Arrow stream"):
        scan_all(path)


def test_offsets_of_a_hostile_stream_are_not_followed(tmp_path, jpegs):
    """Each offset of the binary column in turn points far beyond its data."""
    path = tmp_path / "a.arrow"
    write_stream(path, pa.table({"image": pa.array(jpegs[:2], pa.binary())}).to_batches())
    data = path.read_bytes()
    offsets = b"".join(n.to_bytes(4, "little") for n in (0, len(jpegs[0]), len(jpegs[0]) + len(jpegs[1])))
    place = data.index(offsets)
    for number in range(3):
        at = place + 4 * number
        path.write_bytes(data[:at] + (1 << 30).to_bytes(4, "little") + data[at + 4 :])
        assert [row.reason for row in scan_all(path)] == ["damaged_file"]


@pytest.mark.parametrize("shards", [1, 3])
def test_a_data_set_that_datasets_saved(tmp_path, jpegs, shards):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(jpegs)], "question": list("abcdef")}
    features = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string")})
    made = datasets.Dataset.from_dict(rows, features)
    made.save_to_disk(tmp_path / "saved", num_shards=shards)
    found = scan_all(tmp_path / "saved", prompt_column="question")
    assert [row.image_id for row in found] == [sha256(data) for data in jpegs]
    assert [row.prompts[0].prompt for row in found] == list("abcdef")
    assert len(units_of(tmp_path / "saved")) == shards
    datasets.DatasetDict({"train": made, "test": made.select(range(2))}).save_to_disk(tmp_path / "both")
    assert len(scan_all(tmp_path / "both")) == 8
    made.to_parquet(tmp_path / "made.parquet")
    assert [row.image_id for row in scan_all(tmp_path / "made.parquet")] == [row.image_id for row in found]


def test_a_saved_data_set_that_names_other_files_is_refused(tmp_path):
    for listed in ([{"filename": "../../etc/passwd"}], [5], "x", {"a": 1}):
        (tmp_path / "state.json").write_text(json.dumps({"_data_files": listed}))
        with pytest.raises(
            UserError, match=r"state\.json does not describe a saved data set|x does not exist|a does not"
        ):
            resolve_corpus([str(tmp_path)])


def test_an_image_is_found_again_in_a_file_larger_than_a_batch(tmp_path, jpegs):
    many = [jpegs[n % 6] + n.to_bytes(2, "big") for n in range(200)]
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": many}), sink, row_group_size=150)
    (tmp_path / "a.parquet").write_bytes(sink.getvalue())
    assert [row.image_id for row in scan_all(tmp_path / "a.parquet")] == [sha256(data) for data in many]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_failing_storage_is_no_damage(tmp_path, jpegs, names, name, monkeypatch):
    """The whole input is left out and taken up by the next run."""
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(table(jpegs, "binary", names), path, row_group_size=2)
    else:
        write_stream(path, table(jpegs, "binary", names).to_batches(max_chunksize=2))
    units = units_of(path)
    reads = {"left": 10_000}

    class Failing(io.FileIO):
        def readinto(self, buffer) -> int:
            reads["left"] -= 1
            if reads["left"] < 0:
                raise InputReadError(str(path), OSError(5, "Input/output error"), 0)
            return super().readinto(buffer)

    for module in ("parquet", "arrow"):
        monkeypatch.setattr(f"pipeline.corpus.{module}.open_input", lambda at: io.BufferedReader(Failing(at), 512))
    assert len([row for unit in units for row in scan(unit)]) == 6
    for left in range(0, 10_000 - reads["left"], 3):
        reads["left"] = left
        with pytest.raises(InputReadError):
            list(scan(units[0]))


def test_a_bomb_in_parquet_is_not_unpacked(tmp_path, jpegs, monkeypatch):
    monkeypatch.setattr("pipeline.corpus.packed.FREE_BYTES", 1 << 20)
    images = [{"bytes": jpegs[0] if number else bytes(30 << 20), "path": None} for number in range(2)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=1, compression="zstd")
    first, second = scan_all(tmp_path / "a.parquet")
    assert (first.reason, second.reason) == ("damaged_file", None)
    assert "image.bytes unpacks to over 200 times its size" in first.message


def test_paths_may_be_categories_and_names_of_columns_come_once(tmp_path, jpegs):
    (tmp_path / "1.jpg").write_bytes(jpegs[0])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array(["1.jpg", "1.jpg"]).dictionary_encode()}), path)
    assert [row.image_id for row in scan_all(path)] == [sha256(jpegs[0])] * 2
    for names in (["image", "q", "q"], ["image", "image", "q"]):
        pq.write_table(pa.table([pa.array(["1.jpg"])] * 3, names=names), path)
        with pytest.raises(UserError, match=rf"has two columns '{names[1]}'; give them names of their own"):
            scan_all(path, prompt_column="q")


def test_a_feather_file_is_called_so(tmp_path, jpegs):
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), pa.schema({"image": pa.binary()})) as file:
        file.write_table(pa.table({"image": jpegs}))
    with pytest.raises(UserError, match=r"a\.arrow is a Feather file .*: write it as Parquet"):
        resolve_corpus([str(tmp_path / "a.arrow")])
