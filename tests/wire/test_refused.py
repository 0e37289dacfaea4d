# What a Message or Result refuses to send: wrong types of every field, and what JSON can't carry.
#
# Go refuses a number where a string belongs, or reads something else than was meant. So nothing of
# the kind may leave, and the error must name the field and the value.

from __future__ import annotations

import datetime as dt
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

import msgspec
import pytest

from trio_swarmtask import VERSION, InvalidMessageError, Message, Result, Status
from trio_swarmtask._envelope import encode_success

# What a field may not hold. Every field is one of these kinds.
NOT_TEXT: Final = (None, 1, 1.5, True, b"x", ["x"], {"x": "y"})
NOT_A_NUMBER: Final = (None, "1", 1.5, 2.0, True, b"1", [1], 2**63, -1, -(2**63), -(2**80))
NOT_A_TIME: Final = (0, 1.5, "2026-04-19T10:20:30Z", dt.date(2026, 4, 19), datetime(2026, 4, 19))
NOT_A_MAP: Final = (1, "x", b"x", [], ["x"], [("a", "b")], {1: "x"}, {None: "x"})
NOT_TEXT_TO_TEXT: Final = (*NOT_A_MAP, {"x": 1}, {"x": None}, {"x": b"y"}, {"x": ["y"]})
NOT_A_LIST_OF_TEXT: Final = (1, "x", b"x", {}, {"x": "y"}, [1], [None], [b"x"], ["x", ["y"]])
REFUSED: Final[dict[type[Message | Result], dict[str, tuple[Any, ...]]]] = {
    Message: {
        "version": (*NOT_A_NUMBER, 0, VERSION + 1),
        **dict.fromkeys(("id", "idempotency", "correlation_id", "parent", "root"), NOT_TEXT),
        **dict.fromkeys(("timeout", "max_attempts", "attempt"), NOT_A_NUMBER),
        "inputs": NOT_TEXT_TO_TEXT,
        "prior": NOT_A_MAP,
        **dict.fromkeys(("created_at", "submitted_at"), NOT_A_TIME),
        "submitted_by": NOT_TEXT,
        "tags": NOT_A_LIST_OF_TEXT,
        "metadata": NOT_TEXT_TO_TEXT,
    },
    Result: {
        "version": (*NOT_A_NUMBER, 0, VERSION + 1),
        **dict.fromkeys(("id", "correlation_id", "error", "agent"), NOT_TEXT),
        "status": (*NOT_TEXT, "", "done", "SUCCESS"),
        "outputs": (),  # anything JSON can carry
        **dict.fromkeys(("attempt", "duration"), NOT_A_NUMBER),
        "completed_at": NOT_A_TIME,
        "metadata": NOT_TEXT_TO_TEXT,
    },
}


def make(kind: type[Message | Result], field: str, value: object) -> Message | Result:
    """A struct that is good but for one field."""
    good: dict[str, Any] = {"status": Status.SUCCESS} if kind is Result else {}
    return kind(**good | {field: value})


@pytest.mark.parametrize("kind", [Message, Result])
def test_refused_values_are_known_for_every_field(kind: type[Message | Result]) -> None:
    assert REFUSED[kind].keys() == set(kind.__struct_fields__)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [(k, f, v) for k, fields in REFUSED.items() for f, values in fields.items() for v in values],
)
def test_encode_wrong_value(kind: type[Message | Result], field: str, value: object) -> None:
    """Go would refuse it, or read something else: so it is refused here, by name."""
    named = re.escape(f"{kind.__name__}.{field} = {value!r} ")
    with pytest.raises(InvalidMessageError, match=named):
        make(kind, field, value).encode()
    with pytest.raises(InvalidMessageError, match=named):
        make(kind, field, value).validate()


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


class Unset(msgspec.Struct):
    number: int


def unset() -> Unset:
    value = Unset(1)
    del value.number
    return value


@dataclass
class Holder:
    raw: msgspec.Raw


