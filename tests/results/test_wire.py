"""Results as bytes: Go's files, what Go would take, and whatever bytes there are."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from trio_swarmtask._record import decode, encode
from trio_swarmtask.results import InvalidResultError, Result, ResultStatus
from trio_swarmtask.results._types import clean

WIRE: Final = Path(__file__).parents[1] / "wire"

# In the order of Go's struct, none with omitempty.
FIELDS: Final = ["TaskID", "Status", "Output", "Error", "Metadata", "CreatedAt", "UpdatedAt"]

CREATED: Final = datetime(2026, 4, 19, 10, 20, 30, 123457, tzinfo=UTC)  # the nanoseconds rounded

STORED: Final = {
    "stored-pending": Result(
        task_id="t-1", status=ResultStatus.PENDING, created_at=CREATED, updated_at=CREATED
    ),
    "stored-success": Result(
        task_id="t-2",
        status=ResultStatus.SUCCESS,
        output=b'{"answer": 42}',
        metadata={"model": "m"},
        created_at=CREATED,
        updated_at=CREATED.replace(microsecond=0),
    ),
    "stored-failed": Result(
        task_id="t-3",
        status=ResultStatus.FAILED,
        error="disk full",
        created_at=CREATED,
        updated_at=CREATED,
    ),
}


def times_of(envelope: dict[str, Any]) -> dict[str, Any]:
    """``envelope`` with its times as numbers, to microseconds: the one thing that may differ."""
    read = {name: msgspec.convert(envelope[name], datetime) for name in ("CreatedAt", "UpdatedAt")}
    return {**envelope, **{name: time.timestamp() for name, time in read.items()}}


@pytest.mark.parametrize("name", STORED)
def test_go_s_file_is_read(name: str) -> None:
    data = (WIRE / f"{name}.json").read_bytes()
    expected = STORED[name]
    got = decode(data, expected.task_id)
    assert got == expected
    assert type(got.status) is ResultStatus
    assert got.created_at is not None
    assert got.created_at.tzinfo is UTC
    assert got.updated_at is not None
    assert got.updated_at.tzinfo is UTC


@pytest.mark.parametrize("name", STORED)
def test_go_s_file_is_written(name: str) -> None:
    """The same names, in the same order, with the same values."""
    theirs = json.loads((WIRE / f"{name}.json").read_bytes())
    ours = json.loads(encode(STORED[name]))
    assert list(ours) == list(theirs) == FIELDS
    assert times_of(ours) == times_of(theirs)


def test_what_is_written() -> None:
    """No time is Go's zero time, no output and no metadata are null, times have an offset."""
    assert encode(Result(task_id="t1", status=ResultStatus.PENDING)) == (
        b'{"TaskID":"t1","Status":"pending","Output":null,"Error":"","Metadata":null,'
        b'"CreatedAt":"0001-01-01T00:00:00Z","UpdatedAt":"0001-01-01T00:00:00Z"}'
    )
    full = Result(
        task_id="t1",
        status=ResultStatus.FAILED,
        output=b"\0\xff\xfe",
        error='"é\n',
        metadata={},
        created_at=CREATED,
        updated_at=CREATED + timedelta(seconds=1),
    )
    assert encode(full).decode() == (
        '{"TaskID":"t1","Status":"failed","Output":"AP/+","Error":"\\"é\\n","Metadata":{},'
        '"CreatedAt":"2026-04-19T10:20:30.123457Z","UpdatedAt":"2026-04-19T10:20:31.123457Z"}'
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"Status":"pending"}', Result(task_id="t1", status=ResultStatus.PENDING)),
        (
            '{"TaskID":"","Status":"success","Output":"","Metadata":{},"New":[{"a":null}]}',
            Result(task_id="t1", status=ResultStatus.SUCCESS, metadata={}),
        ),
        (
            '{"Status":"failed","CreatedAt":"0001-01-01T00:00:00Z","UpdatedAt":null}',
            Result(task_id="t1", status=ResultStatus.FAILED),
        ),
        (
            '{"Status":"pending","CreatedAt":"0001-01-01T01:00:00+01:00"}',
            Result(task_id="t1", status=ResultStatus.PENDING),
        ),
        (
            ' {"Output":"AP/+","Status":"success"}\n',
            Result(task_id="t1", status=ResultStatus.SUCCESS, output=b"\0\xff\xfe"),
        ),
    ],
)
def test_what_is_missing_or_unknown(text: str, expected: Result) -> None:
    assert decode(text.encode(), "t1") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"Status":""}',
        '{"Status":"done"}',
        '{"Status":"PENDING"}',
        '{"Status":null}',
        '{"status":"pending"}',
        '{"Status":"pending"',
        '{"Status":"pending"}x',
        '{"Status":"pending","TaskID":5}',
        '{"Status":"pending","Output":"no base64"}',
        '{"Status":"pending","Output":[1]}',
        '{"Status":"pending","Error":null}',
        '{"Status":"pending","Metadata":{"a":1}}',
        '{"Status":"pending","Metadata":{"a":null}}',
        '{"Status":"pending","Metadata":[]}',
        '{"Status":"pending","CreatedAt":"2026-04-19T10:20:30"}',
        '{"Status":"pending","CreatedAt":"yesterday"}',
        '{"Status":"pending","CreatedAt":5}',
        '{"Status":"pending","X":' + "[" * 100_000,
    ],
)
def test_not_a_result(text: str) -> None:
    with pytest.raises(InvalidResultError, match=r"^not a result: .*; got b'"):
        decode(text.encode(), "t1")


