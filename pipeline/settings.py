"""Settings of a job: each stands once, and from it are made its option, its check, its help and its record.

A job's settings are one subclass of `Settings`. The annotation of a field carries its type, its bounds and its
`Option`; a value that does not fit is refused when the settings are made, wherever they come from.
"""

import difflib
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipeline.budget import parse_answer_budget, parse_budget
from pipeline.errors import UserError
from pipeline.storage.paths import READ_INSTEAD, WRITE_INSTEAD, as_address

WORK = "how the work is done"
FAILURES = "when things fail"

_ORIGIN = "origin"  # in the context of a validation
_MAX_SHOWN = 200  # characters of a refused value that a message repeats
_KINDS = {  # what a value of the wrong kind should have been, by the beginning of pydantic's name for the error
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "bool": "true or false",
    "string_too_short": "a text that is not empty",
    "string": "a text",
    "tuple": "a list",
    "too_short": "at least one",
}


@dataclass(frozen=True, slots=True)
class Option:
    """How a setting is shown to users, and whether it counts in the record of a job."""

    help: str
    metavar: str = ""
    group: str = ""  # heading in the help
    name: str = ""  # where it differs from the field's
    positional: bool = False
    decides: bool = False  # the bytes of the output: another value needs another output folder
    once: bool = False  # it is about one call, so no file of settings keeps it


@dataclass(frozen=True, slots=True)
class Origin:
    """Where settings come from that were not given as options: a file, and the fields that it names."""

    file: str
    fields: frozenset[str] = frozenset()