class BrokenZone(dt.tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        raise RuntimeError("no offset today")


UNFIT: Final[dict[str, Any]] = {
    "object": object(),
    "class": Message,
    "complex": 1j,
    "surrogate": "\ud800",
    "surrogate_key": {"\udfff": 1},
    "tuple_key": {(1, 2): 3},
    "none_key": {None: 1},
    "huge": 10**5000,
    "cycle": cycle(),
    "deep": nested(100_000),
    "unset": unset(),
    "broken_zone": datetime(2026, 4, 19, tzinfo=BrokenZone()),
    "raw": msgspec.Raw(b"nope"),
    "raw_empty": msgspec.Raw(b""),
    "raw_truncated": msgspec.Raw(b'{"a":'),
    "raw_two": msgspec.Raw(b"1 2"),
    "raw_intruder": msgspec.Raw(b'1,"id":"t-9"'),
    "raw_not_utf8": msgspec.Raw(b'"\xff"'),
    "raw_inside": {"a": [msgspec.Raw(b"nope")]},
    "raw_in_a_dataclass": Holder(msgspec.Raw(b"nope")),
}


@pytest.mark.parametrize("value", UNFIT.values(), ids=UNFIT)
def test_encode_what_json_cannot_carry(value: object) -> None:
    """It never reaches the wire, and the error says which field it was."""
    with pytest.raises(InvalidMessageError, match="prior"):
        Message(prior={"t-1": value}).encode()
    with pytest.raises(InvalidMessageError, match="outputs"):
        Result(status=Status.SUCCESS, outputs=value).encode()
    with pytest.raises(
        InvalidMessageError, match=r"^the handler returned .*, which can't be sent: "
    ):
        encode_success(
            task_id="t-1", correlation_id="", outputs=value, agent="a", attempt=1, duration=0
        )


@pytest.mark.parametrize(
    "field", ["id", "correlation_id", "submitted_by", "inputs", "tags", "metadata"]
)
def test_encode_lone_surrogate(field: str) -> None:
    """Python's own kind of broken text; UTF-8 has no place for it."""
    values = {"tags": ["\ud800"], "inputs": {"a": "\ud800"}, "metadata": {"\ud800": "a"}}
    with pytest.raises(InvalidMessageError, match=rf"Message\.{field} = .*ud800"):
        Message(**{field: values.get(field, "\ud800")}).encode()


class BrokenRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no text today")


@pytest.mark.parametrize(
    "value",
    [10**5000, nested(100_000), cycle(), BrokenRepr(), {"x": BrokenRepr()}],
    ids=["huge", "deep", "cycle", "broken_repr", "broken_repr_inside"],
)
@pytest.mark.parametrize("field", ["id", "timeout", "inputs", "tags", "created_at"])
def test_encode_wrong_value_that_cannot_be_shown(field: str, value: object) -> None:
    """The error is the field's, not that of the value's repr."""
    with pytest.raises(InvalidMessageError, match=rf"Message\.{field} = "):
        Message(**{field: value}).encode()


def test_encode_shows_a_short_value() -> None:
    with pytest.raises(
        InvalidMessageError, match=r"inputs = .{100,200} \(\d+ characters\)"
    ) as info:
        Message(inputs={"a": "x" * 100_000, "b": 1}).encode()
    assert len(str(info.value)) < 400


class NoOffset(dt.tzinfo):
    def utcoffset(self, _: datetime | None) -> None:
        return None


@pytest.mark.parametrize(
    "time",
    [
        datetime(2026, 4, 19),
        datetime.min,
        datetime(2026, 4, 19, tzinfo=NoOffset()),  # naive too, by Python's definition
        datetime(2026, 4, 19, tzinfo=BrokenZone()),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(seconds=1))),  # the year 0 in UTC
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(seconds=-1))),
    ],
)
def test_encode_time_that_go_refuses(time: datetime) -> None:
    """Without an offset, or with one that RFC 3339 can't write and no UTC to fall back to."""
    with pytest.raises(InvalidMessageError, match=r"Message\.created_at = "):
        Message(created_at=time).encode()
    with pytest.raises(InvalidMessageError, match=r"Message\.submitted_at = "):
        Message(submitted_at=time).encode()
    with pytest.raises(InvalidMessageError, match=r"Result\.completed_at = "):
        Result(status=Status.FAILED, completed_at=time).encode()


BAD_IDS: Final = (
    *("a.b", "a*", ">", "a>b", "a b", " a", "a ", "a\n", "a\0b", "\x7f", "a\tb", "\r\n"),
    *("é", "٣", "a" * 129, "a/b", "a:b", "-a.", "$JS"),
)


@pytest.mark.parametrize("task_id", BAD_IDS)
def test_validate_bad_id(task_id: str) -> None:
    """It would be a token of a subject, so the error names it."""
    named = re.escape(f"task ID {task_id!r} must be a string of 1 to 128 letters")
    with pytest.raises(InvalidMessageError, match=named):
        Message(id=task_id).validate()
    with pytest.raises(InvalidMessageError, match=named):
        Result(status=Status.SUCCESS, id=task_id).validate()


@pytest.mark.parametrize("task_id", ["", "a", "-", "a--b", "-a", "a-", "_", "A-9_z", "a" * 128])
def test_validate_good_id(task_id: str) -> None:
    """Blank too: it is filled in later."""
    Message(id=task_id).validate()
    Result(status=Status.SUCCESS, id=task_id).validate()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_encode_nan_becomes_null(number: float) -> None:
    """As msgspec does: JSON has no word for it."""
    message = Message.decode(Message(prior={"t-1": [number]}).encode())
    assert bytes(message.prior["t-1"]) == b"[null]"
    assert Result.decode(Result(status=Status.SUCCESS, outputs=number).encode()).outputs is None


def test_encode_keeps_an_instant_whose_offset_has_seconds() -> None:
    """RFC 3339 has minutes only; cutting the rest off would move the instant."""
    time = datetime(1900, 1, 1, tzinfo=timezone(timedelta(minutes=19, seconds=32)))
    decoded = Message.decode(Message(created_at=time, submitted_at=time).encode())
    assert decoded.created_at == decoded.submitted_at == time
    assert Message.decode(Message(created_at=datetime(1, 1, 1, tzinfo=UTC)).encode()) == Message()
