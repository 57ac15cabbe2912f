"""The corpus of a prune job and its index: what is indexed, what is new, what had to be left out."""

from collections import Counter
from collections.abc import Callable
from functools import partial

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.index import Index, drop_generation, read_index, unindexed_inputs
from pipeline.corpus.reading import refused_columns
from pipeline.corpus.resolve import CorpusInput
from pipeline.errors import UserError
from pipeline.index.assign import PixelBound
from pipeline.index.build import extend_index
from pipeline.index.drawing import Draw
from pipeline.prune.read import prepared_bytes
from pipeline.prune.settings import PruneSettings
from pipeline.prune.stages import share_that_failed, too_many_fail
from schemas.statuses import why_not_posed
from schemas.wording import counted

MAX_TOLD = 10  # input files told one by one


def known(artifact: Artifact, inputs: list[CorpusInput]) -> tuple[Index | None, list[CorpusInput]]:
    """The index as it is now, and the inputs that are not in it.

    Raises:
        UserError: the index is damaged, or what it was made from has changed.
    """
    index = read_index(artifact.store)
    return index, unindexed_inputs(index, inputs)


def complete_index(
    settings: PruneSettings, artifact: Artifact, inputs: list[CorpusInput], model: str, say: Callable[[str], None]
) -> Index:
    """The index with all inputs in it; the caller holds the artifact's lock. Needs Ray.

    Args:
        settings: of the job.
        artifact: whose index it is.
        inputs: all of the corpus.
        model: the checkpoint, pinned, whose preparer says how many pixels an image takes.
        say: takes one line for the user.

    Raises:
        UserError: as `known` and `extend_index` do; too many of the new samples can't be used.
    """
    index, new_inputs = known(artifact, inputs)
    if not new_inputs:
        assert index is not None, "a corpus has at least one input"
        return index
    if index is not None and (settings.limit is not None or settings.sample is not None):
        option = "--limit: a corpus indexed with a limit" if settings.limit is not None else "--sample: a sample"
        raise UserError(f"{option} can't grow; choose another --output")
    say(f"indexing {counted(len(new_inputs), 'input files')}")
    artifact.reopen()
    index = extend_index(
        artifact.store,
        index,
        new_inputs,
        shard_size=settings.shard_size,
        limit=settings.limit,
        sample=None if settings.sample is None else Draw(settings.sample, settings.sample_seed or 0),
        bound=PixelBound(settings.shard_bytes, partial(prepared_bytes, model)),
        reading=settings.reading,
        say=say,
    )
    new = index.generations[-1]
    failed = sum(new.failed_samples.values())
    if too_many_fail(failed, new.num_samples, settings.max_error_rate):
        drop_generation(index)
        share = share_that_failed(failed, new.num_samples, Counter(new.failed_samples), settings.max_error_rate)
        raise UserError(f"{share}; mend the cause and run again, or raise the rate")
    missing = settings.reading.nowhere(new.num_records, new.named_seen)
    if missing and settings.limit is None and len(index.generations) == 1:
        drop_generation(index)
        raise UserError(refused_columns(settings.reading, missing))
    say(
        f"indexed {counted(index.num_samples, 'samples')}: {counted(index.num_images, 'distinct images')} in "
        f"{counted(index.num_shards, 'shards')}, {counted(index.num_prompts, 'prompts')}"
    )
    if new.failed_prompts:
        prompts = counted(sum(new.failed_prompts.values()), "prompts")
        say(f"{prompts} can't be posed: {why_not_posed(new.failed_prompts)}; the errors table says where")
    if (note := new.prompts_note()) is not None:
        say(note)
    if (note := settings.reading.columns_note(new.num_records, new.named_seen)) is not None:
        say(note)
    if new.unread_bytes:
        say(f"{new.unread_bytes:,} bytes of tars were not read, see the errors table")
    return index


def left_out(index: Index, inputs: list[CorpusInput], say: Callable[[str], None]) -> dict[str, str]:
    """The inputs that can't be read, each with the reason; tells the user of them."""
    asked = {item.path for item in inputs}
    found = {path: why for path, why in index.left_out.items() if path in asked}
    for why in list(found.values())[:MAX_TOLD]:
        say(f"left out: {why}")
    if found:
        say(
            f"{counted(len(found), 'input files', 'are')} left out, because the storage does not give their bytes; "
            "the next run tries again, and without what is left out in --corpus the output can be finished"
        )
    return found
