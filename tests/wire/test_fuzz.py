# Anything at all, decoded and encoded: nothing but the promised errors comes out.
#
# In CI the examples are the same each time. For a long run with new ones:
#     HYPOTHESIS_PROFILE=thorough pytest tests/wire/test_fuzz.py

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from trio_swarmtask import InvalidMessageError, Message, Result, Status, UnsupportedVersionError
from trio_swarmtask._envelope import encode_success

settings.register_profile(
    "quick",
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,  # a busy CI machine is no bug
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "thorough", settings.get_profile("quick"), max_examples=5_000, derandomize=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

Struct = Message | Result
KINDS: Final = (Message, Result)
VECTORS: Final = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.json"))]
FIELDS: Final = sorted({*Message.__struct_fields__, *Result.__struct_fields__})


def check_decode(data: bytes) -> None:
    """A struct, or one of the two errors."""
    for kind in KINDS:
        try:
            struct = kind.decode(data)
        except (InvalidMessageError, UnsupportedVersionError):
            continue
        assert type(struct) is kind
        assert struct.version == 1
        for field in ("created_at", "submitted_at", "completed_at"):
            time = getattr(struct, field, None)
            assert time is None or time.utcoffset() is not None


# Bytes and JSON of no good intention


class Digits:
    """Stands for an integer of 5,000 digits, which Python itself refuses to write."""

    def __repr__(self) -> str:
        return "Digits()"


any_text: Final = st.text(st.characters())  # lone surrogates too
any_number: Final = (
    st.integers()
    | st.integers(-(2**64), 2**64)
    | st.floats()
    | st.sampled_from([2**63, -(2**63) - 1])
    | st.builds(Digits)
)
any_json: Final = st.recursive(
    st.none() | st.booleans() | any_number | any_text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(any_text, inner, max_size=5),
    max_leaves=8,
)
any_time: Final = st.builds(
    "{:04}-{:02}-{:02}{}{:02}:{:02}:{:02}{}{}".format,
    st.integers(0, 10_000),
    st.integers(0, 13),
    st.integers(0, 32),
    st.sampled_from("Tt _"),
    st.integers(0, 25),
    st.integers(0, 61),
    st.integers(0, 61),
    st.just("") | st.from_regex(r"\.[0-9]{0,12}", fullmatch=True),
    st.sampled_from(["", "Z", "z", "+00:00", "-23:59", "+24:00", "+99:99", "-00:00:01", "+5"]),
)


def dump(value: object) -> bytes:
    """JSON that msgspec would never write: NaN, lone surrogates, endless integers."""
    return json.dumps(value, default=repr).replace('"Digits()"', "9" * 5000).encode()


@given(st.binary() | st.text().map(str.encode))
def test_decode_any_bytes(data: bytes) -> None:
    check_decode(data)


@given(any_json)
def test_decode_any_json(value: object) -> None:
    check_decode(dump(value))


@given(
    st.dictionaries(st.sampled_from(FIELDS), any_json | any_time, max_size=4),
    st.sampled_from(["1", "2"]),
)
def test_decode_any_envelope(fields: dict[str, Any], version: str) -> None:
    """The names are right, the values are anything."""
    fields.pop("version", None)
    for extra in ({}, {"status": "success"}):
        check_decode(b'{"version":%s,%s' % (version.encode(), dump(fields | extra)[1:]))


@given(
    st.sampled_from(FIELDS), any_json | any_time, st.sampled_from(VECTORS).map(msgspec.json.decode)
)
def test_decode_one_wrong_field(field: str, value: object, envelope: dict[str, Any]) -> None:
    check_decode(dump(envelope | {field: value}))


NASTY: Final = (
    *(
        b"1e999",
        b"-1e-999",
        b"9" * 5000,
        b"-",
        b"0.",
        b"null",
        b"NaN",
        b"true",
        b"{}",
        b"[]",
        b'""',
    ),
    *(
        b"[" * 2000,
        b'{"a":' * 2000,
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b"\\",
        b"\\u",
        b'"',
        b",",
        b":",
    ),
    *(b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\0", b'"version":2,', b'"version":0,'),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good envelope with a few cuts, repeats and nasty pieces."""
    data = draw(st.sampled_from(VECTORS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 30)))
        piece = draw(st.sampled_from(NASTY) | st.binary(max_size=4) | st.just(data[start:end] * 2))
        data = data[:start] + piece + data[end:]
    return data


class LongerMessage(Message, frozen=True):
    """Of a type of the user's: nothing is read straight into it."""


class LongerResult(Result, frozen=True):
    """The same."""


@given(mutated())
@example(b'{"version":1,"version":2,"id":"t","status":"success"}')
@example(b'{"version":1,"id":"t","status":"success","completed_at":"0001-01-01T00:00:00Z"}')
@example(b'{"version":1,"id":"t","created_at":"0001-01-01T00:00:00Z","inputs":null}')
@example(b'{"version":1,"id":"t","created_at":"2026-01-01T00:00:00"}')
@example(b'{"version":1,"id":"t","prior":{"a":[1]},"timeout":9223372036854775808}')
def test_short_way_and_long_way_read_the_same(data: bytes) -> None:
    for short, long in ((Message, LongerMessage), (Result, LongerResult)):
        try:
            expected: object = msgspec.structs.asdict(long.decode(data))
        except (InvalidMessageError, UnsupportedVersionError) as exc:
            expected = str(exc)
        try:
            found: object = msgspec.structs.asdict(short.decode(data))
        except (InvalidMessageError, UnsupportedVersionError) as exc:
            found = str(exc)
        assert found == expected


@given(mutated())
def test_decode_mutated_envelope(data: bytes) -> None:
    check_decode(data)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
@pytest.mark.parametrize("field", [*FIELDS, "unknown"])
def test_decode_deep_nesting(field: str, brackets: str, closed: bool) -> None:
    """100,000 levels, where the parser's own stack would end."""
    opening, end = ("[", "]") if brackets == "[]" else ('{"a":', "}")
    deep = opening * 100_000 + (f"1{end * 100_000}}}" if closed else "")
    for start in ("", '"version":1,"status":"success",', '"version":2,'):
        data = f'{{{start}"{field}":{deep}'.encode()
        for kind in KINDS:
            with pytest.raises((InvalidMessageError, UnsupportedVersionError)):
                kind.decode(data)


# Good envelopes, there and back

text: Final = st.text(max_size=20)
task_ids: Final = st.just("") | st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True)
counts: Final = st.integers(0, 2**63 - 1)
texts: Final = st.dictionaries(text, text, max_size=4)
good_json: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=8,
)
zones: Final = (
    st.just(UTC)
    | st.timezones()
    | st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23)).map(timezone)
)
times: Final = st.none() | st.datetimes(
    datetime(2, 1, 1), datetime(9998, 12, 31), timezones=zones, allow_imaginary=False
)
messages: Final = st.builds(
    Message,
    id=task_ids,
    **dict.fromkeys(("idempotency", "correlation_id", "parent", "root", "submitted_by"), text),
    **dict.fromkeys(("timeout", "max_attempts", "attempt"), counts),
    **dict.fromkeys(("inputs", "metadata"), texts),
    prior=st.dictionaries(text, good_json, max_size=4),
    **dict.fromkeys(("created_at", "submitted_at"), times),
    tags=st.lists(text, max_size=4),
)
results: Final = st.builds(
    Result,
    id=task_ids,
    status=st.sampled_from(Status),
    outputs=good_json,
    **dict.fromkeys(("correlation_id", "error", "agent"), text),
    **dict.fromkeys(("attempt", "duration"), counts),
    completed_at=times,
    metadata=texts,
)