@pytest.mark.parametrize(
    "time", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "0001-01-01T12:00:00+14:00"]
)
def test_time_that_is_none_in_utc(time: str) -> None:
    for field in ("CreatedAt", "UpdatedAt"):
        with pytest.raises(InvalidResultError, match=r"^not a result: .*time"):
            decode(f'{{"Status":"pending","{field}":"{time}"}}'.encode(), "t1")


def test_result_of_another_task() -> None:
    data = encode(Result(task_id="t2", status=ResultStatus.PENDING))
    assert decode(data, "t2").task_id == "t2"
    with pytest.raises(InvalidResultError, match="a result of task 't2' where one of 't1' belongs"):
        decode(data, "t1")


# As in `test_wire_fuzz`: the same examples on each run, and a busy CI machine is no bug.
fuzz: Final = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=5_000 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 300,
    suppress_health_check=[HealthCheck.too_slow],
)

ANY_JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
TIMES: Final = st.datetimes(timezones=st.just(UTC))
LIKE_AN_ENVELOPE: Final = st.fixed_dictionaries(
    {"Status": st.sampled_from(["pending", "success", "failed"]) | ANY_JSON},
    optional={
        "TaskID": st.sampled_from(["", "t1"]) | ANY_JSON,
        "Output": st.text("AB+/= ") | ANY_JSON,
        "Error": ANY_JSON,
        "Metadata": st.dictionaries(st.text(), st.text()) | ANY_JSON,
        "CreatedAt": st.from_regex(
            r"\A[0-9]{4}-[01][0-9]-[0-3][0-9]T00:00:0[0-9]([-+][0-2][0-9]:[0-5][0-9]|Z)\Z"
        )
        | ANY_JSON,
        "UpdatedAt": ANY_JSON,
        "More": ANY_JSON,
    },
)


@fuzz
@given(
    st.binary()
    | st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))
    | LIKE_AN_ENVELOPE.map(lambda envelope: json.dumps(envelope).encode())
)
@example(b'{"Status":"pending","Error":"\xff"}')
@example(b'{"Status":"pending","Error":"\\ud800"}')
@example(b'{"Status":"pending","\xff":1}')
@example(b'{"Status":"pending","X":1e999999}')
def test_any_bytes(data: bytes) -> None:
    """They are a result, which can be stored, or `InvalidResultError`; nothing else."""
    try:
        result = decode(data, "t1")
    except InvalidResultError:
        return
    assert result.task_id == "t1"
    assert isinstance(result.status, ResultStatus)
    assert decode(encode(result), "t1") == result


UNICODE: Final = st.text(st.characters(exclude_categories=["Cs"]))


@fuzz
@given(
    st.builds(
        Result,
        task_id=UNICODE,
        status=st.sampled_from(ResultStatus),
        output=st.binary(),
        error=UNICODE,
        metadata=st.none() | st.dictionaries(UNICODE, UNICODE),
        created_at=st.none() | TIMES,
        updated_at=st.none() | TIMES,
    )
)
def test_round_trip(result: Result) -> None:
    """All that passes the check comes back as it was, but for Go's zero time."""
    record = msgspec.structs.replace(clean(result), task_id="t1", updated_at=result.created_at)
    written = encode(record)
    assert list(json.loads(written)) == FIELDS
    read = decode(written, "t1")
    if result.created_at == datetime.min.replace(tzinfo=UTC):
        record = msgspec.structs.replace(record, updated_at=None)
    assert read == record
