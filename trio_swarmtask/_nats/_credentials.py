# NKey seeds and credentials files, read before nats-py reads them.
#
# nats-py reads them in the middle of connecting. There a bad file raises a raw error, or looks like
# a server that is not there. If the JWT is missing, nats-py loops for ever at the end of the file
# and freezes the whole program. So the file is checked first, and the error names it.

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .._errors import BrokerError

if TYPE_CHECKING:
    from .._config import NATSConfig

# As nsc writes them; the dashes before END differ in number.
_JWT: Final = re.compile(r"-----BEGIN NATS USER JWT-----\s+\S+\s+-+END NATS USER JWT-+")
_SEED: Final = re.compile(r"-----BEGIN USER NKEY SEED-----\s+(\S+)\s+-+END USER NKEY SEED-+")


def check_credentials(config: NATSConfig) -> None:
    """Raise BrokerError, naming the file, if what ``config`` logs in with can't be used."""
    path = config.credentials or config.nkey_seed
    if path is None:
        return
    try:
        import nkeys  # noqa: F401 - nats-py imports it in the middle of connecting
    except ImportError:
        raise BrokerError(
            f"to log in with {path}, install the extra: pip install 'trio-swarmtask[nkeys]'"
        ) from None
    if config.credentials is not None:
        text = _read(config.credentials)
        seed = _SEED.search(text)
        if _JWT.search(text) is None or seed is None:
            raise BrokerError(
                f"{config.credentials} is no credentials file: it must hold a user's JWT and NKey "
                "seed, as 'nsc generate creds' writes them"
            )
        _check_seed(config.credentials, seed[1])
    if config.nkey_seed is not None:
        _check_seed(config.nkey_seed, _read(config.nkey_seed).strip())


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise BrokerError(f"can't read the credentials in {path}: {reason}") from None


def _check_seed(path: str | Path, seed: str) -> None:
    import nkeys

    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except Exception:  # noqa: BLE001 - nkeys lets out what base64 and others raise
        # Not chained: the original error may show a part of the seed.
        raise BrokerError(f"{path} holds no NKey seed of a user: it begins with 'SU'") from None
