"""Kept sets as the benchmark of selectors makes and answers them, on the bundled model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import kept_answers
from benchmarks.graded_corpus import load_corpus, spread
from benchmarks.kept_answers import Model, Part, answer_part, check_equality, pooled, pooling_factor, runs_of
from pipeline.families.base import EncodedImage, Segment
from zoo_ops import SELECTORS

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("grid", "kept", "factor"),
    [
        ((16, 16, 1), 64, 2),
        ((16, 16, 1), 16, 4),
        ((12, 8, 1), 24, 2),
        ((16, 16, 1), 128, None),  # no square of tokens leaves half of them
        ((16, 16, 1), 32, None),
        ((16, 16, 1), 8, None),
        ((16, 16, 1), 256, None),  # nothing merged is no pooling
        ((18, 9, 1), 18, 3),
        ((18, 8, 1), 16, None),  # 16 of 144 would be squares of 3, which do not fit 8 columns
        ((6, 6, 2), 9, None),  # two tiles
    ],
)
def test_pooling_exists_where_squares_leave_that_many_tokens(grid, kept, factor):
    assert pooling_factor(grid, kept) == factor


def encoded(rows: int, cols: int, width: int = 5) -> EncodedImage:
    projected = torch.randn(rows * cols, width, generator=torch.Generator().manual_seed(0))
    return EncodedImage(projected, projected, [Segment(0, 0, rows, cols)], (rows, cols, 1))


@pytest.mark.parametrize(("rows", "cols", "factor"), [(16, 16, 2), (16, 16, 4), (6, 9, 3), (4, 2, 1)])
def test_pooling_is_torch_s_average_pooling_of_the_grid(rows, cols, factor):
    image = encoded(rows, cols)
    features, firsts = pooled(image, factor)
    maps = image.projected_NO.T.reshape(1, -1, rows, cols)
    expected = torch.nn.functional.avg_pool2d(maps, factor)[0].flatten(1).T
    torch.testing.assert_close(features, expected)
    assert firsts.tolist() == sorted(firsts.tolist())
    for feature, first in zip(features, firsts.tolist(), strict=True):
        row, col = divmod(first, cols)
        square = [image.projected_NO[(row + i) * cols + col + j] for i in range(factor) for j in range(factor)]
        torch.testing.assert_close(feature, torch.stack(square).mean(0))


def test_only_a_single_raster_is_pooled():
    with pytest.raises(ValueError, match="single raster"):
        pooled(replace(encoded(4, 4), structure=(3,)), 2)


def test_every_selector_runs_random_with_each_seed_and_pooling_where_asked():
    names = [name for name, _ in runs_of(controls=False)]
    assert names[0] == "zoo"
    assert {*names} == {*SELECTORS}
    assert sorted(seed for name, seed in runs_of(controls=False) if name == "random") == [0, 1, 2, 3, 4]
    assert [run for run in runs_of(controls=True) if run not in runs_of(controls=False)] == [("pooling", 0)]


@pytest.fixture(scope="module")
def some(tiny_llava, scenes_manifest) -> Model:
    images, prompts = load_corpus([Path(scenes_manifest)])
    images = spread(images, 4)
    return Model(tiny_llava, images, [prompt for prompt in prompts if prompt.image_id in images])


def test_sets_of_one_image_are_answered_apart_in_one_batch(some):
    """Two sets of one image share no pass over it, and answers do not depend on what runs beside them."""
    first, *_ = some.encoded
    sets = [(first, some.kept(first, range(k, k + 8))) for k in (0, 120)] + [(first, some.merged(first, 4))]
    together = some.answer(sets)
    for one, replies in zip(sets, together, strict=True):
        (alone,) = some.answer([one])
        assert {n: r.token_ids for n, r in replies.items()} == {n: r.token_ids for n, r in alone.items()}
    assert len({str({n: r.text for n, r in replies.items()}) for replies in together}) > 1


@pytest.fixture(scope="module")
def part(tiny_llava, scenes_manifest, some) -> Part:
    return Part(tiny_llava, (Path(scenes_manifest),), list(some.encoded), controls=True)


def test_a_part_is_answered_whole(part, some):
    answered = answer_part(part)
    runs = runs_of(controls=True)
    assert answered.tokens_B == [192, 128, 64, 32, 16, 8]
    assert answered.scores_RBQ.shape == (len(runs), 6, len(some.prompts))
    missing = {
        (runs[r][0], answered.tokens_B[b]) for r, b, _ in zip(*np.isnan(answered.scores_RBQ).nonzero(), strict=True)
    }
    assert missing == {("pooling", k) for k in (192, 128, 32, 8)}
    assert not np.isnan(answered.full_Q).any()
    # What is generated once counts once, what is asked for counts every time.
    assert (
        answered.asked == np.isfinite(answered.scores_RBQ).sum() >= sum(answered.generated.values()) - len(some.prompts)
    )
    # The questions about the first image, however many selectors are posed with them.
    assert answered.checked == sum(prompt.image_id == part.image_ids[0] for prompt in some.prompts)
    # A cell by hand: the same scores as of the set asked for by itself.
    image_id = part.image_ids[1]
    ranking = some.rank("random", 3)[image_id].ranking_K[:32].tolist()
    ((replies,),) = (some.answer([(image_id, some.kept(image_id, ranking))]),)
    for number, reply in replies.items():
        score = answered.scores_RBQ[runs.index(("random", 3)), 3, number]
        assert score == some.prompts[number].score(str(reply.text))


def test_sets_that_several_selectors_choose_are_generated_once(part, monkeypatch):
    """`random` that draws the same with every seed is generated with one, and scored with each."""
    monkeypatch.setattr(kept_answers, "runs_of", lambda controls: [("zoo", 0), ("zoo", 1)])
    answered = answer_part(part)
    assert sum(answered.generated.values()) - answered.generated[256] == answered.asked / 2
    assert (answered.scores_RBQ[0] == answered.scores_RBQ[1]).all()


def test_the_equality_check_sees_a_selector_that_loses_a_token(part, some, scenes_manifest):
    images, _ = load_corpus([Path(scenes_manifest)])
    image = images[part.image_ids[0]]
    ranked = some.rank("zoo", 0)
    check_equality(part, some, image, {("zoo", 0): ranked})
    last = part.image_ids[-1]
    short = {**ranked, last: replace(ranked[last], ranking_K=ranked[last].ranking_K[:-1])}
    with pytest.raises(AssertionError, match="does not rank all"):
        check_equality(part, some, image, {("zoo", 0): short})


def test_the_equality_check_compares_with_the_untouched_model(part, some, scenes_manifest):
    """Answers about another image are not what the untouched model says of this one."""
    images, _ = load_corpus([Path(scenes_manifest)])
    with pytest.raises(AssertionError, match="the untouched model"):
        check_equality(part, some, images[part.image_ids[2]], {("zoo", 0): some.rank("zoo", 0)})
