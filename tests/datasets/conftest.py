"""Artifacts of any number of shards, in which every prompt and every feature can be told from every other."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.payload import pack_features
from pipeline.artifact.tables import write_features, write_table
from pipeline.datasets.torch_dataset import Sample
from schemas.columns import table_of
from schemas.records import CommitRecord, JobRecord
from schemas.selections import ErrorRow, FeatureRow, Grid, Position, PromptRow, SelectionRow
from schemas.tables import SCHEMA_VERSION
from tests.small_artifacts import SEGMENT

KEPT, TOKENS, WIDTH = 3, 4, 2
RANKING = [3, 0, 1]
GAIN = [0.5, 0.25, 0.125]
Make = Callable[..., str]


def features_of(shard: int, number: int) -> torch.Tensor:
    """What is stored of an image, in pick order."""
    rows = torch.arange(KEPT * WIDTH, dtype=torch.float32).reshape(KEPT, WIDTH)
    return rows + 100 * shard + 10 * number


def image_id_of(shard: int, number: int) -> str:
    return f"{shard:032x}{number:032x}"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write the output of a prune job and return its address.

    The prompts of shard s, of which there are counts[s], are `s-0`, `s-1`, ...; every two are about one image.
    """

    def write(
        counts: Sequence[int] = (5, 3, 0, 7),
        *,
        root: str | None = None,
        form: str = "webdataset",
        dtype: str = "float32",
        feature_dtype: str = "model",
        finish: bool = True,
        elsewhere: tuple[str, int] | None = None,
    ) -> str:
        address = root or str(tmp_path / "pruned")
        artifact = Artifact(address)
        settings = {"dtype": dtype, "max_tokens": str(KEPT), "features": form, "selector": "zoo"}
        artifact.adopt_job(JobRecord("prune", SCHEMA_VERSION, settings, {"config": "c"}, {}))
        for shard, count in enumerate(counts):
            artifact.commit(_shard(artifact, shard, count, form, dtype, feature_dtype, elsewhere))
        if finish:
            artifact.finish({"num_shards": len(counts)})
        return address

    return write


def _shard(
    artifact: Artifact, shard: int, count: int, form: str, dtype: str, feature_dtype: str,
    elsewhere: tuple[str, int] | None,
) -> CommitRecord:  # fmt: skip
    selections, features, prompts = [], [], []
    for number in range((count + 1) // 2):
        image_id = image_id_of(shard, number)
        selections.append(
            SelectionRow(
                image_id=image_id, source=f"{shard}/{number}", shard=shard, width=8, height=8, num_tokens=TOKENS,
                num_kept=KEPT, num_structure=0, grid=Grid(rows=2, cols=2, tiles=1), segments=[SEGMENT], structure=[],
                image_grid_thw=None, ranking=RANKING, gain=GAIN, sensitivity=[1.0] * TOKENS,
                position=[Position(tile=0, row=token // 2, col=token % 2) for token in RANKING], sensitivity_min=1.0,
                sensitivity_mean=1.0, sensitivity_max=1.0, last_gain=GAIN[-1],
            )
        )  # fmt: skip
        payload = pack_features({"features": features_of(shard, number).to(getattr(torch, dtype))}, feature_dtype)
        features.append(
            FeatureRow(image_id=image_id, num_kept=KEPT, width=WIDTH, dtype=feature_dtype, features=payload)
        )
    for number in range(count):
        prompt_id = f"{shard}-{number}"
        is_elsewhere = elsewhere is not None and elsewhere[0] == prompt_id
        image_shard = elsewhere[1] if is_elsewhere and elsewhere is not None else shard
        prompts.append(
            PromptRow(
                prompt_id=prompt_id, image_id="ee" * 32 if is_elsewhere else image_id_of(shard, number // 2),
                prompt=f"what is {prompt_id} ?", references=[f"answer {prompt_id}"], type="t", source="s", status="ok",
                shard=shard, image_shard=image_shard,
            )
        )  # fmt: skip
    refused = PromptRow(
        prompt_id=f"{shard}-bad", image_id=None, prompt="", references=[], type=None, source="s",
        status="empty_prompt", shard=shard, image_shard=None,
    )  # fmt: skip
    table, payloads = table_of(SelectionRow, selections), table_of(FeatureRow, features)
    files = {
        "selections": write_table(artifact.store, "selections", shard, table),
        "prompts": write_table(artifact.store, "prompts", shard, table_of(PromptRow, [refused, *prompts])),
        "errors": write_table(artifact.store, "errors", shard, table_of(ErrorRow, [])),
    }
    files |= write_features(artifact.store, shard, table, payloads, () if form == "none" else (form,))
    counts = {"images": len(selections), "prompts": count + 1, "prompts.ok": count, "prompts.empty_prompt": 1}
    return CommitRecord(shard, files, counts)


def ids(samples: Sequence[Sample]) -> list[str]:
    return [sample.prompt.prompt_id for sample in samples]
