"""A job's settings as a click command: names, help, groups and defaults are those of the settings."""

import os
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from jobs.config import read_config, save_config
from pipeline.errors import UserError
from pipeline.settings import ClusterSettings, Option, Origin, Settings, expected, flag, is_of_the_work, options
from pipeline.storage.paths import is_object

AnySettings = TypeVar("AnySettings", bound=Settings)
_PROGRAM = "<program>"  # stands in examples for the command as the user called it
EXIT_BAD_INPUT = 2
_FILES = (
    (["--config"], "a YAML file of settings under the names of the options; options count before it"),
    (["--save-config"], "write all settings of this command there, for --config"),
)
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class JobCommand(click.Command, Generic[AnySettings]):
    """The command line of one job.

    Args:
        name: under `zoo-prune`.
        settings: that its options set; they check the values.
        work: does the job; returns the exit status.
        about: what the help says first.
        examples: what it says last, as it stands; `<program>` is put as the user called it.
    """

    def __init__(
        self, name: str, settings: type[AnySettings], work: Callable[[AnySettings], int], about: str, examples: str
    ) -> None:
        self.settings = settings
        self._work = work
        self._examples = examples
        # Arguments nobody asked for are kept so that `_run` can say what mostly is the matter with them.
        context = {**_HELP, "allow_extra_args": True}
        parameters = [_parameter(*one) for one in options(settings)]
        if issubclass(settings, ClusterSettings):
            parameters += [click.Option(names, type=str, metavar="FILE", help=told) for names, told in _FILES]
        short = re.split("[:;]", about)[0]
        super().__init__(name, context, self._run, parameters, help=about, short_help=short)

    def _run(self, **given: Any) -> int:
        context = click.get_current_context()
        if context.args:
            raise UserError(
                f"unexpected argument {context.args[0]!r}; put a pattern or statement in quotes, so that the shell "
                "hands it over as one"
            )
        file, saved = given.pop("config", None), given.pop("save_config", None)
        told = {name: value for name, value in given.items() if _is_given(context, name)}
        made = _resolve(self.settings, told, file)
        if saved is not None:
            save_config(saved, made)
        return self._work(made)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The options under the headings of their groups, what the job is about before how it works."""
        groups: dict[str, list[tuple[str, str]]] = {"": []}
        marks = {name: option for name, _, option in options(self.settings)}
        for name in sorted(marks, key=is_of_the_work):
            groups.setdefault(marks[name].group, [])
        for parameter in self.get_params(context):
            option = marks.get(str(parameter.name), Option(""))  # the latter for --help itself
            positional = (f"[{option.metavar}]", option.help) if option.positional else None
            record = positional or parameter.get_help_record(context)
            if record is not None:
                groups[option.group].append(record)
        for group, records in groups.items():
            with formatter.section(group or "options"):
                formatter.write_dl(records)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples with their own line breaks."""
        formatter.write(f"\n{self._examples.replace(_PROGRAM, context.command_path)}")


def command_of(program: str, settings: Settings) -> str:
    """The command that makes these settings; what is left at its default, or is about one call, is left out."""
    words = []
    for name, info, option in sorted(options(type(settings)), key=lambda one: is_of_the_work(one[0])):
        value = getattr(settings, name)
        if option.once or value == info.default:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words.append(flag(name, option) if one is True else f"{flag(name, option)} {shlex.quote(str(one))}")
    return " \\\n    ".join([program, *words])


def execute(command: click.Command, arguments: list[str], program: str = "zoo-prune") -> int:
    """Parse the arguments and run the command; its exit status.

    Raises:
        UserError: bad input.
    """
    try:
        with command.make_context(program, list(arguments)) as context:  # click empties the list it is given
            return int(command.invoke(context))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_BAD_INPUT
    except click.exceptions.Exit as done:  # after --help or --version
        return done.exit_code
    except click.ClickException as error:
        raise UserError(error.format_message()) from error


def _resolve(settings: type[AnySettings], told: dict[str, Any], file: str | None) -> AnySettings:
    """The settings that were told, what a file says of the others, and what the environment adds.

    Raises:
        UserError: a value that does not fit, or a relative `--output` in a submitted job.
    """
    if "ray_address" in settings.model_fields:
        told = {**told, "ray_address": os.environ.get("RAY_ADDRESS") or None}
    if "api_key" in settings.model_fields:
        told = {**told, "api_key": os.environ.get("OPENAI_API_KEY", "").strip() or None}
    origin = Origin("")
    if file is not None:
        held = read_config(file, settings)
        origin = Origin(file, frozenset(held.keys() - told.keys()))
        told = {**held, **told}
    made = settings.out_of(origin, told)
    output = os.path.expanduser(told.get("output", os.sep))
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not (os.path.isabs(output) or is_object(output)):
        raise UserError(
            f"--output {output} is relative, but a submitted job runs in a temporary copy of the working directory "
            "that is deleted afterwards; give an absolute path on storage that every node sees"
        )
    return made


def _parameter(name: str, info: FieldInfo, option: Option) -> click.Parameter:
    """The click parameter of a setting. Values stay texts: the settings read and check them."""
    if option.positional:
        return click.Argument([name], required=False, metavar=f"[{option.metavar}]")
    names = [name, flag(name, option)]
    if info.annotation is bool:
        return click.Option(names, is_flag=True, help=option.help)
    repeats = getattr(info.annotation, "__origin__", None) is tuple
    once = None if repeats else _once
    # All values are taken, so that of several none is dropped in silence.
    return click.Option(names, type=str, multiple=True, callback=once, metavar=option.metavar, help=_help(info, option))


def _once(_: click.Context, parameter: click.Parameter, values: Sequence[str]) -> str | None:
    """The value of an option that takes one.

    Raises:
        UserError: there are several.
    """
    if len(set(values)) > 1:
        raise UserError(f"{parameter.opts[-1]} takes one value, given were {', '.join(values)}; leave the others out")
    return values[0] if values else None


def _help(info: FieldInfo, option: Option) -> str:
    """The setting's help, its bounds and its default."""
    default = info.default if info.default not in (None, ()) else None
    notes = [
        "required" if info.is_required() else "",
        expected(info),
        "" if info.is_required() or default is None else f"default: {_number(default)}",
    ]
    noted = "; ".join(filter(None, notes))
    return f"{option.help} ({noted})" if noted else option.help


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE
