"""class_attention against its literal twin, and its contract."""

import pytest
import torch

from zoo_ops import class_attention
from zoo_ops.naive import class_attention_naive

B, T, D = 3, 38, 60


@pytest.mark.parametrize("heads", [1, 4, 60])
def test_the_naive_twin_has_the_same_values(heads):
    query, keys = 2 * torch.randn(B, D), torch.randn(B, T, D)
    value = class_attention(query, keys, num_heads=heads)
    expected = class_attention_naive(query, keys, num_heads=heads)
    assert value.shape == (B, T - 1)
    assert value.dtype == torch.float32
    assert torch.allclose(value.double(), expected, rtol=1e-5, atol=1e-7)
    # The rest is what the class token pays itself.
    assert (value.sum(1) < heads).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    query, keys = torch.randn(B, D).to(dtype), torch.randn(B, T, D).to(dtype)
    value = class_attention(query, keys, num_heads=4)
    assert torch.equal(value, class_attention(query.float(), keys.float(), num_heads=4))


def test_an_image_has_the_same_bits_in_any_batch():
    query, keys = torch.randn(B, D), torch.randn(B, T, D)
    together = class_attention(query, keys, num_heads=4)
    for image in range(B):
        alone = class_attention(query[image : image + 1], keys[image : image + 1], num_heads=4)
        assert torch.equal(alone[0], together[image])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_BD": torch.randn(B, 1, D)}, r"query_BD has shape \(3, 1, 60\), expected 2 axes BD"),
        ({"keys_BTD": torch.randn(B, T, 59)}, r"keys_BTD has shape \(3, 38, 59\), expected \(3, T, 60\)"),
        ({"keys_BTD": torch.randn(B, 1, D)}, r"with T of at least 2"),
        ({"keys_BTD": torch.ones(B, T, D, dtype=torch.int64)}, "keys_BTD has dtype torch.int64"),
        ({"num_heads": 7}, "num_heads is 7, expected a divisor of the width 60"),
        ({"num_heads": 0}, "num_heads is 0, expected an integer of at least 1"),
    ],
)
def test_errors_name_value_and_expectation(change, message):
    arguments = {"query_BD": torch.randn(B, D), "keys_BTD": torch.randn(B, T, D), "num_heads": 4, **change}
    with pytest.raises(ValueError, match=message):
        class_attention(arguments.pop("query_BD"), arguments.pop("keys_BTD"), **arguments)
