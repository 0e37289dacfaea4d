# Bytes that should not be there: what each reader of what comes from the network is fed.
#
# `ZOO` has what is wrong everywhere. `spoiled` takes a good text and puts each odd value in the
# place of each good one, `mutate` does something of that kind at random.

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests._helpers.hostile_bytes import ODD_JSON

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

DEEP = 100_000

ZOO: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"garbage",
    "half an object": b'{"status":',
    "null": b"null",
    "a number": b"5",
    "a string": b'"x"',
    "a list": b"[]",
    "a list of nothing": b"[null]",
    "an object": b"{}",
    "two objects": b"{}{}",
    "a NUL": b"\0",
    "not UTF-8": b"\xff\xfe\xfd",
    "not UTF-8 in a string": b'"\xff"',
    "not UTF-8 in a value": b'{"error":"\xff","task":"\xff","Status":"\xff","stream":"\xff"}',
    "not UTF-8 in a name": b'{"\xff":1}',
    "not UTF-8 in what nobody asks for": b'{"unknown":["\xff"]}',
    "half of a surrogate": b'{"task":"\\ud800","error":"\\ud800"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "deep lists": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "deep lists that end": b"[" * DEEP + b"]" * DEEP,
    "deep in what nobody asks for": b'{"unknown":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep outputs": b'{"task":"t","outputs":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "a large float": b"1e999",
    "outputs of a large float": b'{"task":"t","outputs":1e999}',
    "outputs that are not UTF-8": b'{"task":"t","outputs":"\xff"}',
    "outputs that are not": b'{"task":"t","outputs":}',
    "a large int": b"9" * 5000,
    "NaN": b"NaN",
    "an error that is a list": b'{"error":[1]}',
    "an error that is a text": b'{"error":"no"}',
    "an error that is empty": b'{"error":{}}',
    "an error without a code": b'{"error":{"description":"no"}}',
    "an error with a code in words": b'{"error":{"code":"no"}}',
    "an error with a large code": b'{"error":{"code":1e999}}',
    "an error with a larger code": b'{"error":{"code":' + b"9" * 40 + b"}}",
    "an error below nothing": b'{"error":{"code":-1,"err_code":-1}}',
}
_MARK = "the odd value goes here"


def spoiled(sample: Any) -> Iterator[bytes]:  # noqa: ANN401 - plain data
    """The JSON of ``sample``, over and over, with one value in it that is odd, or missing."""
    for path in _paths(sample):
        copy = json.loads(json.dumps(sample))
        parent = copy
        for name in path[:-1]:
            parent = parent[name]
        parent[path[-1]] = _MARK
        text = json.dumps(copy)
        for odd in ODD_JSON:
            yield text.replace(f'"{_MARK}"', odd).encode()
        yield text.replace(_MARK, "not UTF-8").encode().replace(b"not UTF-8", b"\xff")
        del parent[path[-1]]
        yield json.dumps(copy).encode()


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401 - plain data
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for name, found in list(inner):
        yield (name,)
        if isinstance(found, dict | list):
            yield from ((name, *path) for path in _paths(found))


def mutate(rng: random.Random, sample: bytes) -> bytes:
    """``sample`` with something wrong, most often; or other bytes altogether."""
    match rng.randrange(8):
        case 0:
            return rng.choice(list(ZOO.values()))
        case 1:
            return sample[: rng.randrange(len(sample) + 1)]
        case 2:
            return rng.randbytes(rng.choice((1, 3, 40, 500)))
        case 3 | 4:
            return _flip(rng, sample)
        case 5:
            cut = rng.randrange(len(sample) + 1)
            inserted = rng.choice((b"\xff", b"\0", b"[" * 3000, b"\xed\xa0\x80"))
            return sample[:cut] + inserted + sample[cut:]
        case _:
            return _replace(rng, sample)


def _flip(rng: random.Random, sample: bytes) -> bytes:
    mutated = bytearray(sample or b"{}")
    for _ in range(rng.randrange(1, 4)):
        mutated[rng.randrange(len(mutated))] = rng.randrange(256)
    return bytes(mutated)


def _replace(rng: random.Random, sample: bytes) -> bytes:
    try:
        value = json.loads(sample)
        paths = list(_paths(value))
    except (ValueError, TypeError):
        return _flip(rng, sample)
    if not paths:
        return _flip(rng, sample)
    path = rng.choice(paths)
    parent = value
    for name in path[:-1]:
        parent = parent[name]
    parent[path[-1]] = _MARK
    return json.dumps(value).replace(f'"{_MARK}"', rng.choice(ODD_JSON)).encode()
