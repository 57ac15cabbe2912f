"""Budgets as users write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.budget import parse_budget
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("text", "num_tokens", "kept"),
    [
        ("64", 256, 64),
        ("64", 10, 10),
        ("all", 7, 7),
        ("0.125", 256, 32),
        ("0.1", 576, 58),
        ("1.0", 9, 9),
        ("0.001", 9, 1),
    ],
)
def test_counts_ratios_and_all(text, num_tokens, kept):
    assert parse_budget(text, "--max-tokens").of(num_tokens) == kept


@pytest.mark.parametrize(
    "text", ["0", "-3", "1.5", "0.0", "many", "", "nan", "inf", "1e9", "9" * 5000, "99999999", "٣", "²", "0.1_2", "1_0"]
)
def test_impossible_budgets_are_named(text):
    with pytest.raises(UserError, match="--tokens"):
        parse_budget(text, "--tokens")


@given(
    st.one_of(st.integers(1, 4000).map(str), st.floats(1e-6, 1).map(lambda x: f"{x:.6f}"), st.just("all")),
    st.integers(1, 3000),
)
def test_a_budget_is_always_between_one_and_all(text, num_tokens):
    try:
        budget = parse_budget(text, "--tokens")
    except UserError:
        assert float(text) == 0
        return
    assert 1 <= budget.of(num_tokens) <= num_tokens
