"""Settings of the answer job."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ValidationInfo, model_validator

from pipeline.budget import AnswerBudget, Budget, MeanBudget, parse_answer_budget
from pipeline.corpus.reading import Reading
from pipeline.errors import UserError
from pipeline.grading.grader import METRIC_HELP, Grader, MetricTexts, parse_metrics
from pipeline.settings import (
    WORK,
    AnswerBudgetText,
    ClusterSettings,
    Count,
    FileToRead,
    FolderToRead,
    FolderToWrite,
    Option,
    Text,
    flag,
    named,
)

ASKED = "what is asked"
ANSWERED = "what is answered"


def one_by_one(texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    """The texts, if their metrics score answers one by one. Raises `UserError` where one does not."""
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

    prompts: Annotated[
        FileToRead | None,
        Option(
            "asked in place of the prompts of the corpus: JSONL or Parquet, in each row image_id or source, prompt or "
            "messages, and references, type, id if there are any",
            "FILE",
            ASKED,
        ),
    ] = None
    where: Annotated[
        Text | None,
        Option(
            "ask only prompts for which this condition holds, on prompt_id, prompt, messages, references, type and the "
            "columns that the view images has of their image, as in: type = 'yesno' and last_gain > 0.1",
            "SQL",
            ASKED,
        ),
    ] = None
    prompt_column: Annotated[
        Text | None, Option("of --prompts, with the prompt or the turns of a conversation", "NAME", ASKED)
    ] = None
    reference_column: Annotated[Text | None, Option("of --prompts, with what is answered", "NAME", ASKED)] = None
    type_column: Annotated[Text | None, Option("of --prompts, with the type of the prompt", "NAME", ASKED)] = None
    id_column: Annotated[Text | None, Option("of --prompts, with the id of the prompt", "NAME", ASKED)] = None

    tokens: Annotated[
        AnswerBudgetText,
        Option(
            "visual tokens of an image the model sees; all means all that are stored, mean:64 so many on average and "
            "gain:0.2 those that gain so much, busy images more than plain ones",
            "COUNT|RATIO|all|mean:N|gain:G",
            ANSWERED,
            decides=True,
        ),
    ] = "all"
    min_tokens: Annotated[
        Count | None, Option("of an image, with --tokens mean:N or gain:G", "N", ANSWERED, decides=True)
    ] = None
    max_new_tokens: Annotated[Count, Option("longest answer", "N", ANSWERED, decides=True)] = 64
    metric: Annotated[
        MetricTexts,
        AfterValidator(one_by_one),
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

    @model_validator(mode="after")
    def _least_is_of_a_threshold(self) -> Self:
        budget = self.budget
        if self.min_tokens is not None and isinstance(budget, Budget):
            raise UserError(
                f"--min-tokens {self.min_tokens}: --tokens {self.tokens} keeps the same share of every image; "
                "give --tokens mean:N or gain:G, or leave --min-tokens out"
            )
        if isinstance(budget, MeanBudget) and budget.tokens < budget.min_tokens:
            raise UserError(
                f"--tokens {self.tokens}: images keep at least --min-tokens {self.min_tokens}, so their mean can't be "
                "less; ask for a larger mean or a smaller minimum"
            )
        return self

    @model_validator(mode="after")
    def _columns_are_of_a_file(self) -> Self:
        for name in ("prompt_column", "reference_column", "type_column", "id_column"):
            value = getattr(self, name)
            if value is not None and self.prompts is None:
                raise UserError(f"{flag(name)} {value}: it is a column of --prompts; give that file too")
        return self

    @property
    def reading(self) -> Reading:
        """How the rows of `prompts` are read."""
        return Reading(
            prompt_column=self.prompt_column,
            reference_column=self.reference_column,
            type_column=self.type_column,
            id_column=self.id_column,
        )

    @property
    def budget(self) -> AnswerBudget:
        """What `tokens` and `min_tokens` say."""
        return parse_answer_budget(self.tokens, "--tokens", self.min_tokens or 1)

    @property
    def grader(self) -> Grader:
        """How the answers are scored."""
        return parse_metrics(self.metric)
