# What we write, held against Go's struct definitions: by a checker that mimics encoding/json, and,
# where there is a Go, by Go itself.
#
# `FIELDS` is the one place for those definitions; the checker and the Go program are made from it.

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from trio_swarmtask import Message, Result, Status

WIRE: Final = Path(__file__).parent

# In the order of Go's structs; `*` stands for omitempty.
FIELDS: Final = {
    Message: {
        "version": "int64",
        "id": "string",
        "idempotency": "string*",
        "correlation_id": "string*",
        "parent": "string*",
        "root": "string*",
        "timeout": "int64*",
        "max_attempts": "int64*",
        "attempt": "int64*",
        "inputs": "map[string]string",
        "prior": "map[string]json.RawMessage*",
        "created_at": "time.Time",
        "submitted_at": "time.Time",
        "submitted_by": "string*",
        "tags": "[]string*",
        "metadata": "map[string]string*",
    },
    Result: {
        "version": "int64",
        "id": "string",
        "correlation_id": "string*",
        "status": "string",
        "outputs": "json.RawMessage*",
        "error": "string*",
        "agent": "string",
        "attempt": "int64",
        "duration": "int64",
        "completed_at": "time.Time",
        "metadata": "map[string]string*",
    },
}

ODD_TEXT: Final = '\0\x1f\x7f"\\/<>& é ☃ \u2028\u2029 \ufeff \uffff 🎉'
ODD_TIME: Final = datetime(1900, 1, 1, 12, 30, 0, 1, tzinfo=timezone(timedelta(seconds=1172)))
ODD_JSON: Final = [None, 1.5, -0.0, 5e-324, 1.7e308, 2**53 + 1, -(2**63), 2**64, {"a": [ODD_TEXT]}]
FULL: Final[list[Message | Result]] = [
    Message(),
    Message(
        id="-a--9_",
        **dict.fromkeys(
            ("idempotency", "correlation_id", "parent", "root", "submitted_by"), ODD_TEXT
        ),
        **dict.fromkeys(("timeout", "max_attempts", "attempt"), 2**63 - 1),
        inputs={ODD_TEXT: ODD_TEXT, "": ""},
        prior={ODD_TEXT: ODD_JSON, "": None, "raw": msgspec.Raw(b' {"a":\n[1.00, 1e5]}\t')},
        created_at=ODD_TIME,
        submitted_at=datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        tags=["", ODD_TEXT],
        metadata={"": ODD_TEXT},
    ),
    Message(created_at=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=23, minutes=59)))),
    Message(created_at=datetime(9999, 12, 31, tzinfo=timezone(timedelta(hours=-23, minutes=-59)))),
    *(Result(status=status, outputs=[status, ODD_JSON]) for status in Status),
    *(Result(status=Status.SUCCESS, outputs=value) for value in (0, "", False, [], {}, ODD_TEXT)),
    Result(
        id="r",
        status=Status.FAILED,
        **dict.fromkeys(("correlation_id", "error", "agent"), ODD_TEXT),
        **dict.fromkeys(("attempt", "duration"), 2**63 - 1),
        completed_at=ODD_TIME,
        metadata={"a": "b"},
    ),
]
VECTORS: Final[list[Message | Result]] = [
    kind.decode(path.read_bytes())
    for kind in (Message, Result)
    for path in sorted(WIRE.glob(f"{kind.__name__.lower()}-*.json"))
    if "future" not in path.stem
]
SENT: Final = FULL + VECTORS

NOW: Final = "2026-04-19T10:20:30Z"
GOOD: Final = {"version": 1, "id": "a", "inputs": None, "created_at": NOW, "submitted_at": NOW}
REFUSED: Final[list[tuple[str, Any]]] = [
    ("version", "1"),
    ("version", 1.5),
    ("version", 2**63),
    ("id", 5),
    ("inputs", {"a": 1}),
    ("inputs", []),
    ("created_at", "2026-04-19T10:20:30"),
    ("created_at", "2026-04-19 10:20:30Z"),
    ("created_at", "2026-04-19T10:20:30+00:19:32"),
    ("created_at", 1776594030),
    ("tags", "a"),
    ("tags", [1]),
    ("unknown", 1),
]


# The checker

_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)")


def no_number(text: str) -> None:
    pytest.fail(f"{text} is no JSON")


def go_accepts(value: object, go_type: str) -> bool:
    """Whether encoding/json would put ``value`` into a Go variable of this type."""
    if value is None:
        return go_type.startswith(("map", "[]", "json"))
    if go_type.startswith("map[string]"):
        inner = go_type.removeprefix("map[string]")
        return isinstance(value, dict) and all(go_accepts(item, inner) for item in value.values())
    match go_type:
        case "string":
            return isinstance(value, str)
        case "int64":
            return type(value) is int and -(2**63) <= value < 2**63
        case "time.Time":
            return isinstance(value, str) and _TIME.fullmatch(value) is not None
        case "[]string":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        case "json.RawMessage":
            return True
    pytest.fail(f"what is {go_type}?")


