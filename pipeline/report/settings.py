"""Settings of a query and of a report."""

from typing import Annotated, Literal, Self

from annotated_types import Ge, Le
from pydantic import AfterValidator, ValidationInfo, model_validator

from pipeline.errors import UserError
from pipeline.settings import FolderToRead, Option, Settings, Text, named
from pipeline.storage.paths import WRITE_INSTEAD, as_address

Format = Literal["table", "csv", "json", "parquet"]


class QuerySettings(Settings):
    """Everything a query can be told."""

    pruned: Annotated[FolderToRead, Option("the output of a prune job", "FOLDER")]
    answers: Annotated[
        tuple[FolderToRead, ...], Option("the output of an answer job over it; repeatable", "FOLDER")
    ] = ()
    format: Annotated[
        Format,
        Option("of the result on standard output; a table is for people: it rounds numbers, and on a terminal it cuts "
               "long cells", "FORM"),
    ] = "table"  # fmt: skip
    sql: Annotated[str | None, Option("one reading statement", "SQL", positional=True)] = None

    @model_validator(mode="after")
    def _data_need_sql(self) -> Self:
        if self.sql is None and self.format != "table":
            raise UserError(f"--format {self.format}: the summary is for people; give SQL to get data")
        return self


def _is_html(text: str, info: ValidationInfo) -> str:
    address = as_address(named(info), text, WRITE_INSTEAD)
    if not address.endswith((".html", ".htm")):
        raise UserError(f"{named(info)} {text}: a report is one file of HTML; give it a name that ends in .html")
    return address


class ReportSettings(Settings):
    """Everything a report can be told."""

    pruned: Annotated[FolderToRead, Option("the output of a prune job", "FOLDER")]
    output: Annotated[Text, AfterValidator(_is_html), Option("the report; an older report there is replaced", "FILE")]
    answers: Annotated[
        tuple[FolderToRead, ...], Option("the output of an answer job over it; repeatable", "FOLDER")
    ] = ()
    control: Annotated[
        tuple[FolderToRead, ...],
        Option("answers over the same corpus pruned by another selector, such as random; repeatable", "FOLDER"),
    ] = ()
    choice: Annotated[FolderToRead | None, Option("the output of choose_budget", "FOLDER")] = None
    images: Annotated[int, Ge(0), Le(1000), Option("in the gallery", "N")] = 200
    seed: Annotated[int, Option("of the samples", "N")] = 0