class Settings(BaseModel):
    """Base of the settings of a job. Bad values raise a `UserError` of one sentence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_in_a_sentence(cls, given: Any, handler: Any, info: ValidationInfo) -> Self:
        try:
            made: Self = handler(given)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False)
            raise UserError(_sentence(cls, problems, _origin(info))) from error
        return made

    @classmethod
    def out_of(cls, origin: Origin, given: dict[str, Any]) -> Self:
        """The settings, of which some come out of a file: what does not fit is named as it stands there."""
        return cls.model_validate(given, context={_ORIGIN: origin})


def options(settings: type[Settings]) -> Iterator[tuple[str, FieldInfo, Option]]:
    """Every field that users can set, in the order of the class; the others are for callers in Python."""
    for name, info in settings.model_fields.items():
        for mark in info.metadata:
            if isinstance(mark, Option):
                yield name, info, mark


def flag(name: str, option: Option | None = None) -> str:
    """`--shard-size` of `shard_size`."""
    return f"--{(option and option.name) or name}".replace("_", "-")


def key(name: str, option: Option) -> str:
    """`shard_timeout` of `shard_timeout_sec`: the name of a setting in a file."""
    return option.name or name


def _origin(info: ValidationInfo) -> Origin:
    return (info.context or {}).get(_ORIGIN, Origin(""))


def named(info: ValidationInfo, option: Option | None = None) -> str:
    """How a message names the field that is being checked: `--max-tokens`, or `--config job.yaml: max_tokens`."""
    return _named(str(info.field_name), option, _origin(info))


def _named(name: str, option: Option | None, origin: Origin) -> str:
    if name in origin.fields:
        return f"--config {origin.file}: {(option and option.name) or name}"
    return flag(name, option)


def no_such_setting(name: str, known: Sequence[str]) -> str:
    """A sentence about a setting that there is not, with the one that was probably meant."""
    like = difflib.get_close_matches(name.strip("-").replace("-", "_").lower(), known, n=1)
    meant = f"did you mean {like[0]}?" if like else f"there are {', '.join(known)}"
    return f"{_shown(name)}: there is no such setting; {meant}"


def deciding(settings: Settings) -> dict[str, Any]:
    """The settings that decide the bytes of the output, as the record of a job holds them: in the types of JSON."""
    values = {name: getattr(settings, name) for name, _, option in options(type(settings)) if option.decides}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def expected(info: FieldInfo) -> str:
    """What a value of the field must be, beyond its kind: "at least 1", "one of a, b", or nothing."""
    return _expected(Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation)


def _expected(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _bounds(parts[1:]) or _expected(parts[0])
    if origin in (Union, types.UnionType):
        return ", or ".join(filter(None, map(_expected, parts)))
    if origin is Literal:
        return f"one of {', '.join(parts)}" if len(parts) > 1 else str(parts[0])
    return ""


def _bounds(marks: tuple[Any, ...]) -> str:
    least = next((f"{mark.ge:g}" for mark in marks if isinstance(mark, Ge)), None)
    above = next((f"{mark.gt:g}" for mark in marks if isinstance(mark, Gt)), None)
    most = next((f"{mark.le:g}" for mark in marks if isinstance(mark, Le)), None)
    if above and most:
        return f"above {above} and at most {most}"
    if least and most:
        return f"between {least} and {most}"
    if above and most:
        return f"above {above} and up to {most}"
    return f"at least {least}" if least else f"above {above}" if above else f"at most {most}" if most else ""


def _sentence(settings: type[Settings], problems: list[ErrorDetails], origin: Origin) -> str:
    """One sentence about everything that is wrong: the option, its value and what was expected."""
    shown = {name: (_named(name, option, origin), expected(info)) for name, info, option in options(settings)}
    by_field: dict[str, list[ErrorDetails]] = {}
    for problem in problems:
        by_field.setdefault(str(problem["loc"][0]), []).append(problem)
    sentences, missing = [], []
    for name, its in by_field.items():
        option, rest = shown.get(name, (name, ""))
        if its[0]["type"] == "missing":
            missing.append(option)
        elif its[0]["type"] == "extra_forbidden":
            sentences.append(no_such_setting(name, list(settings.model_fields)))
        else:
            kind = next((word for p in its for start, word in _KINDS.items() if p["type"].startswith(start)), "")
            wanted = ", ".join(filter(None, (kind, rest))) or its[0]["msg"]
            sentences.append(f"{option} {_shown(its[0]['input'])}: expected {wanted}")
    if missing:
        sentences.insert(0, f"{', '.join(missing)} must be given")
    return "; ".join(sentences)


def _shown(value: object) -> str:
    text = value if isinstance(value, str) and value and value.isprintable() else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _is_budget(text: str, info: ValidationInfo) -> str:
    parse_budget(text, named(info))
    return text


def _is_answer_budget(text: str, info: ValidationInfo) -> str:
    parse_answer_budget(text, named(info))
    return text


def _is_share_or_whole(value: float, info: ValidationInfo) -> float:
    if not 0 <= value <= 1 and not (value > 1 and value.is_integer()):
        raise UserError(f"{named(info)} {value:g}: expected 0, a share of 1, or a whole number")
    return value


def _to_read(text: str, info: ValidationInfo) -> str:
    return as_address(named(info), text, READ_INSTEAD)


def _to_write(text: str, info: ValidationInfo) -> str:
    return as_address(named(info), text, WRITE_INSTEAD)


Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Ge(1)]
BudgetText = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_is_budget)]
AnswerBudgetText = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_is_answer_budget)]
FolderToRead = Annotated[Text, AfterValidator(_to_read)]  # held as an absolute path, or an address
FileToRead = FolderToRead
FolderToWrite = Annotated[Text, AfterValidator(_to_write)]
Device = Literal["auto", "cuda", "cpu"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]


class ClusterSettings(Settings):
    """Where and how a job of models works, and when it gives up."""

    dtype: Annotated[
        Dtype, Option("the model runs in; auto is the checkpoint's own", "DTYPE", WORK,
                      decides=True),
    ] = "auto"  # fmt: skip
    workers: Annotated[
        Count | None, Option("model actors; without it one a GPU, else one a CPU, when pruning one less", "N", WORK)
    ] = None
    gpus_per_worker: Annotated[
        Annotated[float, AfterValidator(_is_share_or_whole)] | None,
        Option("whole ones or a share of one; without it 1 where the cluster has GPUs, else 0", "N", WORK),
    ] = None
    device: Annotated[
        Device, Option("of the model; auto is CUDA on workers that have a GPU, else the CPU", "DEVICE", WORK)
    ] = "auto"
    retries: Annotated[int, Ge(0), Option("of a shard in one stage before it is given up", "N", FAILURES)] = 2
    shard_timeout_sec: Annotated[
        float, Gt(0), Option("for one shard in one stage", "SEC", FAILURES, name="shard_timeout")
    ] = 3600.0
    ray_address: str | None = None  # the cluster's; None: a private one
    num_cpus: Count | None = None  # of a private cluster; None: all of the machine


def is_of_the_work(name: str) -> bool:
    """Whether a setting says how a job works, which is shown behind what the job is about."""
    return name in ClusterSettings.model_fields
