"""What each recipe must tell, worked out in Python from the rows of the committed files."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.made_artifact import Form
from schemas.records import CommitRecord

SIDE = 4
FORM = Form(4, 25, 8, budgets=("all", "6", "0.125"), side=SIDE, kept=12, width=8, images_a_tar=30)
Row = dict[str, Any]


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
        if a["answer"] is not None and b["answer"] is not None:  # else one of them refused the prompt
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
