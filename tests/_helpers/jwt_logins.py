# A server that takes logins by JWT, and credentials for it, good and bad.

from __future__ import annotations

import base64
import json
import math
import time
from typing import TYPE_CHECKING, Any, Final

import nkeys

from tests._helpers.nats_servers import configured

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from trio_swarmtask.server import Server


class Key:
    """An nkey, and what it signs."""

    def __init__(self, prefix: int, fill: int) -> None:
        self.seed: bytes = nkeys.encode_seed(bytes([fill]) * 32, prefix)
        self.public: str = nkeys.from_seed(bytearray(self.seed)).public_key.decode()

    def sign(self, subject: str, nats: dict[str, Any], **claims: Any) -> str:
        """A JWT: what this key's owner says of the one with the public key ``subject``."""
        claims |= {"iss": self.public, "sub": subject, "iat": int(time.time()), "jti": "1"}
        parts: list[object] = [
            {"typ": "JWT", "alg": "ed25519-nkey"},
            {**claims, "nats": {"version": 2, **nats}},
        ]
        signed = ".".join(encode(json.dumps(part).encode()) for part in parts)
        signature: bytes = nkeys.from_seed(bytearray(self.seed)).sign(signed.encode())
        return f"{signed}.{encode(signature)}"


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


OPERATOR: Final = Key(nkeys.PREFIX_BYTE_OPERATOR, 1)
SYSTEM: Final = Key(nkeys.PREFIX_BYTE_ACCOUNT, 2)
ACCOUNT: Final = Key(nkeys.PREFIX_BYTE_ACCOUNT, 3)
STRANGER: Final = Key(nkeys.PREFIX_BYTE_ACCOUNT, 4)
USER: Final = Key(nkeys.PREFIX_BYTE_USER, 5)
OTHER: Final = Key(nkeys.PREFIX_BYTE_USER, 6)

_LIMITS: Final = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
_STORES: Final = ("mem_storage", "disk_storage", "streams", "consumer")


def jwt_server(directory: Path) -> AbstractAsyncContextManager[Server]:
    no_limits = {"wildcards": True, **dict.fromkeys((*_LIMITS, *_STORES), -1)}
    account = {"type": "account", "limits": no_limits}
    preload = {
        ACCOUNT.public: OPERATOR.sign(ACCOUNT.public, account),
        SYSTEM.public: OPERATOR.sign(SYSTEM.public, {"type": "account"}),
    }
    text = f"""
    operator: {OPERATOR.sign(OPERATOR.public, {"type": "operator"})}
    system_account: {SYSTEM.public}
    resolver: MEMORY
    resolver_preload: {json.dumps(preload)}
    """
    return configured(directory, text)


def credentials(
    file: Path, seconds: float = math.inf, account: Key = ACCOUNT, seed: bytes = USER.seed
) -> Path:
    """A file to log in with for so many seconds, or one more: JWTs count whole ones."""
    claims = {} if seconds == math.inf else {"exp": math.ceil(time.time() + seconds)}
    jwt = account.sign(
        USER.public, {"type": "user", "subs": -1, "data": -1, "payload": -1}, **claims
    )
    file.write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    )
    return file
