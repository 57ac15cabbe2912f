"""Make one HTML file about a pruned corpus and answers over it: what was kept, what it costs, whether it is safe.

The file asks nothing of any network and takes at most 20 MB.
"""

if __name__ == "__main__":  # before anything large is imported
    from jobs.leaving import leave_on_signals

    leave_on_signals()

from jobs.console import run, say
from jobs.options import JobCommand, execute
from pipeline.report.settings import ReportSettings
from schemas.wording import counted

EXAMPLES = """examples:
  <program> --pruned out/scenes --output out/report.html
  <program> --pruned out/scenes --answers out/answers-all --answers out/answers-32 \\
      --output out/report.html
  <program> --pruned out/scenes --answers out/answers-32 --control out/random-32 \\
      --choice out/choice --images 400 --output out/report.html
"""


def work(settings: ReportSettings) -> int:
    """Look, write; the exit status."""
    from pipeline.report.html import write_report  # here, so that --help need not wait for Arrow and DuckDB

    written = write_report(settings, say)
    pictures = counted(written.images, "images")
    say(f"{written.address}: {written.size_bytes / 1e6:.1f} MB, {pictures} in its gallery")
    return 0


COMMAND = JobCommand("report", ReportSettings, work, __doc__, EXAMPLES)


def main(arguments: list[str]) -> int:
    """Make the report with these arguments; the exit status."""
    return execute(COMMAND, arguments)


if __name__ == "__main__":
    run(COMMAND)
