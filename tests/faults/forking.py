"""Programs as `python -m` runs them, each in a process that is forked from one with what they need imported.

python tests/faults/forking.py     reads what to run from standard input, a line each; writes exit statuses
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory

REPO = Path(__file__).resolve().parents[2]
NEEDED = ("pipeline.prune.job", "tests.in_this_process", "transformers.models.llava.modeling_llava")


class Forking:
    """A process to fork programs from, until the block ends.

    Args:
        environment: of the process, so of all its programs.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def __enter__(self) -> "Forking":
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(
            command, cwd=REPO, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(
        self, arguments: list[str], environment: dict[str, str], timeout_sec: int
    ) -> subprocess.CompletedProcess[str]:
        """Run a module with arguments to its end, with more in its environment."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with TemporaryDirectory() as folder:
            given = {"arguments": arguments, "environment": environment, "folder": folder, "timeout_sec": timeout_sec}
            print(json.dumps(given), file=self._process.stdin, flush=True)
            status = int(self._process.stdout.readline())
            said, errors = ((Path(folder) / name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(arguments, status, said, errors)


def fork(given: dict) -> int:
    """Run one program; its exit status, or the negative number of the signal that ended it."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            signal.alarm(given["timeout_sec"])  # which ends this process
            for handle, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(Path(given["folder"]) / name, os.O_WRONLY | os.O_CREAT), handle)
            os.environ.update(given["environment"])
            sys.argv = given["arguments"]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 1 if leaving.code else 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    sys.path[0] = str(REPO)
    from importlib import import_module

    for needed in NEEDED:
        import_module(needed)
    del sys.modules["tests.in_this_process"]  # which programs run as their main module
    for line in sys.stdin:
        print(fork(json.loads(line)), flush=True)
