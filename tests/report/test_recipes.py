"""Each recipe's result, worked out again in Python from the committed files; what they can be told; the cache."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.dataset as ds
import pytest

from benchmarks.made_artifact import Form, Made, make_artifact
from jobs import query_selections
from pipeline.artifact.artifact import Artifact
from pipeline.errors import UserError
from pipeline.report.cache import SummaryCache
from pipeline.report.query import ask, connect
from pipeline.report.recipe import KINDS, READS, SUMMARIES, cook, parse_recipe, recipe_names, recipe_of
from schemas.records import CommitRecord

SIDE = 4
FORM = Form(4, 25, 8, budgets=("all", "6", "0.125"), side=SIDE, kept=12, width=8, images_a_tar=30)
Row = dict[str, Any]
SETS = {  # what is set in the tests, for tables as small as these
    "storage": {"budgets": "3,6,12,24"},
    "slowest_shards": {"limit": "3"},
    "errors_by_source": {"limit": "3"},
    "duplicates": {"limit": "3"},
    "flattest_images": {"limit": "7"},
    "kept_grid": {"k": "5"},
    "kept_by_tile": {"k": "5"},
    "first_picks": {"limit": "6"},
    "cut_ties": {"k": "6", "within": "0.1"},
    "gain_curve": {"picks": "1,4,12,13"},
    "gain_held": {"budgets": "1,6,12"},
    "sensitivity_grid": {"share": "0.5", "seed": "3"},
    "sensitivity_by_pick": {"share": "0.4", "step": "5"},
    "sensitive_dropped": {"share": "0.6", "k": "4"},
    "accuracy_by_source": {"budget": "6", "limit": "2"},
    "accuracy_by_spread": {"budget": "0.1250"},
    "losses": {"limit": "9"},
    "agreement": {"more": "6"},
    "flips": {"more": "most", "fewer": "6", "limit": "4"},
    "common_mistakes": {"limit": "8"},
}


@dataclass
class Data:
    """What is committed, as Python has it."""

    images: list[Row]
    prompts: list[Row]
    errors: list[Row]
    answers: dict[str, list[Row]]
    shards: list[CommitRecord]

    @property
    def all_answers(self) -> list[Row]:
        return [row | {"budget": budget} for budget, rows in self.answers.items() for row in rows]

    def sampled(self, share: float, seed: int) -> list[Row]:
        def drawn(image_id: str) -> int:
            return int(hashlib.md5(f"{image_id}{seed}".encode()).hexdigest()[:8], 16)

        return [row for row in self.images if drawn(row["image_id"]) < share * 2**32]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return make_artifact(tmp_path_factory.mktemp("made"), FORM, processes=1)


@pytest.fixture(scope="module")
def data(made) -> Data:
    def rows(root: Path, table: str) -> list[Row]:
        return ds.dataset(root / table, format="parquet").to_table().to_pylist()

    answers = {budget: rows(path, "answers") for budget, path in zip(FORM.budgets, made.answers, strict=True)}
    tables = [rows(made.pruned, table) for table in ("selections", "prompts", "errors")]
    return Data(*tables, answers, list(Artifact(made.pruned).commits()))


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """What the cache said."""
    return []


@pytest.fixture(scope="module")
def connections(made, lines, tmp_path_factory) -> dict[str, duckdb.DuckDBPyConnection]:
    cache = SummaryCache(str(tmp_path_factory.mktemp("cache")), lines.append, worth=0)
    return {
        "committed files": connect(made.pruned, made.answers),
        "cache": connect(made.pruned, made.answers, summaries=cache),
    }


def place(token: int) -> tuple[int, int, int]:
    return 0, token // SIDE, token % SIDE


def percent(part: float, whole: float, digits: int = 1) -> float:
    return round(100 * part / whole, digits)


def folder(source: str) -> str:
    return source.rpartition("/")[0]


def grouped(rows: list[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return dict(groups)


def graded(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["score"] is not None]


def mean(rows: list[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def overview(data: Data) -> list[Row]:
    sizes = [entry.size_bytes for record in data.shards for entry in record.files.values()]
    ok = [row for row in data.prompts if row["status"] == "ok"]
    return [
        {
            "images": 100, "tokens": 1600, "kept": 1200, "prompts": 800, "ok": len(ok), "errors": len(data.errors),
            "shards": 4, "size_bytes": sum(sizes),
        }
    ]  # fmt: skip


def storage(data: Data, budgets: str) -> list[Row]:
    features = sum(record.files["features.parquet"].size_bytes for record in data.shards)
    tables = sum(entry.size_bytes for record in data.shards for entry in record.files.values()) - features
    kept = {k: sum(min(k, len(row["ranking"])) for row in data.images) for k in map(int, budgets.split(","))}
    return [
        {
            "budget": k, "tokens": tokens, "percent_of_stored": percent(tokens, 1200),
            "features_bytes": round(features * tokens / 1200), "tables_bytes": tables,
        }
        for k, tokens in kept.items()
    ]  # fmt: skip


def slowest_shards(data: Data, limit: str) -> list[Row]:
    totals = {record.shard: sum(record.seconds.values()) for record in data.shards}
    return [
        {
            "shard": record.shard, "images": 25, "seconds": round(totals[record.shard], 2),
            "ms_an_image": round(1000 * totals[record.shard] / 25, 2),
            "slowest_stage": max(record.seconds, key=record.seconds.__getitem__),
            "of_median": round(totals[record.shard] / np.median(list(totals.values())), 2), "batch_size": 8,
        }
        for record in sorted(data.shards, key=lambda record: -totals[record.shard])[: int(limit)]
    ]  # fmt: skip


def stages(data: Data) -> list[Row]:
    seconds = Counter()
    for record in data.shards:
        seconds.update(record.seconds)
    return [
        {
            "stage": stage, "seconds": round(total, 2), "percent": percent(total, seconds.total()),
            "ms_an_image": round(1000 * total / 100, 3),
        }
        for stage, total in seconds.most_common()
    ]  # fmt: skip


def errors_by_reason(data: Data) -> list[Row]:
    return [
        {
            "reason": reason, "inputs": len(rows), "prompts_alone": sum(row["prompt_id"] is not None for row in rows),
            "example": min(row["source"] for row in rows), "message": rows[0]["message"],
        }
        for (reason,), rows in sorted(grouped(data.errors, "reason").items(), key=lambda one: -len(one[1]))
    ]  # fmt: skip


def errors_by_source(data: Data, limit: str) -> list[Row]:
    found = defaultdict(list)
    for row in data.errors:
        found[folder(row["source"])].append(row["reason"])
    return [
        {"came_from": name, "inputs": len(reasons), "reasons": ", ".join(sorted(set(reasons)))}
        for name, reasons in sorted(found.items(), key=lambda one: (-len(one[1]), one[0]))[: int(limit)]
    ]


def duplicates(data: Data, limit: str) -> list[Row]:
    found = grouped(data.prompts, "image_id")
    sources = {image: {row["source"] for row in rows} for (image,), rows in found.items()}
    repeated = sorted(
        (image for image in sources if len(sources[image]) > 1), key=lambda one: (-len(sources[one]), one)
    )
    return [
        {"first_sample": min(sources[image]), "samples": len(sources[image]), "prompts": 8, "image_id": image}
        for image in repeated[: int(limit)]
    ]


def image_sizes(data: Data) -> list[Row]:
    width, height = (round(float(np.median([row[name] for row in data.images]))) for name in ("width", "height"))
    return [
        {
            "rows": SIDE, "cols": SIDE, "tiles": 1, "tokens": 16, "images": 100, "kept": 12.0, "kept_percent": 75.0,
            "median_width": width, "median_height": height,
        }
    ]  # fmt: skip


def sensitivity(data: Data) -> list[Row]:
    quantiles = [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]
    columns = {
        "sensitivity_mean": [np.mean(row["sensitivity"]) for row in data.images],
        "max_over_mean": [max(row["sensitivity"]) / np.mean(row["sensitivity"]) for row in data.images],
        "last_gain": [row["gain"][-1] for row in data.images],
    }
    return [{"quantile": q} | {name: np.quantile(values, q) for name, values in columns.items()} for q in quantiles]


def flattest_images(data: Data, limit: str) -> list[Row]:
    spread = [(max(row["sensitivity"]) / np.mean(row["sensitivity"]), row) for row in data.images]
    return [
        {
            "source": row["source"], "tokens": 16, "kept": 12, "max_over_mean": round(ratio, 3),
            "sensitivity_mean": round(np.mean(row["sensitivity"]), 4), "image_id": row["image_id"],
        }
        for ratio, row in sorted(spread, key=lambda one: one[0])[: int(limit)]
    ]  # fmt: skip


def prompts_by_type(data: Data) -> list[Row]:
    return [
        {
            "type": kind, "prompts": len(rows), "ok": sum(row["status"] == "ok" for row in rows),
            "with_references": len(rows),
        }
        for (kind,), rows in sorted(grouped(data.prompts, "type").items(), key=lambda one: (-len(one[1]), one[0]))
    ]  # fmt: skip


def unposed_prompts(data: Data) -> list[Row]:
    ids = [row["prompt_id"] for row in data.prompts if row["status"] == "empty_prompt"]
    return [{"status": "empty_prompt", "prompts": len(ids), "example": min(ids), "prompt": ""}]


def kept_grid(data: Data, k: str) -> list[Row]:
    found = Counter(place(token) for row in data.images for token in row["ranking"][: int(k)])
    return [
        {"tile": tile, "row": row, "col": col, "images": n, "percent": percent(n, 100)}
        for (tile, row, col), n in sorted(found.items())
    ]


def kept_by_tile(data: Data, k: str) -> list[Row]:
    places = [place(token) for row in data.images for token in row["ranking"][: int(k)]]
    _, row, col = np.mean(places, axis=0)
    return [{"tile": 0, "tokens": 500, "percent": 100.0, "mean_row": round(row, 2), "mean_col": round(col, 2)}]


def first_picks(data: Data, limit: str) -> list[Row]:
    found = defaultdict(list)
    for row in data.images:
        found[place(row["ranking"][0])].append(row["gain"][0])
    return [
        {
            "tile": tile, "row": row, "col": col, "images": len(gains), "percent": percent(len(gains), 100, 2),
            "mean_gain": round(np.mean(gains), 4),
        }
        for (tile, row, col), gains in sorted(found.items(), key=lambda one: (-len(one[1]), one[0]))[: int(limit)]
    ]  # fmt: skip


def cut_ties(data: Data, k: str, within: str) -> list[Row]:
    found = Counter()
    for row in data.images:
        cut = row["gain"][int(k) - 1]
        found[sum(abs(gain - cut) <= float(within) * cut for gain in row["gain"]) - 1] += 1
    return [
        {"other_tokens": n, "images": images, "percent": percent(images, 100)} for n, images in sorted(found.items())
    ]


def gain_curve(data: Data, picks: str) -> list[Row]:
    rows = []
    for pick in map(int, picks.split(",")):
        gains = [row["gain"][pick - 1] for row in data.images if len(row["gain"]) >= pick]
        if gains:
            low, high = (round(np.quantile(gains, q), 4) for q in (0.05, 0.95))
            rows.append(
                {"pick": pick, "images": len(gains), "mean_gain": round(np.mean(gains), 4), "low": low, "high": high}
            )
    return rows


def gain_held(data: Data, budgets: str) -> list[Row]:
    rows = []
    for k in map(int, budgets.split(",")):
        held = [sum(row["gain"][:k]) / sum(row["gain"]) for row in data.images]
        low = round(100 * np.quantile(held, 0.05), 1)
        rows.append({"budget": k, "images": 100, "mean_percent": round(100 * np.mean(held), 1), "low_percent": low})
    return rows


def sensitivity_grid(data: Data, share: str, seed: str) -> list[Row]:
    images = data.sampled(float(share), int(seed))
    assert 30 < len(images) < 70
    return [
        {
            "tile": 0, "row": token // SIDE, "col": token % SIDE, "images": len(images),
            "sensitivity": round(np.mean([row["sensitivity"][token] for row in images]), 4),
            "kept_percent": percent(sum(token in row["ranking"] for row in images), len(images)),
        }
        for token in range(16)
    ]  # fmt: skip


def sensitivity_by_pick(data: Data, share: str, step: str) -> list[Row]:
    found = defaultdict(list)
    images = data.sampled(float(share), 0)
    for row in images:
        for token, value in enumerate(row["sensitivity"]):
            pick = row["ranking"].index(token) if token in row["ranking"] else None
            group = None if pick is None else pick // int(step) * int(step)
            found[group].append((value, np.nan if pick is None else row["gain"][pick]))
    order = sorted(found, key=lambda first: (first is None, first))
    means = {first: np.mean(found[first], axis=0) for first in order}
    return [
        {
            "first_pick": first, "tokens": len(found[first]), "sensitivity": round(means[first][0], 4),
            "gain": None if first is None else round(means[first][1], 4),
        }
        for first in order
    ]  # fmt: skip


def sensitive_dropped(data: Data, share: str, k: str) -> list[Row]:
    found = Counter()
    images = data.sampled(float(share), 0)
    for row in images:
        most = np.argsort(row["sensitivity"])[::-1][: int(k)]
        found[len({*most.tolist()} - {*row["ranking"][: int(k)]})] += 1
    return [{"dropped": n, "images": c, "percent": percent(c, len(images))} for n, c in sorted(found.items())]


def interval(rows: list[Row]) -> tuple[float, float, float]:
    """Mean and ends of its interval, in percent: the error of a ratio of sums over images."""
    by_image = grouped(rows, "image_id").values()
    n = np.array([len(one) for one in by_image])
    s = np.array([sum(row["score"] for row in one) for one in by_image])
    ratio = s.sum() / n.sum()
    error = np.std(s - ratio * n, ddof=1) * np.sqrt(len(n)) / n.sum()
    low, high = max(ratio - 1.96 * error, 0), min(ratio + 1.96 * error, 1)
    return round(100 * ratio, 2), round(100 * low, 2), round(100 * high, 2)


def accuracy(data: Data) -> list[Row]:
    rows = []
    for (budget, metric), answers in grouped(graded(data.all_answers), "budget", "metric").items():
        value, low, high = interval(answers)
        images = len({row["image_id"] for row in answers})
        rows.append(
            {
                "budget": budget, "metric": metric, "tokens": round(mean(answers, "tokens"), 1), "images": images,
                "prompts": len(answers), "accuracy": value, "low": low, "high": high,
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: (-row["tokens"], row["metric"]))


def accuracy_by_type(data: Data) -> list[Row]:
    rows = []
    for (kind, budget, metric), answers in grouped(graded(data.all_answers), "type", "budget", "metric").items():
        value, low, high = interval(answers)
        rows.append(
            {
                "type": kind, "budget": budget, "metric": metric, "tokens": round(mean(answers, "tokens"), 1),
                "prompts": len(answers), "accuracy": value, "low": low, "high": high,
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: (row["type"], -row["tokens"]))


def accuracy_by_source(data: Data, budget: str, limit: str) -> list[Row]:
    tar_of = {row["image_id"]: folder(row["source"]) for row in data.images}
    found = grouped([row | {"tar": tar_of[row["image_id"]]} for row in graded(data.answers[budget])], "tar")
    rows = [
        {
            "came_from": tar, "images": len({row["image_id"] for row in answers}), "prompts": len(answers),
            "accuracy": round(100 * mean(answers, "score"), 2),
        }
        for (tar,), answers in found.items()
    ]  # fmt: skip
    assert len(rows) > int(limit)
    return sorted(rows, key=lambda row: row["accuracy"])[: int(limit)]


def accuracy_by_spread(data: Data, budget: str) -> list[Row]:
    assert float(budget) == 0.125
    spread = {row["image_id"]: max(row["sensitivity"]) / np.mean(row["sensitivity"]) for row in data.images}
    order = sorted(spread, key=spread.__getitem__)
    answers = grouped(graded(data.answers["0.125"]), "image_id")
    rows = []
    for fifth in range(5):
        images = order[20 * fifth : 20 * fifth + 20]
        its = [row for image in images for row in answers[image,]]
        rows.append(
            {
                "fifth": fifth + 1, "images": 20, "max_over_mean_from": round(spread[images[0]], 3),
                "up_to": round(spread[images[-1]], 3), "prompts": len(its),
                "accuracy": round(100 * mean(its, "score"), 2),
            }
        )  # fmt: skip
    return rows


def losses(data: Data, limit: str) -> list[Row]:
    source_of = {row["image_id"]: row["source"] for row in data.images}
    more, fewer = (grouped(graded(data.answers[budget]), "image_id") for budget in ("all", "0.125"))
    lost = {image: (mean(more[image], "score"), mean(fewer[image], "score")) for image in more.keys() & fewer.keys()}
    order = sorted(lost, key=lambda image: (round(lost[image][1] - lost[image][0], 9), image))
    return [
        {
            "source": source_of[image], "prompts": len(fewer[image,]), "accuracy_at_more": percent(a, 1),
            "accuracy_at_fewer": percent(b, 1), "loss": percent(a - b, 1), "image_id": image,
        }
        for (image,) in order[: int(limit)]
        for a, b in [lost[image,]]
    ]  # fmt: skip


def paired(data: Data, more: str, fewer: str) -> list[tuple[Row, Row]]:
    other = {row["prompt_id"]: row for row in data.answers[fewer]}
    return [(row, other[row["prompt_id"]]) for row in data.answers[more]]


def agreement(data: Data, more: str) -> list[Row]:
    found = defaultdict(list)
    for a, b in paired(data, more, "0.125"):
        found[a["type"]].append((a["answer"] == b["answer"], a["correct"], b["correct"]))
    rows = []
    for kind, pairs in found.items():
        right = Counter((a, b) for _, a, b in pairs)
        rows.append(
            {
                "type": kind, "prompts": len(pairs),
                "same_percent": percent(sum(same for same, _, _ in pairs), len(pairs), 2),
                "both_right": right[True, True], "right_at_more_alone": right[True, False],
                "right_at_fewer_alone": right[False, True], "neither_right": right[False, False],
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: (-row["prompts"], row["type"]))


def flips(data: Data, more: str, fewer: str, limit: str) -> list[Row]:
    assert more == "most"
    text_of = {row["prompt_id"]: row["prompt"] for row in data.prompts}
    rows = [
        {
            "prompt_id": a["prompt_id"], "type": a["type"], "prompt": text_of[a["prompt_id"]], "at_more": a["answer"],
            "at_fewer": b["answer"], "image_id": a["image_id"],
        }
        for a, b in paired(data, "all", fewer)
        if a["correct"] is True and b["correct"] is False
    ]  # fmt: skip
    assert len(rows) > int(limit)
    return sorted(rows, key=lambda row: row["prompt_id"])[: int(limit)]


def common_mistakes(data: Data, limit: str) -> list[Row]:
    wrong = [row for row in data.answers["0.125"] if row["correct"] is False]
    found = Counter((row["type"], row["references"][0], row["answer"]) for row in wrong)
    return [
        {
            "type": kind, "reference": reference, "answer": answer, "prompts": n,
            "percent_of_mistakes": percent(n, len(wrong), 2),
        }
        for (kind, reference, answer), n in sorted(found.items(), key=lambda one: (-one[1], one[0]))[: int(limit)]
    ]  # fmt: skip


def answer_ends(data: Data) -> list[Row]:
    rows = [
        {
            "budget": budget, "finish_reason": end, "prompts": len(answers),
            "percent": percent(len(answers), len(data.answers[budget]), 2), "example": answers[0]["message"],
        }
        for (budget, end), answers in grouped(data.all_answers, "budget", "finish_reason").items()
    ]  # fmt: skip
    assert {row["finish_reason"] for row in rows} == {"stop", "length", "refused"}
    return sorted(rows, key=lambda row: (row["budget"], -row["prompts"], row["finish_reason"]))


def answer_time(data: Data) -> list[Row]:
    rows = []
    for budget, answers in data.answers.items():
        its = [row for row in answers if row["finish_reason"] != "refused"]
        seconds = sum(row["seconds"] for row in its)
        rows.append(
            {
                "budget": budget, "prompts": len(its), "tokens": round(mean(its, "tokens"), 1),
                "seconds": round(seconds, 1), "ms_a_prompt": round(1000 * seconds / len(its), 2),
            }
        )  # fmt: skip
    return rows


AGAIN: dict[str, Callable[..., list[Row]]] = {
    work.__name__: work
    for work in (
        overview, storage, slowest_shards, stages, errors_by_reason, errors_by_source, duplicates, image_sizes,
        sensitivity, flattest_images, prompts_by_type, unposed_prompts, kept_grid, kept_by_tile, first_picks, cut_ties,
        gain_curve, gain_held, sensitivity_grid, sensitivity_by_pick, sensitive_dropped, accuracy, accuracy_by_type,
        accuracy_by_source, accuracy_by_spread, losses, agreement, flips, common_mistakes, answer_ends, answer_time,
    )
}  # fmt: skip


def assert_same(rows: list[Row], expected: list[Row]) -> None:
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert list(row) == list(other)
        for name, value in other.items():
            if isinstance(value, float | np.floating):
                assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
            else:
                assert row[name] == value, name


def given(name: str) -> list[str]:
    return [f"{key}={value}" for key, value in SETS.get(name, {}).items()]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_what_the_files_say(name, data, connections):
    recipe = recipe_of(name)
    expected = AGAIN[name](data, **SETS.get(name, {}))
    assert expected, "an empty table tells nothing"
    assert_same(cook(connections["committed files"], recipe, given(name)).to_pylist(), expected)
    if recipe.reads == SUMMARIES:
        assert_same(cook(connections["cache"], recipe, given(name)).to_pylist(), expected)
    else:
        with pytest.raises(UserError):  # what it reads is in no summary
            cook(connections["cache"], recipe, given(name))


def test_recipes_are_at_least_twenty_and_each_is_a_statement_of_its_parameters(connections):
    names = recipe_names()
    assert len(names) >= 20
    for name in names:
        recipe = recipe_of(name)
        (statement,) = duckdb.extract_statements(recipe.sql)
        assert statement.named_parameters == {parameter.name for parameter in recipe.parameters}, name
        assert recipe.reads in READS
        assert all(parameter.kind in KINDS for parameter in recipe.parameters)
        assert max(map(len, recipe.sql.splitlines())) <= 120, name


@pytest.mark.parametrize("name", [name for name in recipe_names() if recipe_of(name).needs is not None])
def test_a_recipe_that_needs_answers_says_so(name, made):
    recipe = recipe_of(name)
    with pytest.raises(UserError, match=f"the recipe {name} needs {recipe.needs}, but there are none; name"):
        cook(connect(made.pruned), recipe)
    one = connect(made.pruned, made.answers[:1])
    if "two" in recipe.needs:
        with pytest.raises(UserError, match="there are answers at all alone; name the output of each of two"):
            cook(one, recipe)
    else:
        assert len(cook(one, recipe))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("losses", ["limt=3"], "--set limt: there is no such key of the recipe losses; did you mean limit?"),
        ("overview", ["k=3"], "--set k: there is no such key of the recipe overview; it has none"),
        ("losses", ["zzz=3"], "--set zzz: there is no such key of the recipe losses; there are more, fewer, limit"),
        ("losses", ["limit"], "--set limit: expected key=value"),
        ("losses", ["limit=3", "limit=4"], "--set limit=4: limit is given twice"),
        ("losses", ["limit=0"], "--set limit=0: expected a whole number of at least 1"),
        ("losses", ["limit=1e3"], "--set limit=1e3: expected a whole number of at least 1"),
        ("losses", ["limit=5; select 1"], "--set limit=5; select 1: expected a whole number of at least 1"),
        ("storage", ["budgets=1,,2"], "--set budgets=1,,2: expected whole numbers of at least 1, with commas"),
        ("sensitivity_grid", ["share=nan"], "--set share=nan: expected a number above 0 and up to 1"),
        ("sensitivity_grid", ["share=1.5"], "--set share=1.5: expected a number above 0 and up to 1"),
        ("sensitivity_grid", ["seed=-1"], "--set seed=-1: expected a whole number of at least 0"),
        ("losses", ["fewer=64"], "--set fewer=64: there are no answers at that budget; there are all, 6, 0.125"),
        ("losses", ["fewer=' or 1"], "--set fewer ' or 1: expected a count of 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(name, settings, message, connections):
    with pytest.raises(UserError, match=f"^{re.escape(message)}") as caught:
        cook(connections["cache"], recipe_of(name), settings)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_is_told_with_the_nearest(made):
    with pytest.raises(UserError, match=r"^--recipe kept-gird: there is no such recipe; did you mean kept_grid\?$"):
        recipe_of("kept-gird")
    with pytest.raises(UserError, match=r"^--recipe '7\\n': there is no such recipe; --list shows all$"):
        recipe_of("7\n")
    with pytest.raises(UserError, match="there is no such recipe"):
        recipe_of("../recipes/overview")


def test_a_head_that_says_nothing_is_noticed():
    head = "-- What there is.\n-- reads: summaries\n-- $limit count = 3: rows\n"
    assert parse_recipe("x", f"{head}select $limit").parameters[0].default == "3"
    for wrong in (
        "select 1",
        head.replace("summaries", "everything"),
        head.replace("count", "date"),
        head.replace(": rows", ""),
        "-- What.\n-- reads: summaries\n-- needs: luck\n",
    ):
        with pytest.raises(AssertionError, match=r"^x: "):
            parse_recipe("x", wrong)


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_summaries_are_made_once_and_beside_nothing_that_is_committed(made, tmp_path):
    said: list[str] = []
    cache = SummaryCache(str(tmp_path / "cache"), said.append, worth=0)
    before = held(made.pruned)
    for _ in range(2):
        assert ask(connect(made.pruned, made.answers[:1], summaries=cache), "select count(*) as n from answers")
    assert [line.split(" in ")[0] for line in said] == [
        f"gathered summaries of {made.pruned}",
        f"gathered summaries of {made.answers[0]}",
    ]
    assert all("it may be deleted" in line for line in said)
    connect(made.pruned, made.answers[:2], summaries=cache)
    assert len(said) == 3, "those that are there are used"
    assert held(made.pruned) == before
    assert len(held(tmp_path / "cache")) == 3


def test_summaries_follow_what_is_committed(small_pruned, tmp_path):
    said: list[str] = []
    cache = SummaryCache(str(tmp_path / "cache"), said.append, worth=0)

    def sensitivities() -> list[Row]:
        return ask(connect(root, summaries=cache), "select count(*) as n, sum(shard)::int as s from images").to_pylist()

    root = small_pruned(tmp_path / "out")
    assert sensitivities() == [{"n": 6, "s": 3}]
    small_pruned(root, shards=3)
    assert sensitivities() == [{"n": 9, "s": 9}]
    assert len(said) == 2
    assert len(held(tmp_path / "cache")) == 1, "the one before is gone"


def test_small_outputs_are_read_as_they_are(made, tmp_path):
    db = connect(made.pruned, made.answers, summaries=SummaryCache(str(tmp_path / "cache"), pytest.fail))
    assert ask(db, "select count(ranking) as n from images").to_pylist() == [{"n": 100}]
    assert not (tmp_path / "cache").exists()


def test_where_no_summaries_can_be_kept_the_files_are_read_and_that_is_said(made, tmp_path):
    said: list[str] = []
    (tmp_path / "file").write_text("in the way")
    cache = SummaryCache(str(tmp_path / "file"), said.append, worth=0)
    db = connect(made.pruned, made.answers, summaries=cache)
    assert ask(db, "select count(ranking) as n from images").to_pylist() == [{"n": 100}]
    (line,) = said
    assert line.startswith(f"summaries of {made.pruned} are not kept, which makes this slower: {tmp_path / 'file'}")


def test_damaged_summaries_are_made_anew(made, tmp_path):
    said: list[str] = []
    cache = SummaryCache(str(tmp_path / "cache"), said.append, worth=0)
    connect(made.pruned, summaries=cache).close()
    (file,) = (tmp_path / "cache").rglob("*.duckdb")
    file.write_bytes(b"x" * 5000)
    assert ask(connect(made.pruned, summaries=cache), "select count(*) as n from images").to_pylist() == [{"n": 100}]
    assert f"{file} can't be read and is made anew" in said[1]
    assert len(said) == 3


def test_damaged_tables_are_told_as_without_summaries(small_pruned, tmp_path):
    said: list[str] = []
    root = small_pruned(tmp_path / "out")
    path = root / "prompts/part-00000001.parquet"
    path.write_bytes(b"x" * path.stat().st_size)
    db = connect(root, summaries=SummaryCache(str(tmp_path / "cache"), said.append, worth=0))
    assert "could not be gathered" in said[0]
    with pytest.raises(UserError, match=r"the SQL can't be run: .*part-00000001\.parquet"):
        cook(db, recipe_of("prompts_by_type"))
    assert held(tmp_path / "cache") == {}


def run(capsys, *arguments: str) -> str:
    assert query_selections.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_the_command_lists_shows_and_runs_recipes(made, data, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    listed = [json.loads(line) for line in run(capsys, "--list", "--format", "json").splitlines()]
    assert [row["recipe"] for row in listed] == recipe_names()
    assert next(row for row in listed if row["recipe"] == "losses") == {
        "recipe": "losses", "shows": "The images whose answers lose most between two budgets.",
        "set": "more=most fewer=fewest limit=20", "reads": "summaries", "needs": "answers at two budgets",
    }  # fmt: skip
    table = run(capsys, "--list").splitlines()
    assert len(table) == 2 + len(listed)
    assert run(capsys, "--list", "--recipe", "losses") == recipe_of("losses").sql
    of_made = ["--pruned", str(made.pruned), "--recipe", "kept_grid", "--set", "k=5", "--format", "json"]
    rows = [json.loads(line) for line in run(capsys, *of_made, "--memory", "0.5").splitlines()]
    assert_same(rows, kept_grid(data, "5"))
    assert not (tmp_path / "zoo-prune").exists(), "it is small"


def test_the_command_keeps_summaries_of_large_outputs_where_users_want_them(made, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(SummaryCache.__init__, "__defaults__", (0,))
    run(capsys, "--pruned", str(made.pruned), "--recipe", "kept_grid")
    run(capsys, "--pruned", str(made.pruned), "select count(*) from images")  # which could have written to it
    run(capsys, "--pruned", str(made.pruned), "--recipe", "overview", "--cache", "none")
    assert not (tmp_path / "user").exists()
    run(capsys, "--pruned", str(made.pruned), "--recipe", "overview", "--cache", str(tmp_path / "named"))
    assert len(held(tmp_path / "named")) == 1
    run(capsys, "--pruned", str(made.pruned))
    assert [name.split("/")[:2] for name in held(tmp_path / "user")] == [["zoo-prune", "summaries"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--pruned must be given"),
        (["--pruned", "p", "--recipe", "overview", "select 1"], "--recipe overview comes with SQL of its own"),
        (["--list", "select 1"], "--list comes with SQL of its own"),
        (["--pruned", "p", "--set", "k=3"], "--set k=3: there is nothing to set without running a --recipe"),
        (["--list", "--recipe", "losses", "--set", "k=3"], "--set k=3: there is nothing to set"),
        (["--pruned", "p", "--format", "csv"], "--format csv: the summary is for people"),
        (["--pruned", "p", "--memory", "0", "select 1"], "--memory 0: expected above 0"),
        (["--pruned", "p", "--cache", "s3://b/k", "select 1"], "--cache s3://b/k: summaries are kept on a local disk"),
        (["--pruned", "p", "--recipe", "losess"], "did you mean losses?"),
        (["--pruned", "p", "--recipe", "losses", "--set", "limit=x"], "--set limit=x: expected a whole number"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_one_sentence(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        query_selections.main(arguments)
    assert "\n" not in str(caught.value)
