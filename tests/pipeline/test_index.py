"""The index: ownership, shards, growth."""

import hashlib
import io
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.index import Index, read_index, unindexed_inputs
from pipeline.corpus.fetch import Fetcher
from pipeline.corpus.resolve import resolve_corpus
from pipeline.errors import UserError
from pipeline.index import build as build_module
from pipeline.index.assign import PixelBound
from pipeline.index.build import extend_index
from pipeline.storage import LocalStore
from schemas.columns import table_of
from schemas.samples import Sample

REPO = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("work_here")


def prompts_of(name: str) -> dict:
    return {"prompts": [{"id": f"{name}-{n}", "prompt": "what ?"} for n in range(2)]}


@pytest.fixture
def corpus(tmp_path: Path, jpeg, write_tar) -> str:
    """Three tars of 10 samples; sample 25 repeats the bytes of 3, sample 12 those of 11, sample 7 has no image."""
    seeds = {25: 3, 12: 11}
    for tar in range(3):
        members = []
        for n in range(tar * 10, tar * 10 + 10):
            if n != 7:
                members.append((f"{n:03d}.jpg", jpeg(seeds.get(n, n))))
            members.append((f"{n:03d}.json", prompts_of(f"{n:03d}")))
        write_tar(tmp_path / f"c-{tar}.tar", members)
    return str(tmp_path / "c-{0..2}.tar")


def build(corpus: str, store: LocalStore, index: Index | None = None, **options) -> Index:
    inputs = unindexed_inputs(index, resolve_corpus([corpus]))
    return extend_index(store, index, inputs, **{"shard_size": 8, "limit": None, **options})


def rows_of(index: Index) -> list[dict]:
    return [row for shard in range(index.num_shards) for row in index.read_shard(shard).to_pylist()]


def test_every_sample_once_and_the_lowest_position_owns(corpus, tmp_path):
    index = build(corpus, LocalStore(tmp_path / "out"))
    rows = rows_of(index)
    assert Counter(row["source"] for row in rows).most_common(1)[0][1] == 1
    assert len(rows) == index.num_samples == 30
    assert index.num_images == 27
    assert index.num_prompts == 60
    owners = [row for row in rows if row["slot"] is not None]
    assert [row["shard"] * 8 + row["slot"] for row in owners] == list(range(27))
    assert [(row["input"], row["sample"]) for row in owners] == sorted((row["input"], row["sample"]) for row in owners)
    by_source = {Path(row["source"]).name: row for row in rows}
    assert by_source["025.jpg"]["shard"] == by_source["003.jpg"]["shard"] == 0
    assert by_source["025.jpg"]["slot"] is None
    assert by_source["007"]["reason"] == "no_image"
    assert read_index(LocalStore(tmp_path / "out")) == index


def test_shards_are_the_same_however_the_index_is_split_into_files(corpus, tmp_path):
    whole = rows_of(build(corpus, LocalStore(tmp_path / "a")))
    split = build(corpus, LocalStore(tmp_path / "b"), shards_per_file=2)
    assert len(split.parts()) == 2
    assert rows_of(split) == whole


def test_growth_adds_shards_and_leaves_the_old_ones_alone(corpus, tmp_path):
    store = LocalStore(tmp_path / "out")
    old = build(corpus.replace("{0..2}", "{0..1}"), store)
    before = {key: store.read(key) for key in old.parts()}
    grown = build(corpus, store, old)
    assert {key: store.read(key) for key in old.parts()} == before
    assert grown.num_shards > old.num_shards
    late = next(row for row in rows_of(grown) if row["source"].endswith("025.jpg"))
    assert (late["shard"], late["image_shard"], late["slot"]) == (old.num_shards, 0, None)
    assert grown.num_images == 27


def test_a_corpus_may_not_shrink_or_change(corpus, tmp_path):
    index = build(corpus, LocalStore(tmp_path / "out"))
    with pytest.raises(UserError, match="no longer names"):
        unindexed_inputs(index, resolve_corpus([corpus.replace("{0..2}", "{0..1}")]))
    with open(tmp_path / "c-2.tar", "ab") as stream:
        stream.write(b"\0" * 512)
    with pytest.raises(UserError, match="must not change"):
        unindexed_inputs(index, resolve_corpus([corpus]))


