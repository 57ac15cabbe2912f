"""One shard through one stage: retries, time-outs, and failures that travel to the driver."""

import pyarrow as pa
import pytest

from pipeline.cluster.attempts import BAD_INPUT, Policy, StageRunner, failed_shard, failure_of
from pipeline.errors import UserError

SCHEMA = pa.schema([("shard", pa.int32()), ("value", pa.int32()), ("failure", pa.string())])
GOOD = pa.Table.from_pylist([{"shard": 7, "value": 1}], SCHEMA)


def runner(**policy) -> StageRunner:
    return StageRunner("work", Policy(**{"pause_sec": 0.0, **policy}))


def test_a_shard_that_succeeds_at_last_is_a_success():
    calls = []

    def flaky() -> pa.Table:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("the disk hiccuped")
        return GOOD

    assert runner(retries=2).run(7, SCHEMA, flaky) is GOOD
    assert failure_of(GOOD) is None


def test_a_shard_that_never_succeeds_says_why():
    def broken() -> pa.Table:
        raise RuntimeError("always")

    table = runner(retries=1).run(7, SCHEMA, broken)
    assert table.schema == SCHEMA
    assert table["shard"].to_pylist() == [7]
    failure = failure_of(table)
    assert failure is not None
    assert failure.splitlines()[0] == "stage work: RuntimeError: always"
    assert "Traceback" in failure
    assert "tried 2 times" in failure


def test_a_stages_own_timeout_error_is_not_taken_for_a_stuck_shard():
    def refused() -> pa.Table:
        raise TimeoutError("the server did not answer")

    assert "TimeoutError: the server did not answer" in str(failure_of(runner(retries=0).run(7, SCHEMA, refused)))


def test_bad_input_is_not_tried_again():
    calls = []

    def refuse() -> pa.Table:
        calls.append(1)
        raise UserError("no such thing")

    assert failure_of(runner(retries=5).run(7, SCHEMA, refuse)) == f"{BAD_INPUT}no such thing"
    assert calls == [1]


@pytest.mark.parametrize("failure", ["x", BAD_INPUT])
def test_a_failed_shard_is_one_row(failure):
    assert failed_shard(3, SCHEMA, failure).to_pylist() == [{"shard": 3, "value": None, "failure": failure}]
