"""`zoo-prune`: all jobs under one name."""

if __name__ == "__main__":  # before anything large is imported
    from jobs.leaving import leave_on_signals

    leave_on_signals()

import click

from jobs import (
    answer_corpus,
    choose_budget,
    grade_answers,
    job_status,
    prune_corpus,
    query_selections,
    report_corpus,
)
from jobs.console import run


class Jobs(click.Group):
    """The jobs in the order in which they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, unsorted."""
        return list(self.commands)


COMMAND = click.version_option(package_name="zoo-prune", prog_name="zoo-prune")(
    Jobs(
        "zoo-prune",
        commands=[
            prune_corpus.COMMAND,
            answer_corpus.COMMAND,
            grade_answers.COMMAND,
            query_selections.COMMAND,
            report_corpus.COMMAND,
            choose_budget.COMMAND,
            job_status.COMMAND,
        ],
        help="Prune the visual tokens of an image-prompt corpus once, answer and query it ever after.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
)


def main() -> None:
    """The console command."""
    run(COMMAND)


if __name__ == "__main__":
    main()
