# Streams and durables that others have made, with settings that lose messages in silence.
#
# The server says nothing of it: a task is gone before a worker comes, or never handed out, and who
# waits for it waits for ever. So such a stream is refused when it is first looked up, with what to
# do. What loses messages only now and then, or may be meant so, is a warning, told once.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterator

_NANOSECONDS = 1_000_000_000


def check_stream(config: dict[str, Any], subject: str) -> None:
    """Raise BrokerError if the stream that holds ``subject`` would not keep what is sent there."""
    if config.get("retention") == "interest":
        retention = "workqueue" if subject.startswith("work.") else "limits"
        problem = (
            "has interest retention: it drops each message that no consumer waits for at that "
            f"moment. Make it anew with {retention} retention"
        )
    elif config.get("no_ack"):
        problem = "has no_ack: nobody would hear whether a message is stored. Set no_ack to false"
    elif (transform := config.get("subject_transform") or {}).get("dest"):
        problem = (
            f"has a subject_transform to {transform['dest']!r}: nobody looks for a message under "
            "its new subject. Remove the transform"
        )
    else:
        return
    raise BrokerError(f"the stream {config['name']}, which holds {subject}, {problem}")


def risks(config: dict[str, Any], subject: str) -> Iterator[str]:
    """What may lose messages of that stream, in words: each is worth one warning."""
    if config.get("storage") == "memory":
        yield "its storage is memory: all of it is lost when its server ends. Make it anew on files"
    if config.get("persist_mode") == "async":
        yield (
            "its persist_mode is async: what it has confirmed may be lost when its server is "
            "killed. Make it anew without that"
        )
    limits = [name for name in ("max_msgs", "max_bytes") if config.get(name, -1) > 0]
    if limits and config.get("discard") != "new":
        yield (
            f"it has {' and '.join(limits)} with discard old: once it is full, each new message "
            "drops the oldest one. Set discard to new: whoever sends waits for room then"
        )
    if config.get("max_age") and subject.startswith("work."):
        yield (
            f"its max_age is {config['max_age'] / _NANOSECONDS:g} seconds: older tasks are "
            "dropped, and nobody is told. Set it to 0"
        )


def check_durable(config: dict[str, Any], stream: str, name: str, capability: str) -> None:
    """Raise BrokerError if workers can't share the durable ``name``, or it would lose tasks."""
    wanted = {"filter_subject": f"work.{capability}.*", "ack_policy": "explicit"}
    for setting, value in wanted.items():
        if config.get(setting) != value or config.get("deliver_subject"):
            raise BrokerError(
                f"the durable {name} of stream {stream} is not one that workers can share: it must "
                f"be a pull consumer with {setting} {value!r}, and has {config.get(setting)!r}; "
                "delete it to have it made anew"
            )
    if config.get("max_deliver", -1) > 0:
        problem = (
            f"delivers a task {config['max_deliver']} times at most: one that needs more would "
            "stay in the queue, unseen, for ever"
        )
    elif config.get("headers_only"):
        problem = "has headers_only: it would deliver tasks without their bytes"
    elif groups := config.get("priority_groups"):
        problem = f"has priority_groups {groups}: it delivers to nobody who names none of them"
    elif (policy := config.get("deliver_policy", "all")) != "all":
        problem = f"has deliver_policy {policy!r}: it leaves out tasks that were sent before it"
    else:
        return
    raise BrokerError(
        f"the durable {name} of stream {stream} {problem}; delete it to have it made anew, without "
        "that"
    )
