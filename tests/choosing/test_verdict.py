"""Verdicts on made-up trials whose losses are known."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.choosing.resampling import upper_bounds
from pipeline.choosing.settings import ChooseSettings
from pipeline.choosing.stage import AGREEMENT, runs_of
from pipeline.choosing.verdict import Trials, decide, images_to_settle, trials_of
from pipeline.errors import UserError
from schemas.choice import Choice
from schemas.columns import schema_of
from schemas.trials import TrialRow

IMAGES, PROMPTS = 400, 3
RUNS = runs_of("zoo")
BUDGETS = ("16", "64", "32")


def settings(**changes: object) -> ChooseSettings:
    return ChooseSettings(corpus=("a.tar",), model="m", output="/o", tokens=BUDGETS, sample=IMAGES, **changes)


def trials(losses: dict[str, float], controls: dict[str, float], types: tuple[str, ...] = ("a",)) -> Trials:
    """Prompts that are all right with all tokens; at each budget this share of the images loses all of them."""
    image_Q = np.repeat(np.arange(IMAGES), PROMPTS)
    types_Q = [types[n % len(types)] for n in range(len(image_Q))]
    scores = np.ones((len(RUNS), len(BUDGETS), len(image_Q)))
    for number, (name, _) in enumerate(RUNS):
        for place, budget in enumerate(BUDGETS):
            lost = losses[budget] if name == "zoo" else controls[budget]
            scores[number, place, image_Q < round(lost * IMAGES)] = 0
    return Trials(
        image_Q=image_Q, types_Q=types_Q, metrics_Q=["exact"] * len(image_Q), full_Q=np.ones(len(image_Q)),
        scores_RBQ=scores, mean_tokens_B=np.array([16.0, 64.0, 32.0]), mean_tokens=256.0, num_images=IMAGES, refused=0,
        without_references=0,
    )  # fmt: skip


FAR = {"16": 0.5, "32": 0.5, "64": 0.5}


def test_budgets_are_tested_from_the_largest_down_until_one_is_not_safe():
    """The smallest would pass by itself, but is not reached."""
    choice = decide(settings(), trials({"64": 0.0025, "32": 0.05, "16": 0.0}, FAR))
    assert [(one.tokens, one.verdict) for one in choice.budgets] == [
        ("64", "safe"), ("32", "not safe"), ("16", "not tested")
    ]  # fmt: skip
    assert choice.budgets[2].bound < 2.0
    assert choice.chosen == "64"
    assert choice.findings[0].startswith("--tokens 64 (64 tokens an image) is the smallest budget measured whose loss")
    assert any(line.startswith("Not tested, because a larger budget is not safe: 16") for line in choice.findings)
    assert Choice.model_validate_json(choice.model_dump_json()) == choice


def test_all_are_safe():
    choice = decide(settings(), trials({"64": 0.0, "32": 0.0, "16": 0.0025}, FAR))
    assert choice.chosen == "16"
    assert [one.images_to_settle for one in choice.budgets] == [None] * 3


def test_none_is_safe_and_how_many_images_would_settle_it():
    """Five images of 400 lost: less than the tolerance, but not surely."""
    choice = decide(settings(), trials({"64": 0.0125, "32": 0.05, "16": 0.5}, FAR))
    assert choice.chosen is None
    assert choice.findings[0] == "None of the budgets measured loses at most 2 points with 95 % confidence."
    needed = choice.budgets[0].images_to_settle
    assert needed is not None
    assert needed > IMAGES
    assert f"about {needed:,} images would show that it is safe; this one has 400" in choice.findings[2]
    lost = decide(settings(), trials({"64": 0.5, "32": 0.6, "16": 0.7}, FAR))
    assert "would show that it loses more than the tolerance" in lost.findings[2]
    assert not any("--tokens 32" in line or "--tokens 16" in line for line in lost.findings)


def test_the_images_that_settle_it_do():
    """Samples of that size are called safe in about the share of cases that was promised."""
    rng = np.random.default_rng(0)
    loss, tolerance, asked_I = 0.01, 0.02, np.full(300, 4.0)
    needed = images_to_settle(loss, float(np.sqrt(loss * (1 - loss) / 300)), tolerance, asked_I)
    assert needed is not None
    sums_RI = 4.0 * (rng.random((300, needed)) < loss)
    assert 0.65 <= (upper_bounds(sums_RI, np.full(needed, 4.0), resamples=1000) <= tolerance).mean() <= 0.95
    assert images_to_settle(tolerance, 0.01, tolerance, asked_I) is None
    assert images_to_settle(tolerance - 1e-9, 0.01, tolerance, asked_I) is None
    assert images_to_settle(0.0, 0.0, tolerance, asked_I) == 150  # no loss at all: ln(20) / 0.02


def test_a_control_that_does_as_well_is_told():
    choice = decide(settings(), trials({"64": 0.0025, "32": 0.5, "16": 0.5}, {"64": 0.0025, "32": 0.5, "16": 0.5}))
    assert [(one.selector, one.seeds, one.does_as_well) for one in choice.budgets[0].controls] == [
        ("random", 3, True), ("uniform_grid", 1, True)
    ]  # fmt: skip
    assert any(line.startswith("At 64 random does as well: zoo is ahead by 0.00 [") for line in choice.findings)
    far = decide(settings(), trials({"64": 0.0025, "32": 0.5, "16": 0.5}, FAR))
    assert not any("does as well" in line for line in far.findings)
    assert far.budgets[0].controls[0].loss.points == 50.0


def test_the_type_that_suffers_is_named():
    made = trials({"64": 0.0, "32": 0.0, "16": 0.0}, FAR, ("color", "count"))
    scores = made.scores_RBQ.copy()
    is_count = np.array([one == "count" for one in made.types_Q])
    scores[0, 0, is_count & (made.image_Q < 6)] = 0
    choice = decide(settings(), replace(made, scores_RBQ=scores))
    assert choice.chosen == "16"
    worst = choice.budgets[-1].groups[0]
    assert (worst.type, worst.metric, worst.prompts) == ("count", "exact", int(is_count.sum()))
    assert any("prompts of type count suffer most: they lose" in line for line in choice.findings)


def rows(scores: dict[str, float | None], metric: str, references: bool = True) -> list[dict]:
    """Two prompts about two images, with all tokens and at one budget by every run."""
    made = []
    for prompt_id, score in scores.items():
        common = {"prompt_id": prompt_id, "image_id": f"i{prompt_id}", "num_tokens": 8, "shard": 0, "type": None}
        common |= {"finish_reason": "stop", "answer": "x", "metric": metric}
        made.append({**common, "selector": None, "seed": 0, "budget": "all", "tokens": 8, "score": 1.0})
        for name, seed in RUNS:
            made.append({**common, "selector": name, "seed": seed, "budget": "4", "tokens": 4, "score": score})
    return made


def table(made: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(made, schema_of(TrialRow))


def test_prompts_that_were_refused_do_not_count():
    found = trials_of(table(rows({"p": 0.5, "q": None}, "exact")), RUNS, ["4"])
    assert (found.refused, found.num_images, found.scores_RBQ[0, 0].tolist()) == (1, 1, [0.5])
    assert (found.mean_tokens, found.mean_tokens_B.tolist()) == (8.0, [4.0])
    with pytest.raises(UserError, match="the model can take none of its prompts"):
        trials_of(table(rows({"p": None}, "exact")), RUNS, ["4"])


def test_agreement_counts_only_where_nothing_has_references():
    mixed = rows({"p": 0.5}, "exact") + rows({"q": 0.0}, AGREEMENT)
    found = trials_of(table(mixed[::-1]), RUNS, ["4"])
    assert (found.metrics_Q, found.without_references) == (["exact"], 1)
    alone = trials_of(table(rows({"q": 0.0, "r": 1.0}, AGREEMENT)), RUNS, ["4"])
    assert alone.metrics_Q == [AGREEMENT] * 2
    choice = decide(ChooseSettings(corpus=("a",), model="m", output="/o", tokens=("4",)), alone)
    assert any("agreement with the answers at all tokens" in line for line in choice.findings)
