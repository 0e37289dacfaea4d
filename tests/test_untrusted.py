"""Readers of what comes from the network: whatever the bytes, each raises its one error or none."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import trio_swarmtask
from tests._helpers.fuzz import rounds, told
from tests._helpers.malformed import ZOO, spoiled
from trio_swarmtask import InvalidMessageError, Message, Result, UnsupportedVersionError
from trio_swarmtask._abc import Entry
from trio_swarmtask._check import Malformed, reader
from trio_swarmtask._dispatcher._future import Future
from trio_swarmtask._envelope import read_as
from trio_swarmtask._errors import InvalidResultError
from trio_swarmtask._idempotency import _read as read_entry
from trio_swarmtask._jetstream._answers import read_ack, read_answer
from trio_swarmtask._jetstream._api import measure_clock
from trio_swarmtask._jetstream._headers import (
    delivery_number,
    find_firing,
    parse_count,
    read_headers,
)
from trio_swarmtask._jetstream._streams import Durable
from trio_swarmtask._nats._error_lines import ErrorLine, read_refusal
from trio_swarmtask._nats._protocol import Incoming, Parser, parse_headers
from trio_swarmtask._nats._requests import status_of
from trio_swarmtask._record import decode as decode_record
from trio_swarmtask._schedule import Plan, make_firing, read_plans

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = Path(trio_swarmtask.__file__).parent
WIRE = Path(__file__).parent / "wire"


def load(name: str) -> Any:  # noqa: ANN401 - plain data
    return json.loads((WIRE / f"{name}.json").read_bytes())


MESSAGE = {"subject": "work.a.t1", "seq": 5, "time": "2026-01-01T00:00:00Z", "hdrs": "", "data": ""}
STREAM = {
    "config": {
        "name": "S",
        "subjects": ["a.>"],
        "discard": "new",
        "max_age": 0,
        "num_replicas": 1,
        "max_msgs_per_subject": 1,
        "max_msg_size": -1,
        "allow_direct": True,
        "republish": {"src": "a.>", "dest": "b.>", "headers_only": False},
    },
    "state": {"last_seq": 1, "subjects": {"a": 1}},
    "ts": "2026-01-01T00:00:00.123456789Z",
}
CONSUMER = {
    "stream_name": "S",
    "name": "c",
    "created": "2026-01-01T00:00:00.123456789Z",
    "config": {"ack_wait": 1, "max_deliver": -1, "max_batch": 1, "ack_policy": "explicit"},
    "delivered": {"stream_seq": 1},
}
# What is asked for, with its body, and what a server answers.
ANSWERS: dict[str, tuple[dict[str, object], dict[str, Any]]] = {
    "STREAM.NAMES": ({}, {"streams": ["S"]}),
    "STREAM.INFO.S": ({}, STREAM),
    "STREAM.CREATE.S": ({}, STREAM),
    "STREAM.MSG.GET.S": ({"last_by_subj": "work.*.t1"}, {"message": MESSAGE}),
    "STREAM.MSG.DELETE.S": ({}, {"success": True}),
    "CONSUMER.INFO.S.c": ({}, CONSUMER),
    "CONSUMER.CREATE.S.c": ({}, CONSUMER),
    "INFO": ({}, {}),
}


def read_future(data: bytes) -> object:
    future = Future._create("t-1", "a", None)
    future._resolve(data)
    return future.result, future.state


def read_as_anything(data: bytes) -> object:
    return read_as(msgspec.Raw(data), dict[str, str], "outputs")


def as_text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


def incoming(data: bytes) -> Incoming:
    return Incoming(data, data, data, b"")


def parse(data: bytes) -> object:
    return Parser(SimpleNamespace()).take(data)  # type: ignore[arg-type]  # it has no subscriptions


# By what is read: the reader, what it may raise, and a good text.
READERS: dict[str, tuple[Callable[[bytes], object], tuple[type[Exception], ...], Any]] = {
    "a message": (
        Message.decode,
        (InvalidMessageError, UnsupportedVersionError),
        load("message-full"),
    ),
    "a result": (
        Result.decode,
        (InvalidMessageError, UnsupportedVersionError),
        load("result-full"),
    ),
    "a future's result": (read_future, (UnsupportedVersionError,), load("result-full")),
    "a record": (
        lambda data: decode_record(data, "t-2"),
        (InvalidResultError,),
        load("stored-success"),
    ),
    "what a user asks for": (read_as_anything, (InvalidMessageError,), {"a": "b"}),
    "an entry of a key": (
        lambda data: read_entry(Entry("key", 1, data)),
        (),
        {"task": "t-1", "holder": "h", "outputs": {"a": 1}},
    ),
    "an acknowledgement": (read_ack, (Malformed,), {"stream": "S", "seq": 1, "duplicate": True}),
    **{
        f"an answer to {request}": (
            lambda data, request=request, body=body: read_answer(request, body, data),
            (Malformed,),
            {**answer, "error": None},
        )
        for request, (body, answer) in ANSWERS.items()
    },
    "a refusal": (
        lambda data: read_answer("INFO", {}, data),
        (Malformed,),
        {"error": {"code": 404, "err_code": 1, "description": "no"}},
    ),
    "what a schedule starts": (
        lambda data: make_firing("t-1", data, 10**12),
        (),
        load("message-full"),
    ),
    "a schedule": (
        lambda data: (
            read_plans([Plan("t-1", "a", data, every=5)]),
            Plan("t-1", "a", data).same_as(Plan("t-1", "a", b"{}")),
        ),
        (),
        load("message-full"),
    ),
    "the lines of a server": (parse, (), {}),
    "headers": (
        lambda data: (parse_headers(data), read_headers(incoming(data)), status_of(incoming(data))),
        (),
        {},
    ),
    "the subject of an acknowledgement": (
        lambda data: (
            delivery_number(as_text(data), Durable("S", "c", 30)),
            parse_count(as_text(data)),
            find_firing("t-1", incoming(data)),
        ),
        (),
        {},
    ),
    "what is not permitted": (lambda data: read_refusal(ErrorLine(as_text(data))), (), {}),
}


# What is no JSON where all is well.
TEXTS = {
    "the lines of a server": [b'INFO {"max_payload":1048576}\r\n', b"MSG a 1 b 3\r\nabc\r\n"],
    "headers": [
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0\r\nSwarm-Seconds-Left: 5.000\r\nSwarm-Lease: group-1\r\nStatus: 1\r\n\r\n",
    ],
    "the subject of an acknowledgement": [
        b"$JS.ACK.S.c.1.5.5.1700000000000000000.0",
        b"$JS.ACK.domain.account.S.c.1.5.5.1700000000000000000.0.token",
    ],
    "what is not permitted": [b"'Permissions Violation for Publish to \"a.b\"'"],
}


@pytest.mark.parametrize("name", READERS)
def test_reader(name: str) -> None:
    """The zoo, and each odd value in each place; the good text is read."""
    read, errors, sample = READERS[name]
    read(json.dumps(sample).encode())
    refused = 0
    for data in [*ZOO.values(), *spoiled(sample)]:
        try:
            read(data)
        except errors:
            refused += 1
    assert refused > len(ZOO) / 2 or read is read_future or not errors


@pytest.mark.parametrize("name", READERS)
def test_reader_of_mutated(name: str) -> None:
    """Of 200 in CI, of 100,000 by `nox -s fuzz`: see `jetstream/test_fuzz.py`."""
    read, errors, sample = READERS[name]
    samples = [json.dumps(sample).encode(), *TEXTS.get(name, ())]
    for played in rounds(name):
        with told(played):
            for _ in range(played.count):
                with suppress(*errors):
                    read(played.mutated(samples))


@pytest.mark.parametrize("stamp", [None, 5, "", "yesterday", "9999-99-99T00:00:00Z", "2026-01-01"])
async def test_odd_time_of_a_server(stamp: object) -> None:
    """As if it told none."""
    assert measure_clock(stamp, 0.0) == pytest.approx(measure_clock(None, 0.0), abs=1)


def test_answer_about_another_subject() -> None:
    for subject in ("work.a.t2", "work.a", "other", "work.a.b.t1"):
        data = json.dumps({"message": {**MESSAGE, "subject": subject}}).encode()
        for body in ({"last_by_subj": "work.*.t1"}, {"seq": 1, "next_by_subj": "work.*.t1"}):
            with pytest.raises(Malformed, match="another subject"):
                read_answer("STREAM.MSG.GET.S", body, data)


def test_acknowledgement_that_confirms_nothing() -> None:
    for data in (b"{}", b'{"stream":"S"}', b'{"seq":1}', b'{"stream":"S","seq":0}'):
        with pytest.raises(Malformed, match="does not say where"):
            read_ack(data)


# In which files bytes become values, and how often. One that is not in the list is to go through
# `reader`, and into the table above.
DECODERS = re.compile(
    r"json\.decode\(|Decoder\(|json\.loads|b64decode|fromisoformat|literal_eval|pickle|yaml"
)
KNOWN = {
    "_check.py": 1,
    "_nats/_protocol.py": 1,  # INFO: whatever it raises replaces the connection
    # Of answers that `_answers.py` has found to be base64.
    "_jetstream/_api.py": 2,
}


def test_all_readers_are_known() -> None:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        code = re.sub(r"^\s*#.*", "", path.read_text(), flags=re.MULTILINE)
        if count := len(DECODERS.findall(code)):
            found[str(path.relative_to(PACKAGE))] = count
    assert found == KNOWN


def test_readers_of_the_package_are_in_the_table() -> None:
    """Each call of `reader` makes one that a row above calls."""
    made = {}
    for path in PACKAGE.rglob("*.py"):
        if count := len(re.findall(r"\breader\(", path.read_text())):
            made[path.name] = count
    assert made == {
        "_check.py": 2,  # itself, and read_json
        "_answers.py": 2,
        "_envelope.py": 4,
        "_idempotency.py": 2,  # the second reads what was just written here
        "_record.py": 1,
        "_schedule.py": 2,
        "_message.py": 2,
    }


def test_one_error() -> None:
    read = reader(dict[str, int])
    assert read(b'{"a":1}') == {"a": 1}
    for data in ZOO.values():
        if data != b"{}":
            with pytest.raises(Malformed):
                read(data)
