"""Stored features: lossless by default, bounded loss otherwise."""

import pytest
import torch

from pipeline.artifact.payload import pack_features, unpack_features

ROWS = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)) * 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_model_dtype_keeps_every_bit(dtype):
    tensors = {"features": ROWS.to(dtype), "deepstack.0": ROWS.flip(0).to(dtype)}
    restored = unpack_features(pack_features(tensors, "model"))
    assert restored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert restored[name].dtype == dtype
        assert torch.equal(restored[name], tensor)


def test_int8_is_within_half_a_step():
    tensors = {"features": torch.cat([ROWS, torch.zeros(1, 12)]), "deepstack.0": ROWS}
    restored = unpack_features(pack_features(tensors, "int8"))
    for name, tensor in tensors.items():
        step = tensor.abs().amax(dim=1, keepdim=True) / 127
        assert ((restored[name] - tensor).abs() <= step * 0.5001).all()


def test_the_same_tensors_give_the_same_bytes():
    assert pack_features({"features": ROWS}, "int8") == pack_features({"features": ROWS.clone()}, "int8")


def test_overflow_is_refused_not_stored_as_infinity():
    with pytest.raises(OverflowError, match="float16"):
        pack_features({"features": ROWS * 1e5}, "float16")
