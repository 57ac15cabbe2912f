"""Settings of a query."""

from typing import Annotated, Literal, Self

from pydantic import model_validator

from pipeline.errors import UserError
from pipeline.settings import FolderToRead, Option, Settings

Format = Literal["table", "csv", "json", "parquet"]


class QuerySettings(Settings):
    """Everything a query can be told."""

    pruned: Annotated[FolderToRead, Option("the output of a prune job", "FOLDER")]
    answers: Annotated[
        tuple[FolderToRead, ...], Option("the output of an answer job over it; repeatable", "FOLDER")
    ] = ()
    grades: Annotated[
        tuple[FolderToRead, ...], Option("the output of a grade job over these answers; repeatable", "FOLDER")
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
