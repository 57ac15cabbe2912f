"""Budgets by gain: the threshold of a mean over a corpus, against the definition; what is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.answer.checks import survey
from pipeline.answer.gains import StoredGains, check_gains
from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import write_table
from pipeline.budget import GainBudget, MeanBudget, parse_answer_budget
from pipeline.errors import UserError
from schemas.columns import table_of
from schemas.records import CommitRecord, JobRecord
from schemas.selections import ErrorRow, Grid, Position, PromptRow, SelectionRow
from schemas.tables import SCHEMA_VERSION
from tests.small_artifacts import SEGMENT
from zoo_ops import Ranking, budget_by_gain, budget_by_mean

Image = tuple[list[float], int]  # gains of the stored tokens, and how many tokens there are


def selection(number: int, shard: int, gains: list[float], num_tokens: int, tiles: list[int]) -> SelectionRow:
    kept = len(gains)
    return SelectionRow(
        image_id=f"{number:064x}", source="s", shard=shard, width=8, height=8, num_tokens=num_tokens, num_kept=kept,
        num_structure=0, grid=Grid(rows=1, cols=num_tokens, tiles=1), segments=[SEGMENT], structure=[],
        image_grid_thw=None, ranking=list(range(kept)), gain=gains, sensitivity=None,
        position=[Position(tile=tile, row=0, col=n) for n, tile in enumerate(tiles)], sensitivity_min=None,
        sensitivity_mean=None, sensitivity_max=None, last_gain=gains[-1],
    )  # fmt: skip


def prompt(number: int, shard: int, image_shard: int, status: str = "ok") -> PromptRow:
    return PromptRow(
        prompt_id=f"{shard}-{number}", image_id=f"{number:064x}", prompt="what?", references=[], type=None, source="s",
        status=status, shard=shard, image_shard=image_shard,
    )  # fmt: skip


def write(root: Path, shards: list[list[Image]], prompts: list[PromptRow] | None = None, tiles: int = 1) -> Artifact:
    """A pruned artifact without features; images are numbered in the order of the shards."""
    artifact = Artifact(root)
    artifact.adopt_job(JobRecord("prune", SCHEMA_VERSION, {"selector": "zoo"}, {}, {}))
    number = 0
    for shard, images in enumerate(shards):
        rows = []
        for place, (gains, num_tokens) in enumerate(images, start=number):
            rows.append(selection(place, shard, gains, num_tokens, [n % tiles for n in range(len(gains))]))
        asked = [prompt(place, shard, shard) for place in range(number, number + len(images))]
        mine = asked if prompts is None else [one for one in prompts if one.shard == shard]
        files = {
            "selections": write_table(root, "selections", shard, table_of(SelectionRow, rows)),
            "prompts": write_table(root, "prompts", shard, table_of(PromptRow, mine)),
            "errors": write_table(root, "errors", shard, table_of(ErrorRow, [])),
        }
        artifact.commit(CommitRecord(shard, files, {"prompts.ok": len(mine)}))
        number += len(images)
    artifact.finish({"num_shards": len(shards)})
    return artifact


def gains_of(artifact: Artifact) -> StoredGains:
    return StoredGains(artifact, survey(artifact))


def kept_at(images: list[Image], budget: GainBudget) -> list[int]:
    return [budget.kept(num_tokens, gains) for gains, num_tokens in images]


def as_float32(values: list[float]) -> list[float]:
    return np.array(values, np.float32).tolist()


gain_lists = st.lists(
    st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 2, width=32)), min_size=1, max_size=9
).map(lambda gains: [gains[0], *sorted(gains[1:], reverse=True)])


@settings(max_examples=25, deadline=None)
@given(st.lists(gain_lists, min_size=1, max_size=8), st.integers(1, 4), st.floats(0, 8), st.randoms())
def test_the_threshold_of_a_mean_is_the_best_there_is(tmp_path_factory, gains, least, more, order):
    """By trying every threshold that could matter; and whatever the order of images and shards."""
    images = [(one, len(one)) for one in gains]
    mean = least + more
    root = tmp_path_factory.mktemp("mean")
    found = gains_of(write(root / "a", [images[:3], images[3:]])).threshold(MeanBudget(mean, least))
    budget = GainBudget(found, least)
    total = sum(kept_at(images, budget))
    assert total <= mean * len(images)
    every = sorted({gain for one in gains for gain in one[1:]} | {0.0, math.inf})
    fitting = [n for n in (sum(kept_at(images, GainBudget(t, least))) for t in every) if n <= mean * len(images)]
    assert total == max(fitting)
    order.shuffle(images)
    again = gains_of(write(root / "b", [[one] for one in images])).threshold(MeanBudget(mean, least))
    assert again == found


def test_it_is_the_budget_of_the_operations():
    """`zoo_ops.budget_by_mean` and `budget_by_gain` on one tensor give the same numbers of tokens."""
    generator = np.random.default_rng(0)
    gains = np.sort(generator.random((20, 30), np.float32), axis=1)[:, ::-1].copy()
    ranking = Ranking(torch.arange(30).expand(20, 30), torch.from_numpy(gains))
    by_mean = budget_by_mean(ranking, 8.3, min_tokens=2, max_tokens=30)
    by_gain = budget_by_gain(ranking, 0.7, min_tokens=2)
    images = [(row, 30) for row in gains.tolist()]
    assert kept_at(images, GainBudget(0.7, 2)) == by_gain.tolist()
    assert kept_at(images, GainBudget(by_mean.gain_threshold, 2)) == by_mean.budgets_B.tolist()


def test_the_mean_of_the_operations_is_that_of_the_artifact(tmp_path):
    generator = np.random.default_rng(1)
    gains = np.sort(generator.random((20, 30), np.float32), axis=1)[:, ::-1].copy()
    expected = budget_by_mean(
        Ranking(torch.arange(30).expand(20, 30), torch.from_numpy(gains)), 8.3, min_tokens=2, max_tokens=30
    )
    images = [(row, 30) for row in gains.tolist()]
    stored = gains_of(write(tmp_path, [images[:7], images[7:]]))
    budget = GainBudget(stored.threshold(MeanBudget(8.3, 2)), 2)
    assert kept_at(images, budget) == expected.budgets_B.tolist()
    spent = stored.spent(budget)
    assert (spent.images, spent.tokens) == (20, int(expected.budgets_B.sum()))
    assert spent.mean <= 8.3


def test_only_images_that_prompts_ask_about_count(tmp_path):
    """The second is asked about from another shard, the third by a prompt that can't be posed, the fourth not."""
    images = [(as_float32([1.0, gain, gain]), 3) for gain in (0.5, 0.75, 0.25, 1.0)]
    prompts = [prompt(0, 0, 0), prompt(1, 1, 0), prompt(2, 1, 1, "empty_prompt")]
    stored = gains_of(write(tmp_path, [images[:2], images[2:]], prompts))
    assert stored.spent(GainBudget(0.6)).images == 2
    assert stored.spent(GainBudget(0.6)).tokens == 1 + 3
    assert stored.threshold(MeanBudget(2.0)) > np.float32(0.5)


