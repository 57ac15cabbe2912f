"""Settings of a query and of a report."""

from typing import Annotated, Literal, Self

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, ValidationInfo, model_validator

from pipeline.errors import UserError
from pipeline.settings import FolderToRead, Option, Settings, Text, named
from pipeline.storage.paths import WRITE_INSTEAD, as_address, is_url

Format = Literal["table", "csv", "json", "parquet"]


class QuerySettings(Settings):
    """Everything a query can be told."""

    pruned: Annotated[FolderToRead | None, Option("the output of a prune job; needed for all but --list", "FOLDER")] = (
        None
    )
    answers: Annotated[
        tuple[FolderToRead, ...], Option("the output of an answer job over it; repeatable", "FOLDER")
    ] = ()
    grades: Annotated[
        tuple[FolderToRead, ...], Option("the output of a grade job over these answers; repeatable", "FOLDER")
    ] = ()
    list_recipes: Annotated[
        bool, Option("show all recipes, or the SQL of the one that --recipe names", name="list")
    ] = False
    recipe: Annotated[Text | None, Option("run SQL that is kept under this name", "NAME")] = None
    sets: Annotated[tuple[Text, ...], Option("a parameter of the recipe; repeatable", "KEY=VALUE", name="set")] = ()
    format: Annotated[
        Format,
        Option("of the result on standard output; a table is for people: it rounds numbers, and on a terminal it cuts "
               "long cells", "FORM"),
    ] = "table"  # fmt: skip
    memory: Annotated[
        float | None,
        Gt(0),
        Option("GiB that DuckDB may hold before it spills; without it 80 % of the machine's memory", "GIB"),
    ] = None
    cache: Annotated[
        Text | None,
        Option("where summaries of large outputs are kept, which can be made anew at any time: a local folder, or "
               "none; without it zoo-prune in the user's cache folder", "FOLDER"),
    ] = None  # fmt: skip
    sql: Annotated[str | None, Option("one reading statement", "SQL", positional=True)] = None

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.sql is not None and (self.recipe is not None or self.list_recipes):
            other = "--list" if self.list_recipes else f"--recipe {self.recipe}"
            raise UserError(f"{other} comes with SQL of its own; leave out the SQL, or the option")
        if self.sets and (self.recipe is None or self.list_recipes):
            raise UserError(f"--set {self.sets[0]}: there is nothing to set without running a --recipe")
        if self.pruned is None and not self.list_recipes:
            raise UserError("--pruned must be given")
        if self.sql is None and self.recipe is None and not self.list_recipes and self.format != "table":
            raise UserError(f"--format {self.format}: the summary is for people; give SQL or a --recipe to get data")
        if self.cache is not None and is_url(self.cache):
            raise UserError(f"--cache {self.cache}: summaries are kept on a local disk; name a folder, or none")
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
