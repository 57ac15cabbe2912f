"""How far a low-rank projector moves the sensitivity, and with it the kept tokens.

    python benchmarks/low_rank.py        both projectors, benchmarks/results/low_rank.json

The published LLaVA-NeXT code of ZOO-Prune estimates the sensitivity through a projector both of whose layers are cut
to their 128 largest singular values (they are 1024 -> 4096 and 4096 -> 4096); cosines are those of the full projector.
Here the same cut at several ranks, against the full projector, with the closed form in both cases: no draw of
directions comes in between. Two projectors:

* random weights of that size, on random features of tokens of unlike scale. Their singular values fall off slowly, as
  those of trained layers do not, so a low rank loses more of them; they say nothing about a trained LLaVA;
* the bundled model's own, trained, on images of the bundled corpus. Both layers are 128 -> 128. Of LLaVA's, rank 128
  leaves 1/8 and 1/32 of the singular values: here 16 and 4; the same rank in both layers is measured too.

Both say how far the cut moves kept sets; what it costs a LLaVA-NeXT in accuracy neither can say.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    # In place of this folder, which holds a file by the name of a standard module (selectors).
    sys.path[0] = str(ROOT)

import argparse
import io
import json
import tarfile
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from benchmarks.ops import environment, show
from pipeline.families.checkpoint import open_checkpoint
from zoo_ops import ProjectorSpec, estimate_sensitivity, rank_tokens, spearman

# Of the first and of the second layer; the published ones are 128 and 128, "ideally 64 to 256".
LLAVA_RANKS = ((64, 64), (128, 128), (256, 256), (512, 512), (1024, 4096))
BUNDLED_RANKS = ((8, 2), (16, 4), (16, 16), (32, 8), (32, 32), (64, 64), (128, 128))
SELECTORS = ("zoo", "sensitivity")
BUDGETS = (0.25, 0.125, 0.0625)
IMAGES = 64
OUTPUT = ROOT / "benchmarks" / "results" / "low_rank.json"


class Singular:
    """A layer by its singular values."""

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear
        self._left, self._values, self._right = torch.linalg.svd(linear.weight.detach(), full_matrices=False)

    def cut(self, rank: int) -> nn.Linear:
        """The layer with all but its `rank` largest singular values at 0."""
        low = nn.Linear(self._linear.in_features, self._linear.out_features, bias=self._linear.bias is not None)
        low.weight.copy_((self._left[:, :rank] * self._values[:rank]) @ self._right[:rank])
        if self._linear.bias is not None:
            low.bias.copy_(self._linear.bias)
        return low

    def energy(self, rank: int) -> float:
        """Share of the weight's squared norm that its `rank` largest singular values hold."""
        squares = self._values.double().square()
        return float(squares[:rank].sum() / squares.sum())

    @property
    def rank(self) -> int:
        return len(self._values)


def compare(
    name: str, ranks: Sequence[tuple[int, int]], spec: ProjectorSpec, features_BND: Tensor, projected_BNO: Tensor
) -> list[dict[str, Any]]:
    """A row for drawn directions, and one for every pair of ranks, of which the last is the full rank."""
    assert spec.linear_in is not None
    assert spec.linear_out is not None
    first, second = Singular(spec.linear_in), Singular(spec.linear_out)
    exact = estimate_sensitivity(features_BND, spec)
    tokens = features_BND.shape[1]
    counts = [round(tokens * budget) for budget in BUDGETS]
    exact_picks = {by: rank_tokens(projected_BNO, exact, max_tokens=max(counts), selector=by) for by in SELECTORS}

    def measured(estimate: str, moved: Tensor, **more: Any) -> dict[str, Any]:
        correlations = [float(spearman(torch.stack(pair))[0, 1]) for pair in zip(exact, moved, strict=True)]
        row: dict[str, Any] = {"projector": name, "estimate": estimate, "images": len(exact), "tokens": tokens, **more}
        row["value_ratio"] = float((moved / exact).mean())
        row |= {"spearman_mean": sum(correlations) / len(correlations), "spearman_min": min(correlations)}
        for by, exact_ranking in exact_picks.items():
            ranking = rank_tokens(projected_BNO, moved, max_tokens=max(counts), selector=by)
            shares = {str(n): overlap(exact_ranking.indices_BK, ranking.indices_BK, n) for n in counts}
            row[f"{by}_kept_alike"] = shares
        show(row)
        return row

    # For comparison: what the draw of the published 64 directions alone moves, through the full projector.
    rows = [measured("64 directions, full rank", estimate_sensitivity(features_BND, spec, estimator="directional"))]
    for rank_in, rank_out in ranks:
        low = ProjectorSpec(first.cut(rank_in), spec.activation, second.cut(rank_out))
        estimate = f"rank {rank_in} of {first.rank}, {rank_out} of {second.rank}"
        energies = [first.energy(rank_in), second.energy(rank_out)]
        rows.append(measured(estimate, estimate_sensitivity(features_BND, low), energy=energies))
    assert ranks[-1] == (first.rank, second.rank)
    assert rows[-1]["spearman_min"] > 0.999, "at full rank the projector must be itself"
    return rows


def overlap(picks_BK: Tensor, others_BK: Tensor, count: int) -> float:
    """Mean share of the first `count` tokens that both rankings keep."""
    pairs = zip(picks_BK[:, :count].tolist(), others_BK[:, :count].tolist(), strict=True)
    shares = [len(set(one) & set(other)) / count for one, other in pairs]
    return sum(shares) / len(shares)


def of_random_weights() -> tuple[ProjectorSpec, Tensor]:
    """A projector of LLaVA's size and one image of tokens of unlike scale."""
    torch.manual_seed(0)
    spec = ProjectorSpec(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 4096))
    return spec, torch.randn(1, 576, 1024) * torch.rand(1, 576, 1).add(0.5)


def of_bundled_model() -> tuple[ProjectorSpec, Tensor, Tensor]:
    """The bundled model's projector, and what the first images of the bundled corpus are in front of and behind it."""
    checkpoint, family = open_checkpoint(str(ROOT / "examples" / "tiny-llava"))
    preparer = family.preparer(checkpoint)
    encoder = family.encoder(checkpoint, torch.device("cpu"), torch.float32)
    images = corpus_images(IMAGES)
    pixels, sizes = [preparer.prepare(one) for one in images], [(one.height, one.width) for one in images]
    encoded = encoder.encode(encoder.pack(pixels, sizes))
    features, projected = zip(*((one.features_ND, one.projected_NO) for one in encoded), strict=True)
    return encoder.projector, torch.stack(features), torch.stack(projected)


def corpus_images(count: int) -> list[Image.Image]:
    """The first images of the bundled corpus that decode."""
    images: list[Image.Image] = []
    for path in sorted((ROOT / "examples" / "scenes").glob("scenes-*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name.endswith((".jpg", ".png")) else None
                if file is None or len(images) == count:
                    continue
                try:
                    images.append(Image.open(io.BytesIO(file.read())).convert("RGB"))
                except (UnidentifiedImageError, OSError):
                    continue
    return images


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--output", default=str(ROOT / "benchmarks/results/low_rank.json"), help="JSON file, - for none"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where = environment(torch.device("cpu"))
    spec, features = of_random_weights()
    rows = compare("random weights", LLAVA_RANKS, spec, features, spec(features))
    rows += compare("bundled model", BUNDLED_RANKS, *of_bundled_model())
    if arguments.output != "-":
        Path(arguments.output).write_text(json.dumps({"environment": where, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
