"""What people and programs read of grades: a line a type and measure."""

import pyarrow as pa

from pipeline.grading.summary import summary_of, summary_table
from schemas.tables import GRADES


def grades(*rows: tuple) -> pa.Table:
    names = ("image_id", "type", "metric", "score", "counts")
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], GRADES)


def test_types_of_one_metric_are_also_shown_together():
    """A type of its own may be called "all"."""
    lines = summary_of(
        [
            grades(("0a", "all", "exact", 1.0, None), ("0b", None, "exact", 0.0, None)),
            grades(("0a", None, "exact", 1.0, None), ("0c", None, "exact", None, None)),
        ]
    )
    assert [(line.type, line.of_all, line.graded, line.value) for line in lines] == [
        (None, False, 2, 0.5),
        ("all", False, 1, 1.0),
        (None, True, 3, 0.666667),
    ]
    assert summary_table(lines).select(["type", "value"]).to_pylist() == [
        {"type": "-", "value": 50.0},
        {"type": "all", "value": 100.0},
        {"type": "all", "value": 66.67},
    ]


def test_metrics_are_not_mixed_and_measures_stand_one_after_the_other():
    yes, no = ("0a", "b", "pope", 1.0, [1, 1, 1]), ("0b", "b", "pope", 0.0, [1, 0, 0])
    lines = summary_of([grades(("0a", "a", "exact", 1.0, None), yes, no)])
    assert [(line.type, line.measure, line.value) for line in lines] == [
        ("a", "mean", 1.0),
        ("b", "accuracy", 0.5),
        ("b", "f1", 0.666667),
        ("b", "share of yes", 1.0),
    ]
    assert (lines[0].low, lines[1].low, lines[1].high) == (None, 0.0, 1.0)


def test_nothing_graded_is_an_empty_table():
    assert summary_of([grades(("0a", "a", "vqa", None, None))]) == []
    assert len(summary_table([])) == 0
