"""The progress line: its rate is that of steady work, and starting up is said apart."""

import io

from pipeline.cluster.progress import Progress


def lines(total: int, added: list[tuple[float, int]], every_sec: float = 5.0) -> list[str]:
    """What is printed when (seconds since the beginning, pieces done) come in."""
    times = iter([100.0, *(100.0 + after for after, _ in added)])
    stream = io.StringIO()
    progress = Progress(total, "images", every_sec=every_sec, stream=stream, clock=lambda: next(times))
    for _, done in added:
        progress.add(done)
    return stream.getvalue().splitlines()


def test_the_time_left_leaves_the_start_out():
    """60 s until the first 10 of 1,000 came, then 10 a second: 97 s are left, not the 33 minutes of the average."""
    assert lines(1000, [(60, 10), (62, 20)], every_sec=0) == [
        "10 of 1,000 images (1 %), 0 errors, 1:00 with start-up",
        "30 of 1,000 images (3 %), 0 errors, 10.0 images/s, 1:37 left",
    ]


def test_a_job_of_one_piece_names_no_rate():
    assert lines(40, [(12, 40)]) == ["40 of 40 images (100 %), 0 errors, 0:12 with start-up"]


def test_a_line_at_first_then_not_too_often_and_at_the_end():
    said = lines(5, [(1, 1), (2, 1), (3, 1), (8, 1), (9, 1)])
    assert [line.partition(" ")[0] for line in said] == ["1", "4", "5"]
