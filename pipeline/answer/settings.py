"""Settings of the answer job."""

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, SecretStr, ValidationInfo, model_validator

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
from schemas.wording import visible

ASKED = "what is asked"
ANSWERED = "what is answered"
DECODED = "how answers are decoded"
ENGINE = "what answers"


def one_by_one(texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    """The texts, if their metrics score answers one by one. Raises `UserError` where one does not."""
    for text in parse_metrics(texts).over_corpus:
        raise UserError(
            f"{named(info)} {text} takes the references of all prompts, but answers are scored as they come; answer "
            f"without it, then run zoo-prune grade --metric {text} over the answers"
        )
    return texts


def is_server(text: str | None, info: ValidationInfo) -> str | None:
    """As `checked_address`."""
    return None if text is None else checked_address(text, named(info))


def checked_address(text: str, option: str) -> str:
    """The address of a server, without a slash at its end.

    Args:
        text: as it was given.
        option: that it was given by.

    Raises:
        UserError: it is none, or holds a password.
    """
    expected = UserError(f"{option} {visible(text)}: expected http://HOST:PORT/v1, or https")
    if not text.isprintable() or " " in text:
        raise expected
    try:
        parts = urlsplit(text)
        if "@" in parts.netloc:
            raise UserError(f"{option}: the address holds a name or password; put the key into OPENAI_API_KEY")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise expected
        parts.hostname.encode("idna")
        if parts.port == 0:
            raise expected
    except ValueError as error:  # of its port, its brackets, or a name that no host can have
        raise expected from error
    return text.rstrip("/")


def is_key(key: SecretStr | None) -> SecretStr | None:
    """The key of a server. Raises `UserError`, which does not show it, where it can't stand in a header."""
    if key is not None and not re.fullmatch("[!-~]+", key.get_secret_value()):
        raise UserError(
            "OPENAI_API_KEY holds a blank or a character that is not ASCII, which no key has; set it to the key alone"
        )
    return key


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

    max_new_tokens: Annotated[Count, Option("longest answer", "N", DECODED, decides=True)] = 64
    temperature: Annotated[
        float, Ge(0), Option("0 takes the likeliest token, more draws among more of them", "T", DECODED, decides=True)
    ] = 0.0
    top_p: Annotated[
        float,
        Gt(0),
        Le(1),
        Option("draw among the likeliest tokens that have this probability together", "P", DECODED, decides=True),
    ] = 1.0
    seed: Annotated[int, Option("of draws; each prompt has its own from it", "N", DECODED, decides=True)] = 0
    stop: Annotated[
        tuple[Text, ...], Option("an answer ends before it; can be given several times", "TEXT", DECODED, decides=True)
    ] = ()
    system: Annotated[Text | None, Option("what the system says before each prompt", "TEXT", DECODED, decides=True)] = (
        None
    )
    json_schema: Annotated[
        FolderToRead | None, Option("answers are JSON of the schema in this file", "FILE", DECODED, decides=True)
    ] = None
    regex: Annotated[Text | None, Option("answers match this regular expression", "REGEX", DECODED, decides=True)] = (
        None
    )

    engine: Annotated[
        Literal["transformers", "vllm", "openai"],
        Option(
            "transformers runs in the workers, vllm in workers of an environment of its own, openai asks a server",
            "ENGINE",
            ENGINE,
            decides=True,
        ),
    ] = "transformers"
    engine_python: Annotated[
        Text | None, Option("interpreter of the environment that has vLLM, on every node", "PATH", ENGINE)
    ] = None
    server: Annotated[
        Text | None,
        AfterValidator(is_server),
        Option("the chat server's address; the key, if it asks for one, is in OPENAI_API_KEY", "URL", ENGINE),
    ] = None
    served_model: Annotated[
        Text | None, Option("the server's name of the model; without it that of examples/serve", "NAME", ENGINE)
    ] = None
    concurrency: Annotated[Count, Option("requests at once, of all workers together", "N", ENGINE)] = 16
    request_timeout_sec: Annotated[
        float, Gt(0), Option("for one request to the server", "SEC", ENGINE, name="request_timeout")
    ] = 600.0
    trust_server_template: Annotated[
        bool,
        Option(
            "answer where the server does not say which tokens it makes of a prompt, so that they can't be checked",
            "",
            ENGINE,
            decides=True,
        ),
    ] = False
    api_key: Annotated[SecretStr | None, AfterValidator(is_key)] = None  # of the server; in no record

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
    def _draws_have_a_temperature(self) -> Self:
        if self.top_p < 1 and not self.temperature:
            raise UserError(
                f"--top-p {self.top_p:g}: nothing is drawn without a --temperature; give one, or leave --top-p out"
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