def check_as_go(data: bytes, kind: type[Message | Result]) -> None:
    """Fail unless Go takes ``data``, and would have written these fields in this order."""
    fields = FIELDS[kind]
    names = [name for name, _ in json.loads(data, object_pairs_hook=list)]
    envelope = json.loads(data, parse_constant=no_number)
    assert names == [name for name in fields if name in envelope]
    for name, go_type in fields.items():
        bare = go_type.removesuffix("*")
        if name in envelope:
            assert go_accepts(envelope[name], bare), f"{name}: {envelope[name]!r}"
            # A RawMessage is empty only where it is missing.
            empty = bare != "json.RawMessage" and envelope[name] in (None, "", 0, [], {})
            assert not (empty and bare != go_type), f"{name} is empty: Go leaves it out"
        else:
            assert bare != go_type, f"{name} is missing: Go always writes it"
    json.dumps(envelope, ensure_ascii=False).encode()  # no lone surrogates


@pytest.mark.parametrize("struct", SENT, ids=lambda struct: f"{type(struct).__name__} {struct.id}")
def test_encode_is_what_go_accepts(struct: Message | Result) -> None:
    check_as_go(struct.encode(), type(struct))


@pytest.mark.parametrize("name", [path.name for path in WIRE.glob("[mr]*.json")])
def test_checker_accepts_what_go_wrote(name: str) -> None:
    if "future" not in name:
        check_as_go((WIRE / name).read_bytes(), Message if name.startswith("m") else Result)


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_checker_refuses_what_go_refuses(field: str, value: object) -> None:
    """Go's own verdict on the same envelopes is below."""
    with pytest.raises(AssertionError, match=field):
        check_as_go(json.dumps(GOOD | {field: value}).encode(), Message)


# Go itself

_PROGRAM: Final = """
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"time"
)

type Message struct {
%s}

type Result struct {
%s}

type line struct {
	Kind string
	Data []byte
	Error string
}

func again(in line) ([]byte, error) {
	var envelope any = new(Message)
	if in.Kind == "Result" {
		envelope = new(Result)
	}
	decoder := json.NewDecoder(bytes.NewReader(in.Data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(envelope); err != nil {
		return nil, err
	}
	return json.Marshal(envelope)
}

func main() {
	var lines []line
	if err := json.NewDecoder(os.Stdin).Decode(&lines); err != nil {
		panic(err)
	}
	for i, in := range lines {
		data, err := again(in)
		lines[i].Data = data
		if err != nil {
			lines[i].Error = err.Error()
		}
	}
	json.NewEncoder(os.Stdout).Encode(lines)
}
"""


def go_struct(fields: dict[str, str]) -> str:
    lines = []
    for name, go_type in fields.items():
        tag = f"{name},omitempty" if go_type.endswith("*") else name
        lines.append(f'\t{name.title().replace("_", "")} {go_type.rstrip("*")} `json:"{tag}"`\n')
    return "".join(lines)


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Go program that decodes envelopes strictly and encodes them again."""
    compiler = shutil.which("go")
    if compiler is None:
        pytest.skip("there is no go on PATH")
    folder = tmp_path_factory.mktemp("go")
    (folder / "go.mod").write_text("module envelopes\n\ngo 1.21\n")
    (folder / "main.go").write_text(_PROGRAM % tuple(map(go_struct, FIELDS.values())))
    offline = {"GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    subprocess.run(
        [compiler, "build", "-o", "envelopes", "."],
        cwd=folder,
        env=os.environ | offline,
        check=True,
        timeout=110,
    )
    return folder / "envelopes"


def through_go(go: Path, envelopes: list[tuple[str, bytes]]) -> list[dict[str, str]]:
    lines = [{"Kind": kind, "Data": base64.b64encode(data).decode()} for kind, data in envelopes]
    answer = subprocess.run(
        [go], input=json.dumps(lines).encode(), stdout=subprocess.PIPE, check=True, timeout=60
    )
    return json.loads(answer.stdout)


def parsed(struct: Message | Result) -> Message | Result:
    """With raw JSON parsed, for Go writes it without blanks."""
    if isinstance(struct, Message):
        prior = {task_id: msgspec.json.decode(raw) for task_id, raw in struct.prior.items()}
        return msgspec.structs.replace(struct, prior=prior)
    return struct


def test_go_decodes_what_we_encode(go: Path) -> None:
    """Strictly, and what it writes then is the same envelope to us."""
    lines = through_go(go, [(type(struct).__name__, struct.encode()) for struct in SENT])
    for struct, line in zip(SENT, lines, strict=True):
        assert line["Error"] == ""
        again = type(struct).decode(base64.b64decode(line["Data"]))
        assert parsed(again) == parsed(type(struct).decode(struct.encode()))


def test_go_refuses_what_the_checker_refuses(go: Path) -> None:
    envelopes = [GOOD | {field: value} for field, value in REFUSED]
    lines = through_go(go, [("Message", json.dumps(envelope).encode()) for envelope in envelopes])
    accepted = [e for e, line in zip(envelopes, lines, strict=True) if line["Error"] == ""]
    assert accepted == []