def test_limit_takes_the_first_samples(corpus, tmp_path):
    rows = rows_of(build(corpus, LocalStore(tmp_path / "out"), limit=13))
    assert max(Path(row["source"]).stem for row in rows) == "012"
    assert len(rows) == 13


def test_repeated_prompt_ids_belong_to_the_first(tmp_path, jpeg, write_tar):
    record = {"prompts": [{"id": "same", "prompt": "one ?"}, {"id": f"own{0}", "prompt": "two ?"}]}
    for tar in range(2):
        write_tar(tmp_path / f"d-{tar}.tar", [("a.jpg", jpeg(tar)), ("a.json", record)])
    index = build(str(tmp_path / "d-0.tar"), LocalStore(tmp_path / "out"))
    index = build(str(tmp_path / "d-{0..1}.tar"), LocalStore(tmp_path / "out"), index)
    statuses = [[p["status"] for p in row["prompts"]] for row in rows_of(index)]
    assert statuses == [["ok", "ok"], ["duplicate_prompt_id", "duplicate_prompt_id"]]


def test_an_input_without_a_sample_is_mentioned(corpus, tmp_path):
    (tmp_path / "c-3.tar").write_bytes(b"\0" * 10240)
    said: list[str] = []
    build(corpus.replace("2}", "3}"), LocalStore(tmp_path / "out"), say=said.append)
    assert said == [
        f"{tmp_path}/c-3.tar: no sample in it: a tar of nothing but zeros, a table without rows, or a manifest without "
        "lines"
    ]


def test_an_empty_corpus_is_refused(tmp_path, write_tar):
    write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(UserError, match="no sample"):
        build(str(tmp_path / "empty.tar"), LocalStore(tmp_path / "out"))


def names_of(index: Index) -> tuple[list[str], list[str]]:
    rows = rows_of(index)
    assert {p["status"] for row in rows for p in row["prompts"]} <= {"ok"}
    return [row["source"] for row in rows], [p["prompt_id"] for row in rows for p in row["prompts"]]


def test_names_are_unique_and_stay_when_the_corpus_grows(tmp_path, jpeg, write_tar):
    """Inputs of one name in folders at any height, tars and manifests, many samples about one image."""
    corpus = tmp_path / "data" / "corpus"
    for seed, name in enumerate(("data/corpus/a", "data/corpus/b", "data/corpus/b/c", "data", "other")):
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        write_tar(folder / "x.tar", [("1.jpg", jpeg(seed)), ("1.json", {"prompts": ["what ?", "where ?"]})])
        (folder / "1.jpg").write_bytes(jpeg(0))
        line = '{"image": "1.jpg", "prompts": ["what ?"]}\n'
        (folder / "x.jsonl").write_text(line * 3 + '{"image": 5}\n{"image": "none.jpg"}\nno json\n')
    patterns = [str(corpus / "a" / "x.*"), str(corpus / "b" / "x.*")]
    index = build_all(patterns, LocalStore(tmp_path / "out"))
    sources, ids = names_of(index)
    assert "a/x.tar/1.jpg" in sources
    assert "b/x.jsonl@0/1.jpg" in sources
    assert ids[:2] == ["a/x.jsonl@0#0", "a/x.jsonl@42#0"]
    for more in (str(corpus / "b/c/x.*"), str(tmp_path / "data/x.*"), str(tmp_path / "other/x.*")):
        patterns.append(more)
        index = build_all(patterns, LocalStore(tmp_path / "out"), index)
        grown = names_of(index)
        assert [names[: len(old)] for names, old in zip(grown, (sources, ids), strict=True)] == [sources, ids]
        sources, ids = grown
    assert len(sources) == len(set(sources)) == 35
    assert len(ids) == len(set(ids)) == 25
    assert "../../other/x.tar/1.jpg" in sources


