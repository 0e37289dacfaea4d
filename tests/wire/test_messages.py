# Message and Result: what the bytes of a Go program become, and what a user can do with them.
#
# The JSON files beside it are envelopes as Go's encoder writes them. `test_refused.py` has what is
# never sent, `test_go.py` holds what is sent against Go's structs, and `test_fuzz.py` feeds
# anything.

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Final

import msgspec
import pytest

from trio_swarmtask import (
    VERSION,
    InvalidMessageError,
    Message,
    Result,
    Status,
    TaskFailedError,
    TaskTimeoutError,
    UnsupportedVersionError,
)
from trio_swarmtask._envelope import encode_success

WIRE: Final = Path(__file__).parent
INDIA: Final = timezone(timedelta(hours=5, minutes=30))
LOCAL: Final = datetime(2026, 4, 19, 15, 50, 30, tzinfo=INDIA)
# The file says .123456789; Python keeps microseconds.
ROUNDED: Final = datetime(2026, 4, 19, 10, 20, 30, 123457, tzinfo=UTC)

EXPECTED: Final[dict[str, Message | Result]] = {
    "message-minimal": Message(id="t-1"),
    "message-usual": Message(
        id="t-2", inputs={"file": "main.go"}, created_at=ROUNDED, submitted_at=ROUNDED
    ),
    "message-full": Message(
        id="t-3",
        idempotency="order-7",
        correlation_id="c-1",
        parent="t-2",
        root="t-1",
        timeout=30,
        max_attempts=3,
        attempt=2,
        inputs={"q": "a<b && c>d", "uni": "snow ☃ \u2028 \0"},
        prior={"t-1": msgspec.Raw(b"null"), "t-2": msgspec.Raw(b'{"deep":[1,2.50,null,"x"]}')},
        created_at=LOCAL,
        submitted_at=ROUNDED,
        submitted_by="planner",
        tags=["a", "b"],
        metadata={"m": "1"},
    ),
    "result-minimal": Result(id="t-1", status=Status.SUCCESS),
    "result-full": Result(
        id="t-3",
        correlation_id="c-1",
        status=Status.SUCCESS,
        outputs={"diff": "<+>", "list": [1, "x", None], "n": 1.5, "ok": True},
        agent="worker-1",
        attempt=2,
        duration=1234,
        completed_at=ROUNDED,
        metadata={"model": "m"},
    ),
    "result-failed": Result(
        id="t-5",
        status=Status.FAILED,
        error="disk full",
        agent="worker-1",
        attempt=1,
        duration=3,
        completed_at=LOCAL,
    ),
    "result-timeout": Result(
        id="t-6",
        status=Status.TIMEOUT,
        error="context deadline exceeded",
        agent="worker-1",
        attempt=1,
        duration=5000,
        completed_at=ROUNDED,
    ),
}


def message_with(json: str) -> bytes:
    return b'{"version":1,"id":"t-1",%s}' % json.encode()


# Decoding


@pytest.mark.parametrize("name", EXPECTED)
def test_decode_vector(name: str) -> None:
    """Equal in every field, raw JSON byte for byte, and with each time's own offset."""
    expected = EXPECTED[name]
    decoded = type(expected).decode((WIRE / f"{name}.json").read_bytes())
    assert decoded == expected
    for field in ("created_at", "submitted_at", "completed_at"):
        time = getattr(decoded, field, None)
        assert time is None or time.utcoffset() == getattr(expected, field).utcoffset()


def test_decode_every_vector_is_tested() -> None:
    vectors = {path.stem for path in WIRE.glob("*.json") if not path.stem.startswith("stored-")}
    assert vectors == {*EXPECTED, "message-future-version"}


@pytest.mark.parametrize("kind", [Message, Result])
def test_decode_future_version(kind: type[Message | Result]) -> None:
    """Its other fields have shapes that nobody knows yet."""
    data = (WIRE / "message-future-version.json").read_bytes()
    with pytest.raises(UnsupportedVersionError, match=r"version 2.*reads up to 1"):
        kind.decode(data)


@pytest.mark.parametrize("version", [VERSION + 1, 2**31, 2**63, 10**30])
def test_decode_future_version_otherwise_good(version: int) -> None:
    with pytest.raises(UnsupportedVersionError, match=f"version {version}: "):
        Message.decode(b'{"version":%d,"id":"t-1"}' % version)


@pytest.mark.parametrize("kind", [Message, Result])
@pytest.mark.parametrize("version", ["", "null", '"1"', "1.5", "true", "[1]", "1e999", "9" * 5000])
def test_decode_without_a_version(kind: type[Message | Result], version: str) -> None:
    data = b'{"version":%s,"status":"success"}' % version.encode() if version else b'{"id":"t-1"}'
    with pytest.raises(InvalidMessageError, match=r"envelope: .*version"):
        kind.decode(data)


@pytest.mark.parametrize("version", [0, -1, -(10**30)])
def test_decode_version_below_1(version: int) -> None:
    with pytest.raises(InvalidMessageError, match=f"version {version}; versions begin at 1"):
        Message.decode(b'{"version":%d,"id":["a shape nobody knows"]}' % version)


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"1", b"not JSON", b"\xff", b'{"version":1'])
def test_decode_not_an_envelope(data: bytes) -> None:
    """The error shows what came instead."""
    with pytest.raises(InvalidMessageError, match=re.escape(f"got {data!r}")):
        Message.decode(data)
    with pytest.raises(InvalidMessageError, match="not a result envelope"):
        Result.decode(data)


