"""The command line is made from the settings: every field an option, and nothing that the settings do not say."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import zoo_ops
from jobs import (
    answer_corpus,
    choose_budget,
    grade_answers,
    job_status,
    prune_corpus,
    query_selections,
    report_corpus,
    zoo_prune,
)
from jobs.options import execute
from pipeline.errors import UserError
from pipeline.prune.settings import Estimator, Selector
from pipeline.settings import expected, flag, options

pytestmark = pytest.mark.long

REPO = Path(__file__).resolve().parents[2]
JOBS = {
    "prune": prune_corpus,
    "answer": answer_corpus,
    "grade": grade_answers,
    "query": query_selections,
    "report": report_corpus,
    "choose": choose_budget,
    "status": job_status,
}
NOT_OPTIONS = {"ray_address", "num_cpus", "api_key"}  # of the environment, and of callers in Python
TEXTS = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md")), REPO / "examples" / "scenes" / "README.md"]


def help_of(job: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The help as one line, so that line breaks play no part."""
    assert JOBS[job].main(["--help"]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("job", JOBS)
def test_every_field_is_an_option_with_its_help_bounds_and_default(job, capsys):
    command = JOBS[job].COMMAND
    shown = help_of(job, capsys)
    fields = {name: (info, option) for name, info, option in options(command.settings)}
    assert set(command.settings.model_fields) - set(fields) == NOT_OPTIONS & set(command.settings.model_fields)
    of_files = {"config", "save_config"} if job in ("prune", "answer", "choose") else set()
    assert {parameter.name for parameter in command.params} == set(fields) | of_files
    for name, (info, option) in fields.items():
        assert option.help in shown
        assert expected(info) in shown
        if not option.positional:
            assert f"{flag(name, option)} " in shown
        if info.is_required():
            assert f"{option.help} (required" in shown
        elif info.default not in (None, False, ()):
            default = f"{info.default:g}" if isinstance(info.default, float) else info.default
            assert re.search(rf"{re.escape(option.help)} \([^)]*default: {default}\)", shown)
        assert not re.search(r"default:? ", option.help), f"{name}: the default of the help is the field's"


def test_the_groups_of_the_help(capsys):
    shown = help_of("prune", capsys)
    headings = ["options:", "what is selected:", "what is written:", "how the work is done:", "when things fail:"]
    places = [shown.index(heading) for heading in headings]
    assert places == sorted(places)
    assert places[0] < shown.index("--output FOLDER") < places[1] < shown.index("--seed N") < places[2]
    assert places[3] < shown.index("--batch-size N|auto") < places[4] < shown.index("--verify")


def test_choices_are_those_of_the_operations():
    assert Selector.__args__ == zoo_ops.SELECTORS
    assert Estimator.__args__ == zoo_ops.ESTIMATORS


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("form", ["module", "script", "zoo-prune"])
def test_the_help_names_the_program_as_it_was_called(job, form):
    name = JOBS[job].__name__.rpartition(".")[2]
    command = {
        "module": ["-m", f"jobs.{name}"],
        "script": [f"jobs/{name}.py"],
        "zoo-prune": ["-c", f"import sys; sys.argv = ['/bin/zoo-prune', {job!r}, '--help']\n"
                            "from jobs.zoo_prune import main; main()"],
    }[form]  # fmt: skip
    done = subprocess.run([sys.executable, *command, "--help"], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    program = f"zoo-prune {job}" if form == "zoo-prune" else shlex.join(["python", *command])
    assert done.stdout.startswith(f"Usage: {program} [OPTIONS]")
    assert f"examples:\n  {program} --" in done.stdout


def test_help_waits_for_no_large_library():
    heavy = "{'torch', 'transformers', 'ray', 'pyarrow', 'duckdb', 'numpy'}"
    code = f"import sys\nimport jobs.zoo_prune\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_zoo_prune_alone(capsys):
    assert execute(zoo_prune.COMMAND, []) == 2
    told = capsys.readouterr().err
    names = ("prune", "answer", "grade", "query", "report", "choose", "status")
    assert re.search(r".*\n.*".join(f"{name} " for name in names), told)
    assert execute(zoo_prune.COMMAND, ["--version"]) == 0
    assert re.fullmatch(r"zoo-prune, version \d+\.\d+\.\d+\n", capsys.readouterr().out)


def commands_of(text: str) -> list[tuple[str, list[str]]]:
    """(job, options used) of every command of ours that a text shows, continued lines joined."""
    calls = {
        **{f"jobs.{module.__name__.rpartition('.')[2]}": job for job, module in JOBS.items()},
        **{f"jobs/{module.__name__.rpartition('.')[2]}.py": job for job, module in JOBS.items()},
        **{f"zoo-prune {job}": job for job in JOBS},
    }
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for call, job in calls.items():
            for rest in line.split(f"{call} ")[1:]:
                words = re.split(r"[`#]", rest)[0].split()
                found.append((job, [word.partition("=")[0] for word in words if word.startswith("--")]))
    return found


def test_commands_in_the_texts_use_options_that_exist():
    known = {job: {o for p in module.COMMAND.params for o in p.opts} for job, module in JOBS.items()}
    found = [one for path in TEXTS for one in commands_of(path.read_text())]
    found += [one for job, module in JOBS.items() for one in commands_of(
        module.EXAMPLES.replace("<program>", f"zoo-prune {job}"))]  # fmt: skip
    assert {job for job, used in found if used} == set(JOBS)
    for job, used in found:
        assert set(used) <= known[job], job


def test_options_named_in_the_texts_exist():
    """`--feature-dtype int8` in running text, too."""
    known = {o for module in JOBS.values() for p in module.COMMAND.params for o in p.opts}
    known |= {"--num-gpus", "--working-dir", "--version", "--help"}  # the first two are of `ray`
    for path in (REPO / "README.md", REPO / "docs" / "operations.md"):
        for named in re.findall(r"`(--[a-z][a-z-]+)", path.read_text()):
            assert named in known, f"{path.name}: {named}"


def test_of_two_values_for_an_option_that_takes_one_none_is_dropped():
    arguments = ["--pruned", "p", "--model", "m", "--output", "o", "--tokens", "4"]
    with pytest.raises(UserError, match=r"^--tokens takes one value, given were 4, 8; leave the others out$"):
        execute(answer_corpus.COMMAND, [*arguments, "--tokens", "8"])
