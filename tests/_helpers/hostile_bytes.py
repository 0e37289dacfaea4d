# The bytes that hostile cases are made of: headers, names, values, IDs, JSON, lines, greetings.

from __future__ import annotations

import json

MAX_PAYLOAD = 1 << 20
FUTURE = json.dumps({"version": 2, "id": "later", "steps": [None]}).encode()

# Blocks that ended nats-py's read loop: too short for its status line, or one that is not UTF-8.
DEADLY_HEADERS = {
    "of two bytes": b"\r\n",
    "of four bytes": b"NATS",
    "of eight bytes": b"NATS/1.0",
    "with a status that is not UTF-8": b"NATS/1.0 \xff\xfe\xfd\r\n\r\n",
    "with a description that is not UTF-8": b"NATS/1.0 503 caf\xe9\r\n\r\n",
    "with a heartbeat that is not UTF-8": b"NATS/1.0 100 \xc3\r\nA: b\r\n\r\n",
}
# White space to nats-py's parser, and part of a subject to the server.
DEADLY_CHARACTERS = (b"\x0b", b"\x0c")

# What only a broken server says.
BROKEN_LINES = {
    "INFO that is not JSON": b"INFO {\r\n",
    "INFO that is not UTF-8": b'INFO {"\xff":1}\r\n',
    "INFO that is a list": b"INFO []\r\n",
    "INFO with a number of URLs": b'INFO {"connect_urls":5}\r\n',
    "INFO with half a URL": b'INFO {"connect_urls":["["]}\r\n',
    "-ERR that is not UTF-8": b"-ERR 'caf\xe9'\r\n",
    "-ERR without text": b"-ERR \r\n",
    "MSG of less than nothing": b"MSG a 1 -1\r\n",
    "MSG for no number": b"MSG a b 1\r\nx\r\n",
    "HMSG that is shorter than its headers": b"HMSG a 1 30 3\r\nabc\r\n",
    "PONG for nobody": b"PONG\r\n",
    "HELLO": b"HELLO\r\n",
}
# What another program may say that has taken the port, or a server that is broken.
GREETINGS = {
    "nothing": b"",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "no line": b"\0" * 200_000,
    "INFO without a text": b"INFO\r\n",
    "INFO that is not UTF-8": b"INFO \xff\r\n",
    "INFO that is a list": b"INFO []\r\n",
    "INFO with half a URL": b'INFO {"connect_urls":["["]}\r\n',
    "INFO with a limit in words": b'INFO {"max_payload":"a lot"}\r\n',
}
# Nothing tells that the rest of it will not come.
ENDLESS_LINES = {
    "a line without an end": b"X" * 5000 + b"\r\n",
    "MSG without an end": b"MSG a 1 1000000000\r\n",
}

HEADERS = (
    *DEADLY_HEADERS.values(),
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 3\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
    b"NATS/1.0 100\r\nIdle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n",
    b"NATS/1.0 404",
    b"NATS/1.0 404XY",
    b"NATS/1.0 503XY",
    b"NATS/1.0 ",
    b"NATS/1.0 5\r\n\r\n",
    b"NATS/1.0 \xc2\xb2\xc2\xb2\xc2\xb2\r\n\r\n",
    b"NATS/1.0\r\nA: b",
    b"NATS/1.0\nA: b\n\n",
    b"NATS/2.0\r\nA: b\r\n\r\n",
    b"A: b\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\n: no name\r\n a: folded\r\nA:b:c\r\n:\r\n\r\n",
    b"NATS/1.0\r\nA\0B: \0\r\n\r\n",
    b"NATS/1.0\r\ncaf\xe9: \xff\xfe\r\n\xe2\x98\x83: \xe2\x98\x83\r\n\r\n",
    b"NATS/1.0\r\nA: b\r\n\r\nB: after the end\r\n\r\n",
    b"NATS/1.0\r\nA: " + b"x" * 60_000 + b"\r\n\r\n",
    b"NATS/1.0\r\nA: " + b"x" * 70_000 + b"\r\n\r\n",
    b"NATS/1.0\r\n" + b"A: b\r\n" * 800 + b"\r\n",
)
NAMES = (
    *("Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending"),
    *("Nats-Expected-Stream", "Nats-Expected-Last-Sequence", "Nats-Expected-Last-Msg-Id"),
    *("Nats-Expected-Last-Subject-Sequence", "Nats-Msg-Id", "Nats-TTL", "Nats-Incr"),
    *("Nats-Schedule", "Nats-Schedule-Target", "Nats-Schedule-TTL", "Nats-Marker-Reason"),
    *("Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Required-Api-Level", "Nats-Pending-Messages"),
    *("Nats-Rollup", "Nats-Consumer-Stalled", "Nats-Last-Consumer", "traceparent", "KV-Operation"),
    *("Status", "Description", "Swarm-Reason", "Swarm-Deliveries", "Swarm-Anything"),
)
VALUES = (
    *("", "0", "-1", "1", "²", "1e9", "9" * 30, "9" * 5000, "x", "TASKS", "done.1", "sub", "503"),
    *("1h", "never", "@at 2199-01-01T00:00:00Z", "@every 1h", "work.work.later", "café", "true"),
)
ODD_IDS = (b"*", b">", b"a*", b"\xff\xfe", b"\0", b"\x1b[31m", b"\x7f", b"%s", b"'\"\\", b"{}")
ODD_TEXTS = ("☃", "\u2028", "\u00a0", "\u202e", "x" * 2000, "é" * 900, "a.b", "a.later", "$JS", "-")

FIELDS = (
    *("version", "id", "idempotency", "correlation_id", "parent", "root", "timeout"),
    *("max_attempts", "attempt", "inputs", "prior", "created_at", "submitted_at", "submitted_by"),
    *("tags", "metadata", "status", "outputs", "error", "agent", "duration", "completed_at"),
)
ODD_JSON = (
    *("null", "true", "-1", "0", "1.5", "1e999", "9" * 40, "NaN", "-Infinity", '""', '"1"', "[]"),
    *(
        '"0001-01-01T00:00:00Z"',
        '"9999-12-31T23:59:60Z"',
        '"2020-01-01"',
        "{}",
        '{"a":1}',
        "[null]",
    ),
    *(r'"\ud800"', r'"\u0000"', "[" * 3000, '{"a":' * 2000, "[" * 900 + "]" * 900),
)
STATUSES = (b"100", b"204", b"400", b"404", b"408", b"409", b"423", b"503", b"999", b"4\xc2\xb2")
ANSWERS = (b"\0", b"not JSON", b"null", b"[]", b"5", b'"x"', b'{"stream":', b"\xff\xfe{}", b"[[[")
