"""Settings of the answer job."""

from typing import Annotated, Literal

from pydantic import AfterValidator, ValidationInfo

from pipeline.errors import UserError
from pipeline.grading.grader import METRIC_HELP, Grader, MetricTexts, parse_metrics
from pipeline.settings import WORK, BudgetText, ClusterSettings, Count, FolderToRead, FolderToWrite, Option, Text, named

ANSWERED = "what is answered"


def _one_by_one(texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    for text in parse_metrics(texts).over_corpus:
        raise UserError(
            f"{named(info)} {text} takes the references of all prompts, but answers are scored as they come; answer "
            f"without it, then run zoo-prune grade --metric {text} over the answers"
        )
    return texts


class AnswerSettings(ClusterSettings):
    """Everything the answer job can be told."""

    pruned: Annotated[FolderToRead, Option("the output of a prune job", "FOLDER")]
    model: Annotated[Text, Option("the checkpoint that pruned it", "PATH|ID")]
    output: Annotated[FolderToWrite, Option("where the answers lie; the same folder resumes", "FOLDER")]

    tokens: Annotated[
        BudgetText,
        Option("visual tokens of an image the model sees; all means all that are stored", "COUNT|RATIO|all", ANSWERED,
               decides=True),
    ] = "all"  # fmt: skip
    max_new_tokens: Annotated[Count, Option("longest answer", "N", ANSWERED, decides=True)] = 64
    metric: Annotated[
        MetricTexts,
        AfterValidator(_one_by_one),
        Option(METRIC_HELP, "[TYPE=]NAME", ANSWERED, decides=True),
    ] = ()
    positions: Annotated[
        Literal["compact", "original"] | None,
        Option(
            "number kept tokens one after the other, or as before pruning; without it the family's own way, compact, "
            "except Qwen-VL models: they always keep their place on the image's grid",
            "WAY",
            ANSWERED,
            decides=True,
        ),
    ] = None

    batch_size: Annotated[Count, Option("prompts a batch at most", "N", WORK, decides=True)] = 32
    batch_tokens: Annotated[
        Count,
        Option("tokens a batch at most, or one prompt: prompts x the longest with its answer", "N", WORK, decides=True),
    ] = 32_768

    @property
    def grader(self) -> Grader:
        """How the answers are scored."""
        return parse_metrics(self.metric)
