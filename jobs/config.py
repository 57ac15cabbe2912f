"""`--config` and `--save-config`: the settings of a job in a YAML file, under the names of its options."""

import os
from typing import Any

from pipeline.errors import UserError
from pipeline.settings import Settings, is_of_the_work, key, no_such_setting, options
from pipeline.storage.paths import READ_INSTEAD, WRITE_INSTEAD, refuse_url

_FORM = "a setting a line, as in `max_tokens: 64`"


def read_config(path: str, settings: type[Settings]) -> dict[str, Any]:
    """The settings that a file names, by their fields. Their values are checked when the settings are made.

    Raises:
        UserError: the file can't be read, is no YAML of this form, or names a setting that there is not.
    """
    refuse_url("--config", path, READ_INSTEAD)
    try:
        with open(path, "rb") as stream:
            text = stream.read()
    except OSError as error:
        raise UserError(f"--config {path} can't be read: {error.strerror or error}; name a YAML file") from error
    fields = {key(name, option): name for name, _, option in options(settings)}
    kinds = {name: info.annotation for name, info, _ in options(settings)}
    found: dict[str, Any] = {}
    for name, value in _parse(path, text).items():
        if name not in fields:
            raise UserError(f"--config {path}: {no_such_setting(name, list(fields))}")
        if isinstance(value, bool) and kinds[fields[name]] is not bool:
            raise UserError(
                f"--config {path}: {name} is {str(value).lower()}, as YAML reads yes, no, on and off too; "
                "put a text in quotes, write a number in digits"
            )
        found[fields[name]] = value
    return found


def save_config(path: str, made: Settings) -> None:
    """Write the settings, defaults included, so that `--config` makes the same ones; what is of one call is left out.

    Raises:
        UserError: the file can't be written, or holds something else.
    """
    import yaml

    refuse_url("--save-config", path, WRITE_INSTEAD)
    kept = [one for one in options(type(made)) if not one[2].once]
    kept.sort(key=lambda one: is_of_the_work(one[0]))
    values = {key(name, option): getattr(made, name) for name, _, option in kept}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=2**20).encode()
    try:
        with open(path, "xb") as stream:
            stream.write(text)
    except FileExistsError as error:
        if not _holds(path, text):
            raise UserError(f"--save-config {path} exists and holds something else; name a new file") from error
    except OSError as error:
        raise UserError(
            f"--save-config {path} can't be written: {error.strerror or error}; name a file in a folder that is there"
        ) from error


def _holds(path: str, text: bytes) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as stream:
        return stream.read() == text


def _parse(path: str, text: bytes) -> dict[str, Any]:
    """The mapping in a YAML text: plain values alone, each key once.

    Raises:
        UserError: it holds no such mapping.
    """
    import yaml

    try:
        return _plain(yaml, yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"--config {path}{where}: {error.problem}; expected {_FORM}") from error
    except (yaml.YAMLError, ValueError) as error:  # the latter: a date on the 31st of June
        raise UserError(f"--config {path} is no YAML text: {str(error).splitlines()[0]}; expected {_FORM}") from error
    except RecursionError as error:
        raise UserError(f"--config {path} is nested too deeply; expected {_FORM}") from error


def _plain(yaml: Any, node: Any) -> dict[str, Any]:
    """What a composed document says, after a look at its nodes: a YAML reader keeps the last of two equal keys."""
    if not isinstance(node, yaml.MappingNode):
        mark = node.start_mark if node is not None else None
        raise yaml.MarkedYAMLError(problem="there are no settings in it", problem_mark=mark)
    seen: dict[str, int] = {}
    for name, value in node.value:
        line = name.start_mark.line + 1
        if not isinstance(name, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key that is no name", problem_mark=name.start_mark)
        if name.value in seen:
            problem = f"{name.value} stands there twice, first in line {seen[name.value]}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=name.start_mark)
        seen[name.value] = line
        inner = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(one, yaml.ScalarNode) for one in inner):
            problem = f"{name.value} holds more than values or a list of them"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=value.start_mark)
    return {name.value: yaml.constructor.SafeConstructor().construct_document(value) for name, value in node.value}
