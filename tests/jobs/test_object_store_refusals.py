"""Buckets that can't be used: each job says so in one sentence, and what to do."""

import re

import pytest

from jobs import start
from pipeline.errors import UserError
from tests.object_server import Faults, ObjectServer


def missing_bucket(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> str:
    return "s3://no-such-bucket"


def asked(server: ObjectServer, monkeypatch: pytest.MonkeyPatch, *allowed: str, **of_user: str) -> str:
    """A bucket of a server that asks who asks."""
    address = f"s3://{server.new_bucket()}"
    for name, value in {**server.ask_who_asks(*allowed), **of_user}.items():
        monkeypatch.setenv(name, value)
    return address


def wrong_key(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> str:
    return asked(server, monkeypatch, "s3:*", AWS_ACCESS_KEY_ID="AKIANOBODY")


def wrong_secret(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> str:
    return asked(server, monkeypatch, "s3:*", AWS_SECRET_ACCESS_KEY="not this")


def no_permission(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> str:
    return asked(server, monkeypatch)


READING = ("s3:GetObject", "s3:HeadObject", "s3:ListBucket")


def may_not_write(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> str:
    return asked(server, monkeypatch, *READING)


def may_not_delete(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> str:
    return asked(server, monkeypatch, *READING, "s3:PutObject")


WHY = {
    missing_bucket: "there is no bucket no-such-bucket: make it, or correct its name",
    wrong_key: r"its access key is not known there \(InvalidAccessKeyId\): correct AWS_ACCESS_KEY_ID",
    wrong_secret: r"its secret key does not fit \(SignatureDoesNotMatch\): correct AWS_SECRET_ACCESS_KEY",
    no_permission: r"its credentials have no permission \(AccessDenied\): allow them to read, write, list and delete",
    may_not_write: r"its credentials have no permission \(AccessDenied\): allow them to read, write, list and delete",
    may_not_delete: r"its credentials have no permission \(AccessDenied\): allow them to read, write, list and delete",
}


@pytest.mark.parametrize("case", [missing_bucket, wrong_key, wrong_secret, no_permission])
@pytest.mark.parametrize(
    ("option", "command"),
    [
        ("--corpus", "prune --corpus {}/a.tar --model {model} --output {here}/o"),
        ("--corpus", "prune --corpus {}/*.tar --model {model} --output {here}/o"),
        ("--model", "prune --corpus {scenes} --model {}/m --output {here}/o"),
        ("", "prune --corpus {scenes} --model {model} --output {}/o"),
        ("", "answer --pruned {}/p --model {model} --output {here}/o"),
        ("", "query --pruned {}/p"),
        ("", "status --output {}/o"),
    ],
)
def test_a_bucket_that_can_not_be_used_gets_one_sentence(
    case, option, command, object_server, monkeypatch, tiny_llava, scenes_tars, tmp_path, work_here, capsys
):
    bucket = case(object_server, monkeypatch)
    given = command.format(bucket, model=tiny_llava, scenes=scenes_tars, here=tmp_path).split()
    monkeypatch.setattr("sys.argv", ["zoo-prune", *given])
    with pytest.raises(SystemExit) as left:
        start.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    assert re.match(f"error: {option}.*{bucket}.*{WHY[case]}", line), line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", [may_not_write, may_not_delete])
def test_an_output_that_may_not_be_written_gets_one_sentence(case, object_server, monkeypatch, prune):
    bucket = case(object_server, monkeypatch)
    with pytest.raises(UserError, match=f"^{bucket}/o can't be written: {WHY[case]}; nothing half-written"):
        prune(f"{bucket}/o")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://", "--output s3://: expected s3://BUCKET/KEY"),
        ("s3://B_D/o", "--output s3://B_D/o: expected s3://BUCKET/KEY"),
        ("s3:/bucket/o", "--output s3:/bucket/o is a URL; only paths and s3://BUCKET/KEY are understood"),
        ("gs://bucket/o", "--output gs://bucket/o is a URL; only paths and s3://BUCKET/KEY are understood"),
    ],
)
def test_malformed_addresses(address, message, prune):
    with pytest.raises(UserError, match=message):
        prune(address)


def test_a_store_that_fails_in_the_middle_gets_one_sentence(s3, small_pruned, object_server, monkeypatch, capsys):
    small_pruned(f"{s3}/out")
    object_server.faults = Faults(refuse=lambda method, path: "ExpiredToken" if "_commits/0" in path else None)
    monkeypatch.setattr("sys.argv", ["zoo-prune", "query", "--pruned", f"{s3}/out"])
    with pytest.raises(SystemExit) as left:
        start.main()
    told = f"error: {s3}/out/_commits/00000000.json: its credentials have expired (ExpiredToken): renew them\n"
    assert (left.value.code, capsys.readouterr().err) == (2, told)
