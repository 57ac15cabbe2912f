"""What every job's command line shares: one sentence and status 2 for bad input, paths that survive a submission."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UserError
from pipeline.storage.paths import READ_INSTEAD, WRITE_INSTEAD, refuse_url

EXIT_INCOMPLETE = 1  # some shards were given up or inputs left out; the same command tries them again
EXIT_BAD_INPUT = 2


def say(line: str) -> None:
    """One line for the user, on standard error (standard output is for results)."""
    print(line, file=sys.stderr, flush=True)


def run(main: Callable[[list[str]], int]) -> None:
    """Exit with the status of a job's main; turn bad input into one sentence and exit status 2."""
    quiet_libraries()
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(130)


def exit_status(failures: dict[int, str], stopped_by: int | None, left_out: int = 0) -> int:
    """Exit status of a job that ran, after saying what is left.

    0; 1 with shards given up or input files left out; 128 + signal number.
    """
    if failures:
        numbers = ", ".join(map(str, sorted(failures)))
        say(f"{len(failures):,} shards were given up: {numbers}; their tracebacks are in _failures/")
    incomplete = bool(failures) or left_out > 0
    if incomplete or stopped_by is not None:
        say("run the same command again to resume")
    return 128 + stopped_by if stopped_by is not None else EXIT_INCOMPLETE if incomplete else 0


def quiet_libraries() -> None:
    """Before Transformers and Ray start: no progress bars, advice or usage report, in this process and its workers."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its core prints warnings about its own actors


def ray_address() -> str | None:
    """Address of the cluster this job was submitted to or told to use; None: a private local one."""
    return os.environ.get("RAY_ADDRESS") or None


def output_path(text: str) -> str:
    """`--output` as an absolute path.

    Raises:
        UserError: a URL, or relative in a submitted job: it would lie in a temporary copy of the working directory.
    """
    refuse_url("--output", text, WRITE_INSTEAD)
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not Path(text).expanduser().is_absolute():
        raise UserError(
            f"--output {text} is relative, but a submitted job runs in a temporary copy of the working directory "
            "that is deleted afterwards; give an absolute path on storage that every node sees"
        )
    return str(Path(text).expanduser().absolute())


def input_path(option: str, text: str) -> str:
    """A folder that a job reads, as an absolute path.

    Raises:
        UserError: a URL.
    """
    refuse_url(option, text, READ_INSTEAD)
    return str(Path(text).expanduser().absolute())


def parser(description: str, epilog: str) -> argparse.ArgumentParser:
    """An argument parser that keeps the layout of its examples."""
    return argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