def test_decode_null_maps() -> None:
    """Go writes null for a map or slice that was never made."""
    nulls = '"inputs":null,"prior":null,"tags":null,"metadata":null'
    assert Message.decode(message_with(nulls)) == Message(id="t-1")
    data = b'{"version":1,"status":"success","metadata":null,"outputs":null}'
    assert Result.decode(data) == Result(status=Status.SUCCESS)


def test_decode_ignores_unknown_fields() -> None:
    assert Message.decode(message_with('"new":{"a":[1e999]},"Id":5')) == Message(id="t-1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0001-01-01T00:00:00Z", None),
        ("0001-01-01T01:00:00+01:00", None),  # the same instant
        ("2026-04-19T10:20:30.1234564Z", ROUNDED.replace(microsecond=123456)),
        ("2026-12-31T23:59:59.9999996Z", datetime(2027, 1, 1, tzinfo=UTC)),
        ("2026-04-19T10:20:30.123457-00:00", ROUNDED),
    ],
)
def test_decode_time(text: str, expected: datetime | None) -> None:
    assert Message.decode(message_with(f'"created_at":"{text}"')).created_at == expected


# What a user does with them


def test_prior_as() -> None:
    message = Message.decode(message_with('"prior":{"t-1":{"ok":true},"t-2":"2026-04-19"}'))
    assert message.prior_as("t-1", dict[str, bool]) == {"ok": True}
    assert message.prior_as("t-2", date) == date(2026, 4, 19)


def test_prior_as_before_it_was_sent() -> None:
    """The sender sees what the receiver will see."""
    assert Message(prior={"t-1": (1, 2)}).prior_as("t-1", list[int]) == [1, 2]


def test_prior_as_unknown_task() -> None:
    with pytest.raises(InvalidMessageError, match=r"no task 't-9'; it has \['t-1', 't-2'\]"):
        Message(prior={"t-2": 1, "t-1": 2}).prior_as("t-9", int)


@pytest.mark.parametrize("raw", [b'"1"', b"1.5", b"null", b"", b"nope", b'"\\ud800"', b"1e999"])
def test_prior_as_that_does_not_fit(raw: bytes) -> None:
    with pytest.raises(InvalidMessageError, match=r"prior\['t-1'\] does not fit int: "):
        Message(prior={"t-1": msgspec.Raw(raw)}).prior_as("t-1", int)


class Diff(msgspec.Struct):
    added: int
    at: datetime


def test_outputs_as() -> None:
    """Read as if straight from the wire, so a time is a time again."""
    result = Result(status=Status.SUCCESS, outputs=Diff(added=3, at=ROUNDED))
    received = Result.decode(result.encode())
    assert received.outputs == {"added": 3, "at": "2026-04-19T10:20:30.123457Z"}
    assert received.outputs_as(Diff) == result.outputs_as(Diff) == result.outputs
    assert received.outputs_as(Diff | None) == result.outputs


@pytest.mark.parametrize("outputs", [None, {"added": "3"}, [], "\ud800", object()])
def test_outputs_as_that_does_not_fit(outputs: object) -> None:
    with pytest.raises(InvalidMessageError, match=r"outputs does not fit Diff: "):
        Result(status=Status.SUCCESS, outputs=outputs).outputs_as(Diff)


@pytest.mark.parametrize(
    ("status", "error"), [("failed", TaskFailedError), ("timeout", TaskTimeoutError)]
)
def test_raise_for_status(status: str, error: type[TaskFailedError | TaskTimeoutError]) -> None:
    """It works on a result that was received, and on one that was made with plain text."""
    result = Result.decode((WIRE / f"result-{status}.json").read_bytes())
    with pytest.raises(error, match=f"task {result.id} .* at worker-1: {result.error}") as info:
        result.raise_for_status()
    assert info.value.result is result
    with pytest.raises(error, match="at nobody"):
        Result(status=status).raise_for_status()


def test_raise_for_status_success() -> None:
    result = Result(status=Status.SUCCESS)
    assert result.raise_for_status() is result


@pytest.mark.parametrize("name", EXPECTED)
def test_encode_vector(name: str) -> None:
    """Once round, nothing is lost."""
    struct = EXPECTED[name]
    assert type(struct).decode(struct.encode()) == struct
    struct.validate()


@pytest.mark.parametrize(
    "outputs",
    [None, 0, "", "☃", False, 1.5, [], {}, [1, {"a": None}], 2**70, Status.FAILED, b"x", (1, 2)],
)
def test_encode_success(outputs: object) -> None:
    """The short way for what a handler returned gives what the long one gives."""
    before = datetime.now(UTC)
    data = encode_success(
        task_id="t-1", correlation_id="c", outputs=outputs, agent="a", attempt=2, duration=3
    )
    completed_at = Result.decode(data).completed_at
    assert completed_at is not None
    assert before <= completed_at <= datetime.now(UTC)
    result = Result(
        id="t-1",
        correlation_id="c",
        status=Status.SUCCESS,
        outputs=outputs,
        agent="a",
        attempt=2,
        duration=3,
        completed_at=completed_at,
    )
    assert data == result.encode()


def test_structs_are_frozen() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        Message().id = "t-1"


def test_structs_share_no_default() -> None:
    """A dict or list that one was made with by default is nobody else's."""
    Message().inputs["a"] = "b"
    Message.decode(message_with('"tags":null')).tags.append("a")
    assert Message() == Message.decode(b'{"version":1}') == Message(inputs={}, tags=[])


def test_version_is_1() -> None:
    assert (VERSION, Message().version, Result(status=Status.FAILED).version) == (1, 1, 1)
    assert [str(status) for status in Status] == ["success", "failed", "timeout"]