def test_what_is_not_stored_is_refused_with_what_is(tmp_path):
    """The first image may have further tokens with gains up to 0.5, the second has none."""
    images = [(as_float32([1.0, 0.75, 0.5]), 9), (as_float32([1.0, 0.25, 0.125]), 3)]
    stored = gains_of(write(tmp_path, [images]))
    assert stored.check_stored("gain:0.6", GainBudget(0.6)).tokens == 2 + 1
    with pytest.raises(
        UserError, match=r"--tokens gain:0\.5: 1 image has tokens that are not .* over 0\.5, up to 1\.5 tokens on"
    ):
        stored.check_stored("gain:0.5", GainBudget(0.5))
    budget = GainBudget(stored.threshold(MeanBudget(2.5)))
    with pytest.raises(UserError, match=r"--tokens mean:2\.5: 1 image .*the threshold would be .*larger --max-tokens"):
        stored.check_stored("mean:2.5", budget)
    with pytest.raises(UserError, match=r"--min-tokens 4: 1 image has tokens"):
        stored.check_stored("gain:0.6", GainBudget(0.6, 4))


def test_tiles_bound_what_is_not_stored_by_the_last_gain_of_each(tmp_path):
    """The last stored token is one of the plain tile; the other tile may have more as good as the one before."""
    image = (as_float32([1.0, 1.0, 0.5, 0.125]), 20)
    assert gains_of(write(tmp_path / "two", [[image]], tiles=2)).spent(GainBudget(0.25)).short == 1
    assert gains_of(write(tmp_path / "one", [[image]])).spent(GainBudget(0.25)).short == 0
    assert GainBudget(0.25).kept(20, image[0]) == 3


@pytest.mark.parametrize("selector", ["random", "uniform_grid"])
def test_selectors_whose_gains_say_nothing_are_refused(tmp_path, selector):
    job = JobRecord("prune", SCHEMA_VERSION, {"selector": selector}, {}, {})
    with pytest.raises(UserError, match=rf"--tokens gain:0\.2: .*--selector {selector}, whose gains say nothing"):
        check_gains("gain:0.2", Artifact(tmp_path), job)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("mean:64", MeanBudget(64.0, 3)),
        ("mean:12.5", MeanBudget(12.5, 3)),
        ("gain:0.2", GainBudget(0.2, 3)),
        ("gain:2", GainBudget(2.0, 3)),
    ],
)
def test_budgets_of_answers_are_read(text, budget):
    assert parse_answer_budget(text, "--tokens", 3) == budget


@pytest.mark.parametrize(
    "text", ["mean:", "mean:0.5", "mean:-1", "mean:nan", "gain:0", "gain:2.1", "gain:1e-3", "mean:all"]
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UserError, match=rf"--tokens {text}: expected (mean|gain):"):
        parse_answer_budget(text, "--tokens")
