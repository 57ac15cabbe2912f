"""Write the recipes of docs/queries.md with what they print, over a small made artifact (`made_artifact`).

python benchmarks/queries_page.py            rewrite what stands between the marks
python benchmarks/queries_page.py --check    exit 1 when the page does not hold what the recipes say
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # In place of this folder, which holds a file by the name of a standard module (selectors).
    sys.path[0] = str(ROOT)

import argparse
import io
import re
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout

from benchmarks.made_artifact import Form, Made, make_artifact
from jobs.tables import print_table
from pipeline.report.query import connect
from pipeline.report.recipe import NEEDS, READS, Recipe, cook, recipe_names, recipe_of

PAGE = ROOT / "docs" / "queries.md"
BEGIN, END = "<!-- by benchmarks/queries_page.py -->", "<!-- end -->"
FORM = Form(4, 50, 6, budgets=("all", "4"), side=4, kept=12, width=32, images_a_tar=60)
SETS = {  # for an artifact as small as this
    "storage": ("budgets=2,4,8,16",),
    "flattest_images": ("limit=5",),
    "kept_grid": ("k=4",),
    "kept_by_tile": ("k=4",),
    "first_picks": ("limit=5",),
    "cut_ties": ("k=4", "within=0.05"),
    "gain_curve": ("picks=1,2,4,8,12",),
    "gain_held": ("budgets=2,4,8",),
    "sensitivity_grid": ("share=0.5",),
    "sensitivity_by_pick": ("share=0.5", "step=4"),
    "sensitive_dropped": ("share=0.5", "k=4"),
    "losses": ("limit=5",),
    "flips": ("limit=5",),
    "common_mistakes": ("limit=5",),
    "duplicates": ("limit=5",),
    "errors_by_source": ("limit=5",),
}


def lines(made: Made) -> Iterator[str]:
    """The recipes by what they need and read, then by name."""
    db = connect(made.pruned, made.answers)
    recipes = sorted(
        map(recipe_of, recipe_names()), key=lambda one: (bool(NEEDS[one.needs]), READS.index(one.reads), one.name)
    )
    yield from ("| recipe | shows | reads |", "|---|---|---|")
    yield from (f"| [`{one.name}`](#{one.name}) | {one.about} | {_reads(one)} |" for one in recipes)
    for recipe in recipes:
        settings = SETS.get(recipe.name, ())
        shown = io.StringIO()
        with redirect_stdout(shown):
            print_table(cook(db, recipe, settings, as_texts=True))
        asked = "".join(f" --set {one}" for one in settings)
        yield from ("", f"### {recipe.name}", "", recipe.about, "")
        if recipe.parameters:
            yield from ("| set | kind | default | |", "|---|---|---|---|")
            yield from (f"| `{one.name}` | {one.kind} | {one.default} | {one.about} |" for one in recipe.parameters)
            yield ""
        yield from ("```text", f"$ zoo-prune query ... --recipe {recipe.name}{asked}")
        yield from (line.rstrip() for line in shown.getvalue().rstrip().splitlines())
        yield "```"


def _reads(recipe: Recipe) -> str:
    return f"{recipe.reads}, {recipe.needs}" if recipe.needs else recipe.reads


def page() -> str:
    """The page with what the recipes say now."""
    with tempfile.TemporaryDirectory() as folder:
        made = "\n".join(lines(make_artifact(Path(folder), FORM, processes=1)))
    text = PAGE.read_text()
    assert text.count(BEGIN) == text.count(END) == 1, f"{PAGE} has lost its marks"
    return re.sub(f"(?s){re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n{made}\n{END}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    if not parser.parse_args().check:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        sys.exit(f"{PAGE} does not hold what the recipes say: run python benchmarks/queries_page.py")


if __name__ == "__main__":
    main()
