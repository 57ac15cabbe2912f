"""Settings of the grade job."""

from typing import Annotated

from pipeline.grading.grader import METRIC_HELP, Grader, MetricTexts, parse_metrics
from pipeline.settings import FolderToRead, FolderToWrite, Option, Settings


class GradeSettings(Settings):
    """Everything the grade job can be told."""

    answers: Annotated[FolderToRead, Option("the output of an answer job, which stays as it is", "FOLDER")]
    output: Annotated[FolderToWrite, Option("where the grades lie; the same folder resumes", "FOLDER")]
    metric: Annotated[MetricTexts, Option(METRIC_HELP, "[TYPE=]NAME", decides=True)] = ()
    against: Annotated[
        FolderToRead | None,
        Option(
            "the output of another answer job over the same corpus, whose answers stand for the references: those at "
            "all tokens, where nothing better is known",
            "FOLDER",
        ),
    ] = None

    @property
    def grader(self) -> Grader:
        """How the answers are scored."""
        return parse_metrics(self.metric)
