# What the server's refusals mean, by the codes of its errors.json (nats-server 2.15).
#
# A refusal proves nothing unless it says what is stored. On a cluster a publish is also refused
# while another one to its subject, or with its ID, is on its way to a majority: nobody knows yet
# whether that one will be stored. Such a refusal passes, as an outage does: the caller asks again.
# If it were taken for an answer, tasks would be lost: a worker would ack because of a result that a
# partition then drops.
#
# So the table says of each refusal whether it passes, and why. One that is not in it passes if its
# HTTP code says that the fault is the server's (500 and above), or that there is a conflict or too
# much to do (409, 429); else it is for good. tests/jetstream/server_errors.tsv has all the codes.

from __future__ import annotations

from typing import Final

# Codes that callers compare by name.
NO_CONSUMER: Final = 10014
NO_MESSAGE: Final = 10037
NO_STREAM: Final = 10059
NAME_IN_USE: Final = 10058
SUBJECTS_OVERLAP: Final = 10065
CONSUMER_EXISTS: Final = (10148, 10013)
NO_JETSTREAM: Final = (10039, 10076)
MESSAGE_TOO_LARGE: Final = (10054, 10097)
SCHEDULES_DISABLED: Final = 10188
BAD_SCHEDULE: Final = 10189
STORED_BEFORE: Final = 10071
"""The subject's last message is another one than expected: it is stored, on a majority."""
IN_FLIGHT: Final = {
    10158: "a publish with this Nats-Msg-Id is on its way to a majority",
    10163: "the last sequence of the subject is not known yet",
    10164: "another publish to the subject is on its way to a majority",
}
"""Refusals that pass within milliseconds on a healthy cluster, and last as long as a stall does."""
PASSING: Final = IN_FLIGHT | {
    10002: "the account has no room: messages go, or an operator gives it more",
    10005: "no suitable peers: servers that could hold the stream are away",
    10167: "more publishes wait for the disk than the server takes",
}
"""Beside those that pass by their HTTP code: 10008 (no leader), 10023, 10028, 10047, 10077 (no
room, or a disk that fails), 10118 (offline) and the like."""
FINAL: Final = {
    10010: "it needs a cluster, and the server is alone",
    10036: "a cluster does not do it",
    10052: "the configuration can't be",
    10074: "replicas need a cluster, and the server is alone",
    10111: "the stream does not permit it",
    10117: "the answer would be too large",
}
"""Refusals that would pass by their HTTP code, and do not pass."""
_CONFLICT: Final = 409
_TOO_MANY: Final = 429
_SERVER_FAULT: Final = 500


def passes(code: int, err_code: int) -> bool:
    """Whether a second try may have another answer than this refusal.

    Args:
      code: The HTTP code of the answer.
      err_code: The server's own.
    """
    if err_code in PASSING:
        return True
    return err_code not in FINAL and (code >= _SERVER_FAULT or code in (_CONFLICT, _TOO_MANY))
