"""What every job's command shares: one sentence and status 2 for bad input, its name, what it tells at its end."""

import os
import sys
from pathlib import Path

import click

from jobs.options import EXIT_BAD_INPUT, execute
from pipeline.errors import UserError
from pipeline.storage import StorageError
from schemas.wording import counted

EXIT_INCOMPLETE = 1  # shards were given up or inputs left out, or every input failed


def say(line: str) -> None:
    """One line for the user, on standard error (standard output is for results)."""
    print(line, file=sys.stderr, flush=True)


def run(command: click.Command) -> None:
    """Exit with the status of a command; turn bad input, and storage that fails, into one sentence and status 2."""
    quiet_libraries()
    try:
        sys.exit(execute(command, sys.argv[1:], called_as()))
    except (UserError, StorageError) as error:
        said = f"{error.filename}: {error.strerror}" if isinstance(error, StorageError) else error
        print(f"error: {said}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def called_as() -> str:
    """The program as the user named it: `zoo-prune`, `python -m jobs.prune_corpus` or `python jobs/prune_corpus.py`."""
    module = sys.modules["__main__"].__spec__
    if module is not None:
        return f"python -m {module.name}"
    return f"python {sys.argv[0]}" if sys.argv[0].endswith(".py") else Path(sys.argv[0]).name


def exit_status(
    failures: dict[int, str], stopped_by: int | None, left_out: int = 0, *, all_failed: str | None = None
) -> int:
    """Exit status of a job that ran, after saying what is left.

    0; 1 with shards given up or input files left out, or when every input failed; 128 + signal number.

    Args:
        failures: shards that were given up, with the reason.
        stopped_by: signal number.
        left_out: input files that could not be read.
        all_failed: a sentence, when nothing that was asked for could be done.
    """
    if failures:
        numbers = ", ".join(map(str, sorted(failures)))
        say(f"{counted(len(failures), 'shards', 'were')} given up: {numbers}; tracebacks are in _failures/")
    incomplete = bool(failures) or left_out > 0
    if incomplete or stopped_by is not None:
        say("run the same command again to resume")
    if stopped_by is not None:
        return 128 + stopped_by
    if all_failed is not None:
        say(all_failed)
    return EXIT_INCOMPLETE if incomplete or all_failed is not None else 0


def quiet_libraries() -> None:
    """Before Transformers and Ray start: no progress bars, advice or usage report, in this process and its workers."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its core prints warnings about its own actors