def build_all(patterns: list[str], store: LocalStore, index: Index | None = None) -> Index:
    inputs = unindexed_inputs(index, resolve_corpus(patterns))
    return extend_index(store, index, inputs, shard_size=8, limit=None)


def test_a_key_that_comes_again_has_names_of_its_own(tmp_path, jpeg, write_tar):
    record = {"prompts": ["what ?"]}
    members = [
        (f"{key}.{kind}", data) for n, key in enumerate("aba") for kind, data in (("jpg", jpeg(n)), ("json", record))
    ]
    write_tar(tmp_path / "x.tar", members)
    rows = rows_of(build(str(tmp_path / "x.tar"), LocalStore(tmp_path / "out")))
    assert len({row["source"] for row in rows}) == 3
    assert len({p["prompt_id"] for row in rows for p in row["prompts"]}) == 3
    assert [p["status"] for row in rows for p in row["prompts"]] == ["ok"] * 3


def test_samples_without_prompts_are_counted_with_what_they_have(tmp_path, jpeg, write_tar):
    """Forms other tools write: texts under other names, conversations without turns, text members."""
    members: list = []
    for n in range(10):
        members += [(f"{n}.jpg", jpeg(n)), (f"{n}.cls", b"7"), (f"{n}.json", {"label": "a cat", "url": "x"})]
    write_tar(tmp_path / "laion.tar", members)
    new = build(str(tmp_path / "laion.tar"), LocalStore(tmp_path / "a")).generations[-1]
    assert (new.num_prompts, new.without_prompts) == (0, 10)
    assert new.keys_seen == {".cls": 10, "label": 10, "url": 10}
    assert "10 of 10 samples have no prompts; in their place: .cls (10), label (10), url (10);" in new.prompts_note()

    lines: list[dict] = [{"image": "1.jpg", "prompts": ["what ?"]}] * 6
    lines += [{"image": "1.jpg", "conversations": [], f"k{n}": 1} for n in range(9)]
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    new = build(str(tmp_path / "m.jsonl"), LocalStore(tmp_path / "b")).generations[-1]
    assert (new.num_prompts, new.without_prompts, len(new.keys_seen)) == (6, 9, 7)  # one more than is shown
    assert next(iter(new.keys_seen.items())) == ("conversations", 9)
    assert new.prompts_note().startswith("9 of 15 samples have no prompts; in their place: conversations (9), k0 (1)")

    for n, line in enumerate(({"image": "1.jpg", "prompts": []}, {"image": "1.jpg"})):
        (tmp_path / f"fine-{n}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*lines[:6], line]))
        new = build(str(tmp_path / f"fine-{n}.jsonl"), LocalStore(tmp_path / f"c{n}")).generations[-1]
        assert (new.without_prompts, new.prompts_note()) == (1, None)


def test_failed_prompts_are_counted(tmp_path, jpeg, write_tar):
    record = {"prompts": ["what ?", " ", 5, {"id": "a", "prompt": "x"}, {"id": "a", "prompt": "x"}, 6]}
    write_tar(tmp_path / "x.tar", [("1.jpg", jpeg(1)), ("1.json", record)])
    index = build(str(tmp_path / "x.tar"), LocalStore(tmp_path / "out"))
    assert index.generations[-1].failed_prompts == {"bad_prompt": 2, "duplicate_prompt_id": 1, "empty_prompt": 1}
    prompts = [p for row in rows_of(index) for p in row["prompts"]]
    assert [(p["message"] is None) == (p["status"] == "ok") for p in prompts] == [True] * 6


def test_an_index_of_another_version_is_refused(tmp_path):
    for text in ('{"generations": [{"inputs": []}]}', "{}", "{", "[]"):
        LocalStore(tmp_path).put("_index/index.json", text.encode())
        with pytest.raises(UserError, match=r"index.json was truncated, altered or written by another version"):
            read_index(LocalStore(tmp_path))


def sizes(size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, "PNG")
    return stream.getvalue()


def area(width: int, height: int) -> int:
    return width * height


@pytest.fixture
def ragged(tmp_path: Path, write_tar) -> Callable[[int, Sequence[int]], str]:
    """A tar of images of one row and so many columns, each with a prompt; 0 stands for bytes that are no image."""

    def make(tar: int, columns: Sequence[int]) -> str:
        members: list[tuple[str, bytes | dict]] = []
        for n, width in enumerate(columns):
            members.append((f"{n:03d}.png", sizes((width, 1)) if width else b"no image %d" % n))
            members.append((f"{n:03d}.json", {"prompts": ["what ?"]}))
        return str(write_tar(tmp_path / f"r-{tar}.tar", members))

    return make


def columns_of(index: Index) -> list[list[str]]:
    """The images of each shard, by place."""
    shards: list[list[str]] = []
    for shard in range(index.num_shards):
        rows = [row for row in index.read_shard(shard).to_pylist() if row["slot"] is not None]
        assert [row["slot"] for row in rows] == list(range(len(rows)))
        assert {row["image_shard"] for row in rows} <= {shard}
        shards.append([Path(row["source"]).stem for row in rows])
    return shards


def test_shards_are_cut_by_prepared_pixels_as_well_as_by_number(ragged, tmp_path):
    """At most 4 images and 100 pixels, or one image; what no size is known of takes nothing."""
    corpus = ragged(0, [60, 40, 1, 250, 0, 99, 2, 3, 4, 5, 6, 7, 98])
    index = build(corpus, LocalStore(tmp_path / "out"), shard_size=4, bound=PixelBound(100, area))
    cut = [[0, 1], [2], [3], [4, 5], [6, 7, 8, 9], [10, 11], [12]]
    assert [[int(name) for name in shard] for shard in columns_of(index)] == cut
    assert [row["shard"] for row in rows_of(index)] == sorted(row["shard"] for row in rows_of(index))
    by_number = build(corpus, LocalStore(tmp_path / "b"), shard_size=4, bound=PixelBound(1 << 30, area))
    assert rows_of(by_number) == rows_of(build(corpus, LocalStore(tmp_path / "c"), shard_size=4))
    assert [len(shard) for shard in columns_of(by_number)] == [4, 4, 4, 1]


def test_a_corpus_cut_by_pixels_grows_without_a_change_to_what_is_there(ragged, tmp_path):
    """Repeats ride with their owner, in old shards and new ones."""
    store = LocalStore(tmp_path / "out")
    bound = PixelBound(100, area)
    first = ragged(0, [60, 50, 10, 60, 45])
    old = build(first, store, bound=bound)
    assert [len(shard) for shard in columns_of(old)] == [1, 2, 1]
    before = {key: store.read(key) for key in old.parts()}
    second = ragged(1, [70, 50, 20, 11, 70, 80])
    grown = extend_index(
        store, old, unindexed_inputs(old, resolve_corpus([first, second])), shard_size=8, limit=None, bound=bound
    )
    assert {key: store.read(key) for key in old.parts()} == before
    assert [len(shard) for shard in columns_of(grown)] == [1, 2, 1, 2, 2]
    repeats = [row for row in rows_of(grown) if row["slot"] is None]
    found = [(Path(row["source"]).stem, row["shard"], row["image_shard"]) for row in repeats]
    assert found == [("003", 0, 0), ("001", 3, 1), ("004", 3, 3)]


def test_the_cut_is_the_same_however_the_scan_was_split(ragged, tmp_path, monkeypatch):
    """As of any number of workers: units come in any order and the images alone decide."""
    paths = [ragged(tar, [10 * tar + n for n in range(1, 30)]) for tar in range(3)]
    whole = build(paths[0].replace("r-0", "r-{0..2}"), LocalStore(tmp_path / "a"), bound=PixelBound(100, area))
    own = build_module.stream_items
    monkeypatch.setattr(build_module, "stream_items", lambda items, stages: own(items[::-1], stages))
    again = build(paths[0].replace("r-0", "r-{0..2}"), LocalStore(tmp_path / "b"), bound=PixelBound(100, area))
    assert rows_of(again) == rows_of(whole)


def test_ids_are_unique_and_belong_to_a_prompt_that_can_be_posed(tmp_path, jpeg, write_tar):
    """A join of answers and prompts by `prompt_id` alone pairs nothing wrongly."""
    members = []
    for key, texts in {"1": [" ", "good ?"], "2": ["later ?"], "3": [5]}.items():
        record = {"prompts": [{"id": "a", "prompt": text} for text in texts]}
        members += [(f"{key}.jpg", jpeg(int(key))), (f"{key}.json", record)]
    members.append(("0.json", {"prompts": [{"id": "b", "prompt": "without an image"}]}))
    members += [("4.jpg", jpeg(4)), ("4.json", {"prompts": [{"id": "b", "prompt": "with one"}]})]
    index = build(str(write_tar(tmp_path / "x.tar", members)), LocalStore(tmp_path / "out"))
    rows = rows_of(index)
    found = {p["prompt_id"]: (p["prompt"], p["status"], p["message"]) for row in rows for p in row["prompts"]}
    assert len(found) == 6
    assert found["a"] == ("good ?", "ok", None)
    assert found["b"] == ("with one", "ok", None)
    assert found["x.tar/2.jpg#0"] == ("later ?", "duplicate_prompt_id", "its id 'a' is that of another prompt")
    (empty,) = [one for one in found.values() if one[1] == "empty_prompt"]
    assert empty[2].endswith("; its id 'a' is that of another prompt")


def test_more_keys_than_are_shown_are_mentioned(tmp_path, jpeg, write_tar):
    for count, end in ((6, r"k5 \(1\)"), (7, r"k5 \(1\) and others")):
        record = {f"k{n}": 1 for n in range(count)}
        tar = write_tar(tmp_path / f"{count}.tar", [("1.jpg", jpeg(1)), ("1.json", record)])
        note = build(str(tar), LocalStore(tmp_path / str(count))).generations[-1].prompts_note()
        assert re.search(rf"{end}; prompts are read from", note)


def test_a_place_that_takes_no_more_of_duckdbs_files_is_named(tmp_path):
    """The limit of a file's size stands for a full disk, which tests can't have everywhere."""
    code = f"""
import resource, signal
from pathlib import Path
from pipeline.artifact.index import Generation
from pipeline.errors import UserError
from pipeline.index.assign import assign_shards
from pipeline.storage import LocalStore
store = LocalStore({str(tmp_path / "out")!r})
units = [entry.key for entry in store.list("units/")]
new = Generation.of_nothing("", [], first_input=0, first_shard=0, first_file=0, shards_per_file=64)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    assign_shards(store, units, [], new, shard_size=8, limit=None, bound=None)
except UserError as error:
    print(error)
"""
    store = LocalStore(tmp_path / "out")
    with store.new_file("units/unit-00000000.parquet") as unit:
        pq.write_table(table_of(Sample, [Sample(input=0, sample=n, source=f"s{n}") for n in range(5000)]), unit.path)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert re.match(r"\S+/out can't be written: .*File too large; nothing half-written is left", done.stdout), (
        done.stderr
    )
    assert done.stdout.count("\n") == 1


def test_places_are_those_of_the_images_that_own_a_slot(pruned_64):
    index = read_index(Artifact(pruned_64).store)
    rows = [row for shard in range(index.num_shards) for row in index.read_shard(shard).to_pylist()]
    owners = {row["image_id"]: row for row in rows if row["slot"] is not None}
    asked = {image_id: owners[image_id]["shard"] for image_id in [*owners][::7]}
    found = index.places({**asked, "no such image": 0})
    assert found.keys() == asked.keys()
    for image_id, place in found.items():
        row = owners[image_id]
        assert (place.path, place.offset, place.size, place.within) == (
            row["path"], row["offset"], row["size"], row["within"],
        )  # fmt: skip
        with Fetcher() as fetcher:
            assert hashlib.sha256(fetcher.bytes_at(place)).hexdigest() == image_id
