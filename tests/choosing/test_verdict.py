"""Verdicts on made-up trials whose losses are known."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.choosing.resampling import upper_bounds
from pipeline.choosing.settings import ChooseSettings
from pipeline.choosing.stage import AGREEMENT, runs_of, score_of
from pipeline.choosing.verdict import Trials, decide, images_to_settle, trials_of
from pipeline.errors import UserError
from pipeline.grading.grader import parse_metrics
from schemas.choice import Choice
from schemas.columns import schema_of
from schemas.stored import StoredPrompt
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


def test_one_image_shows_no_type_to_suffer():
    """A type that is asked about one image alone, and lost there, has no interval."""
    made = trials({"64": 0.0, "32": 0.0, "16": 0.0}, FAR)
    scores = made.scores_RBQ.copy()
    scores[0, 0, :PROMPTS] = 0
    types = ["rare" if image == 0 else "a" for image in made.image_Q]
    choice = decide(settings(), replace(made, types_Q=types, scores_RBQ=scores))
    assert (choice.budgets[-1].groups[0].type, choice.budgets[-1].groups[0].loss.points) == ("rare", 100.0)
    assert "At 16 no type of prompts is shown to suffer." in choice.findings


def test_where_nothing_is_right_nothing_is_tested():
    """A metric that does not fit: nothing can be lost, and no number of images would make that safe."""
    made = trials({"64": 0.0, "32": 0.0, "16": 0.0}, {"64": 0.0, "32": 0.0, "16": 0.0})
    blind = replace(made, full_Q=np.zeros(len(made.full_Q)), scores_RBQ=np.zeros(made.scores_RBQ.shape))
    choice = decide(settings(), blind)
    assert choice.chosen is None
    assert {one.verdict for one in choice.budgets} == {"not tested"}
    assert [one.images_to_settle for one in choice.budgets] == [None] * 3
    assert choice.findings == (
        "Nothing was tested: with all tokens the score is 0.00 points, so no budget could lose more than 2 points; "
        "name a --metric that fits the prompts, or a smaller --tolerance.",
    )
    hardly = decide(settings(tolerance=2.5), replace(blind, full_Q=np.full(len(made.full_Q), 0.025)))
    assert hardly.chosen is None, "a tolerance that all there is to lose does not exceed"
    assert decide(settings(), made).chosen == "16"


def test_what_does_not_count_is_told():
    made = replace(trials({"64": 0.0, "32": 0.0, "16": 0.0}, FAR), without_references=24, refused=2, unscored=1)
    said = "27 more prompts do not count: 24 without references, 1 whose references their metric can't score by, 2 that"
    assert any(line.startswith(said) for line in decide(settings(), made).findings)
    one = replace(made, without_references=0, refused=1, unscored=0)
    assert "1 more prompt does not count: 1 that the model can't take." in decide(settings(), one).findings
    none = replace(made, without_references=0, refused=0, unscored=0)
    assert not any("not count" in line for line in decide(settings(), none).findings)


def rows(
    scores: dict[str, float | None], metric: str, answer: str | None = "x", full: float | None = 1.0
) -> list[dict]:
    """Two prompts about two images, with all tokens and at one budget by every run."""
    made = []
    for prompt_id, score in scores.items():
        common = {"prompt_id": prompt_id, "image_id": f"i{prompt_id}", "num_tokens": 8, "shard": 0, "type": None}
        common |= {"finish_reason": "stop" if answer else "refused", "answer": answer, "metric": metric}
        made.append({**common, "selector": None, "seed": 0, "budget": "all", "tokens": 8, "score": full})
        for name, seed in RUNS:
            made.append({**common, "selector": name, "seed": seed, "budget": "4", "tokens": 4, "score": score})
    return made


def table(made: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(made, schema_of(TrialRow))


def test_prompts_that_were_refused_do_not_count():
    refused = rows({"q": None}, "exact", answer=None, full=None)
    found = trials_of(table(rows({"p": 0.5}, "exact") + refused), RUNS, ["4"])
    assert (found.refused, found.num_images, found.scores_RBQ[0, 0].tolist()) == (1, 1, [0.5])
    assert (found.mean_tokens, found.mean_tokens_B.tolist()) == (8.0, [4.0])
    with pytest.raises(UserError, match="the model can take none of its prompts"):
        trials_of(table(refused), RUNS, ["4"])


def test_prompts_that_their_metric_can_not_score_do_not_count():
    """They have references, so agreement is no measure of them."""
    unscored = rows({"q": None}, "pope", full=None)
    found = trials_of(table(rows({"p": 0.5}, "exact") + unscored), RUNS, ["4"])
    assert (found.unscored, found.refused, found.without_references) == (1, 0, 0)
    assert found.metrics_Q == ["exact"]
    with pytest.raises(UserError, match="their metrics can score none of its prompts by their references; name other"):
        trials_of(table(unscored + rows({"r": 1.0}, AGREEMENT)), RUNS, ["4"])


def test_agreement_counts_only_where_nothing_has_references():
    mixed = rows({"p": 0.5}, "exact") + rows({"q": 0.0}, AGREEMENT)
    found = trials_of(table(mixed[::-1]), RUNS, ["4"])
    assert (found.metrics_Q, found.without_references) == (["exact"], 1)
    alone = trials_of(table(rows({"q": 0.0, "r": 1.0}, AGREEMENT)), RUNS, ["4"])
    assert alone.metrics_Q == [AGREEMENT] * 2
    choice = decide(ChooseSettings(corpus=("a",), model="m", output="/o", tokens=("4",)), alone)
    assert any("agreement with the answers at all tokens" in line for line in choice.findings)


def test_an_answer_is_scored_by_its_references_or_by_agreement():
    def prompt(*references: str) -> StoredPrompt:
        return StoredPrompt(
            prompt_id="p", image_id="i", prompt="what ?", references=[*references] or None, type="color", shard=0,
            image_shard=0,
        )  # fmt: skip

    grader = parse_metrics(["color=pope"])
    assert score_of(grader, "red", prompt("red"), "red") == ("pope", None), "it is no question of yes or no"
    assert score_of(grader, "yes", prompt("yes"), "no") == ("pope", 1.0)
    assert score_of(grader, "red", prompt(), "red") == (AGREEMENT, 1.0)