def plain(struct: Struct) -> dict[str, Any]:
    """The fields; times in UTC, for Python calls no two equal where a clock was set back."""
    fields = msgspec.structs.asdict(struct)
    for name in ("created_at", "submitted_at", "completed_at"):
        if fields.get(name) is not None:
            fields[name] = fields[name].astimezone(UTC)
    return fields


@given(messages)
def test_message_there_and_back(message: Message) -> None:
    message.validate()
    data = message.encode()
    received = Message.decode(data)
    assert received.encode() == data
    prior = {task_id: msgspec.json.decode(raw) for task_id, raw in received.prior.items()}
    assert plain(msgspec.structs.replace(received, prior=prior)) == plain(message)


@given(results)
def test_result_there_and_back(result: Result) -> None:
    result.validate()
    data = result.encode()
    received = Result.decode(data)
    assert received.encode() == data
    assert plain(received) == plain(result)


@given(task_ids, text, good_json, text)
def test_success_is_written_as_a_result_is(
    task_id: str, correlation_id: str, outputs: object, agent: str
) -> None:
    data = encode_success(
        task_id=task_id,
        correlation_id=correlation_id,
        outputs=outputs,
        agent=agent,
        attempt=2,
        duration=3,
    )
    assert Result.decode(data).encode() == data


# Structs that hold anything

raws: Final = st.sampled_from(
    [b"", b"1", b'{"a":1}', b"[", b"1,", b'1,"id":"b"', b'"\xff"', b'"\\ud800"', b"1e999"]
).map(msgspec.Raw)
anything: Final = raws | st.recursive(
    any_json | st.binary() | st.datetimes() | st.complex_numbers() | st.builds(object),
    lambda inner: st.tuples(inner) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=5,
)
one_field: Final = {
    kind: st.one_of(
        [st.tuples(st.just(field), anything) for field in kind.__struct_fields__]
        + [st.tuples(st.just("prior"), st.dictionaries(any_text, anything))] * (kind is Message)
    )
    for kind in KINDS
}


def check_encode(struct: Struct) -> None:
    """Refused by the one error, or an envelope that can be read again."""
    try:
        data = struct.encode()
    except InvalidMessageError:
        return
    type(struct).decode(data)


@given(one_field[Message])
def test_encode_any_message(field: tuple[str, Any]) -> None:
    check_encode(Message(**dict([field])))


@given(one_field[Result])
def test_encode_any_result(field: tuple[str, Any]) -> None:
    check_encode(Result(**{"status": Status.SUCCESS} | dict([field])))
