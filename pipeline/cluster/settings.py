"""Settings of the command that tells how far a job is."""

from typing import Annotated

from pipeline.settings import FolderToRead, Option, Settings


class StatusSettings(Settings):
    """Everything it can be told."""

    output: Annotated[FolderToRead, Option("the output of a prune or an answer job", "FOLDER")]
    as_json: Annotated[bool, Option("one JSON object on standard output, for programs", name="json")] = False
