"""What vLLM is given of a question, in our workers and by way of `ray.data.llm`. Nothing here needs vLLM."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def with_one_token(ids: Sequence[int], image_token_id: int, *, rows: int) -> list[int]:
    """A prompt's token ids with one image token, in whose place vLLM puts as many as the image has rows."""
    first = ids.index(image_token_id)
    behind = first + rows
    assert set(ids[first:behind]) == {image_token_id}, "a family that vLLM serves has its image tokens in one run"
    return [*ids[: first + 1], *ids[behind:]]


def key_of(image_id: str, image: Mapping[str, Tensor]) -> str:
    """A name for what vLLM is given of an image, under which it keeps what it has computed of it.

    Under a name that it knows, vLLM takes what it has and looks at nothing else. So the name holds a digest of all
    tensors: whatever chose other rows, be it budget, selector, seed, estimator or model, gave them another name.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(image.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return f"{image_id}-{len(image['image_embeds'])}-{digest.hexdigest()[:32]}"
