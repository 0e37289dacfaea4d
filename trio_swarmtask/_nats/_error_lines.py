# What the error lines of a server mean, `-ERR '<text>'`: the one table of them.
#
# A line means one of three things. A refusal of one call: the server refuses a subject, or a
# subscription, and keeps the connection; that call raises, and everything else goes on. An outage:
# the server closes the connection, for a reason that may pass; the client reconnects, for as long
# as `reconnect_timeout` says. Or the end: no second try would help, above all if the credentials
# are not valid any more. (A login that is refused at a reconnect is still tried again: servers are
# not all changed at the same time.)
#
# A line that is not in the table is logged, and the connection stays. If the server then closes it,
# that is an outage like any other.
#
# Source: `sendErr` in nats-server 2.15: client.go, parser.go, server.go, accounts.go, route.go.
# There `%q` quotes a subject as Go does: `"` and `\` are escaped.

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import nats.errors

if TYPE_CHECKING:
    from nats.aio.subscription import Subscription


class Meaning(enum.Enum):
    """What an error line means."""

    REFUSED = "one call is refused, and the connection stays"
    OUTAGE = "the server closes the connection, and may take the next one"
    LOGIN = "the server closes the connection, and would refuse these credentials again"
    FINAL = "the server closes the connection, and would close the next one"
    TOLD = "the connection stays, and there is nothing to do but to tell"


TOO_MANY_SUBSCRIPTIONS: Final = "maximum subscriptions exceeded"

# How a line begins, in lower case. The first match counts.
MEANINGS: Final = {
    # The client has to find out by itself which subscription it is about (see `_subscriptions.py`).
    # The limit is the server's, the account's or the user's.
    TOO_MANY_SUBSCRIPTIONS: Meaning.REFUSED,
    # The user may not ask for an answer on this subject. Our own subjects are not refused like
    # that.
    "permissions violation for publish with reply": Meaning.TOLD,
    # These lines name the subject. They also come for a subscription that stands, when the
    # permissions are changed, and for one with more tokens than the server's `max_subject_tokens`.
    "permissions violation for": Meaning.REFUSED,
    # Subjects are checked before they are sent; the second line goes to clients that ask for it.
    "invalid subject": Meaning.TOLD,
    "invalid publish subject": Meaning.TOLD,
    # A login that is wrong, revoked or expired.
    "authorization violation": Meaning.LOGIN,
    "user authentication revoked": Meaning.LOGIN,
    "user authentication expired": Meaning.LOGIN,
    "account authentication expired": Meaning.LOGIN,
    # Limits, which operators lower and raise while clients are connected.
    "maximum connections exceeded": Meaning.OUTAGE,
    "maximum account active connections exceeded": Meaning.OUTAGE,
    "connection throttling is active": Meaning.OUTAGE,
    # The server has lowered the limit since it told it. The next connection learns the new one, and
    # a call that sends more raises.
    "maximum payload violation": Meaning.OUTAGE,
    # Something on the way damages what is sent.
    "unknown protocol operation": Meaning.OUTAGE,
    # The limit is lower than our subjects need; the default is far higher. The line that has ended
    # this connection would be sent again, and end the next.
    "maximum control line exceeded": Meaning.FINAL,
    # The network or the server was slow: no PONG, no login, no handshake in time.
    "stale connection": Meaning.OUTAGE,
    "authentication timeout": Meaning.OUTAGE,
    "secure connection - tls required": Meaning.OUTAGE,
    # The account is being changed, or could not be looked up.
    "failed account registration": Meaning.OUTAGE,
    # Of several servers that were given or found, the next may be the right one.
    "attempted to connect to": Meaning.OUTAGE,
    "invalid client protocol": Meaning.OUTAGE,
    "no responders requires headers support": Meaning.OUTAGE,
}
_QUOTED: Final = re.compile(
    r'permissions violation for (publish|subscription) to "((?:[^"\\]|\\.)+)"(.*)'
)
_ESCAPED: Final = re.compile(r'\\(["\\])')

# Up to the first subject that is quoted.
_WORDS: Final = re.compile(r'[^"]*')


class ErrorLine(nats.errors.Error):
    """A server's error line: its text, in lower case except for the subjects that it quotes."""

    def __init__(self, text: str) -> None:
        super().__init__(_WORDS.sub(lambda words: words[0].lower(), text.strip("'"), count=1))

    @property
    def meaning(self) -> Meaning:
        text = str(self)
        return next((MEANINGS[begin] for begin in MEANINGS if text.startswith(begin)), Meaning.TOLD)


class TooManySubscriptions(nats.errors.Error):
    """One of our subscriptions was refused, because there are too many."""

    def __init__(self, subscription: Subscription) -> None:
        super().__init__(f"{TOO_MANY_SUBSCRIPTIONS}: {subscription.subject}")
        self.subscription = subscription


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a server refuses on a connection that goes on."""

    action: str
    """``publish`` or ``subscription``."""
    subject: str
    number: int = 0
    """Of the subscription; 0: all of that subject."""
    why: str = ""
    """Empty: the user's permissions."""

    def is_of(self, subscription: Subscription | None) -> bool:
        """Whether the server has refused this subscription."""
        if subscription is None or self.action != "subscription":
            return False
        if self.number:
            return self.number == subscription._id
        return self.subject == subscription.subject


def read_refusal(exc: Exception) -> Refusal | None:
    """The refusal in an error, or None."""
    if isinstance(exc, TooManySubscriptions):
        subscription = exc.subscription
        return Refusal(
            "subscription",
            subscription.subject,
            subscription._id,
            f"{TOO_MANY_SUBSCRIPTIONS}. Hold fewer futures and subscriptions at once, open another "
            "connection, or raise the limit of the server, the account or the user",
        )
    found = _QUOTED.fullmatch(str(exc)) if isinstance(exc, ErrorLine) else None
    if found is None:
        return None
    why = "it has too many tokens" if "too many tokens" in found[3] else ""
    return Refusal(found[1], _ESCAPED.sub(r"\1", found[2]), why=why)


def line_of(exc: Exception | None) -> ErrorLine | None:
    """The error line in what nats-py raises if a line comes in place of its first PONG; or None."""
    if isinstance(exc, ErrorLine):
        return exc
    text = str(exc)
    return ErrorLine(text.removeprefix("nats: ")) if text.startswith("nats: '") else None
