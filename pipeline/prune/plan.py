"""What a prune job is to do, settled before it starts Ray or writes a byte."""

from dataclasses import dataclass

from pipeline.artifact.index import read_index
from pipeline.budget import parse_budget
from pipeline.cluster.environment import environment, own_dtype
from pipeline.corpus.resolve import CorpusInput, resolve_corpus
from pipeline.families.checkpoint import identity, open_checkpoint
from pipeline.families.loading import check_buildable
from pipeline.prune.encode import EncodeSettings
from pipeline.prune.select import SelectSettings, require_attention, resolve_estimator
from pipeline.prune.settings import PruneSettings
from pipeline.settings import deciding
from pipeline.storage.hub import is_of_hub
from pipeline.storage.places import folder_at
from schemas.records import JobRecord
from schemas.tables import SCHEMA_VERSION
from zoo_ops import CENTERED

_FORMS = {"webdataset": ("webdataset",), "parquet": ("parquet",), "both": ("webdataset", "parquet"), "none": ()}


@dataclass(frozen=True)
class Plan:
    """The corpus and the model of a job, and how they are put together."""

    inputs: list[CorpusInput]
    job: JobRecord
    model: str  # the checkpoint, pinned to the commit that was found here
    dtype: str  # that the model runs in
    feature_dtype: str
    forms: tuple[str, ...]  # of the stored features: "webdataset", "parquet", both or neither
    select: SelectSettings

    @property
    def notes(self) -> list[str]:
        """What the user should know of the inputs."""
        return [item.note for item in self.inputs if item.note is not None]

    def encode(self, device: str, batch_size: int) -> EncodeSettings:
        """The settings of a model actor."""
        return EncodeSettings(
            model=self.model,
            dtype=self.dtype,
            batch_size=batch_size,
            feature_dtype=self.feature_dtype,
            select=self.select,
            device=device,
            keep_features=bool(self.forms),
        )


def _indexed(settings: PruneSettings) -> list[str]:
    """The inputs that the output was indexed from, if the corpus is one of which the commit must stay."""
    if not any(is_of_hub(pattern) for pattern in settings.corpus):
        return []
    index = read_index(folder_at(settings.output))
    return [] if index is None else [item.path for one in index.generations for item in one.inputs]


def plan(settings: PruneSettings) -> Plan:
    """Resolve the corpus and the model.

    Raises:
        UserError: bad input; nothing was begun.
    """
    inputs = resolve_corpus(settings.corpus, _indexed(settings))
    checkpoint, family = open_checkpoint(settings.model)
    check_buildable(checkpoint)
    require_attention(family, checkpoint, settings.selector)
    estimator, note = resolve_estimator(family.projector(checkpoint.config), settings.selector, settings.estimator)
    family.preparer(checkpoint)  # so that a wrong image processor shows before any work
    dtype = settings.dtype if settings.dtype != "auto" else own_dtype(checkpoint)
    decided = {**deciding(settings), "dtype": dtype, "estimator": estimator}
    if settings.selector in CENTERED:
        decided["centring"] = family.centring
    job = JobRecord(
        kind="prune",
        schema_version=SCHEMA_VERSION,
        settings=decided,
        model=identity(checkpoint, family),
        environment=environment(checkpoint),
        notes=[note] if note else [],
    )
    select = SelectSettings(
        budget=parse_budget(settings.max_tokens, "--max-tokens"),
        selector=settings.selector,
        estimator=estimator,
        seed=settings.seed,
        centring=family.centring,
    )
    return Plan(inputs, job, checkpoint.pinned, dtype, settings.feature_dtype, _FORMS[settings.features], select)
