# The IDs by which a task says which other one has started it.

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import msgspec

from ._wire import Message


@dataclass(frozen=True, slots=True)
class Chain:
    """What the tasks that one task or group starts have in common."""

    parent: str
    root: str
    correlation_id: str

    @classmethod
    def begin(cls, task_id: str) -> Self:
        """A new chain."""
        return cls(task_id, task_id, task_id)

    @classmethod
    def below(cls, message: Message) -> Self:
        """The chain of a task that starts others."""
        return cls(message.id, message.root or message.id, message.correlation_id or message.id)

    def fill(self, message: Message) -> Message:
        """A copy with its blank IDs filled; what is no message is the starter's to refuse."""
        if not isinstance(message, Message):
            return message
        return msgspec.structs.replace(
            message,
            parent=message.parent or self.parent,
            root=message.root or self.root,
            correlation_id=message.correlation_id or self.correlation_id,
        )
