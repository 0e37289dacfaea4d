# How a task gets from a dispatcher to the broker.
#
# Two IDs are told apart. One that this dispatcher made is new by construction, and its result is
# heard through the key it begins with. One that the caller gave may be known already, so its result
# is listened for, then looked up, and only then is the task published: in this order nothing slips
# through.
#
# An ID that is made here is `<key>-<number><secret>`. The key is in everything that the dispatcher
# sends, and the number is the next one; without a secret whoever may start any task at all could
# start one of the ID to come, and the broker would take this dispatcher's for that one. There is
# one dash, at which a server takes the ID apart to say whose it is. The secrets are all of one
# length, so no two numbers make the same ID.

from __future__ import annotations

import itertools
import math
from copy import copy
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from ._broker import NewTask
from ._chain import Chain
from ._codec import encode
from ._envelope import MessageEnvelope
from ._errors import InvalidMessageError
from ._names import check_capability, check_task_id, make_secrets, shorten
from ._schedule import check_not_before
from ._wire import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._broker import Outbox
    from ._future import Future
    from ._futures import Futures


class Start:
    """One task on its way to the broker, and the future of its result, which is held."""

    __slots__ = ("future", "own", "task")

    def __init__(self, future: Future, task: NewTask, *, own: bool) -> None:
        self.future = future
        self.task = task
        self.own = own  # nobody knows its ID yet


class Starter:
    """Stores the tasks of one dispatcher."""

    def __init__(self, name: str, key: str, futures: Futures) -> None:
        self.outbox: Outbox  # set by host_dispatcher before there is a task
        self._name = name
        self._key = key
        self._chain: Chain | None = None
        self._numbers = itertools.count(1)
        self._secrets = make_secrets()
        self._futures = futures

    def make_id(self, kind: str = "") -> str:
        """One that nobody else makes, or can guess."""
        return f"{self._key}-{kind}{next(self._numbers)}{next(self._secrets)}"

    def prepare(
        self,
        capability: str,
        message: Message,
        deadline: float = math.inf,
        lease: str = "",
        not_before: datetime | None = None,
    ) -> Start:
        """A future that somebody holds, and the task that is to be stored for it.

        Raises:
          InvalidCapabilityError, InvalidMessageError: then nothing is held.
          TypeError, ValueError: the same, for `check_not_before`.
        """
        check_capability(capability)
        if not_before is not None:
            not_before = check_not_before(not_before)
        if self._chain is not None:
            message = self._chain.fill(message)
        if not isinstance(message, Message):
            raise InvalidMessageError(f"{shorten(message)} is not a Message")
        if message.id == "":
            task_id, own = self.make_id(), True
        else:
            task_id, own = message.id, False
            check_task_id(task_id)
        data = encode(message, MessageEnvelope, partial(self.fill, task_id))
        task = NewTask(
            capability, task_id, data, deadline, lease, is_new=own, not_before=not_before
        )
        future = self._futures.hold(task_id, capability)
        future._due = own and not_before is None
        return Start(future, task, own=own)

    def below(self, message: Message) -> Starter:
        """This one, filling in the chain of the task that ``message`` is."""
        starter = copy(self)
        starter._chain = Chain.below(message)
        return starter

    async def store_soon(self, start: Start, on_stored: Callable[[], object] | None = None) -> bool:
        """Send, and wait for the result: it tells as much as the confirmation that was before it.

        ``on_stored`` is called when the confirmation comes.

        Returns:
          False if nothing was sent. True, and no result, if the confirmation is not there.
        """
        if not self.begin(start, on_stored):
            return False
        await start.future._park()
        return True

    def begin(self, start: Start, on_stored: Callable[[], object] | None = None) -> bool:
        """As `store_soon`, for who parks at the future then.

        It wakes as soon as it has a result, or is to be stored by `store` after all.
        """
        if not self.outbox.hears_key:
            self._futures.expect(start.future)  # or it would be found by the next look-up only
        return self.outbox.store_soon(start.task, partial(self._on_end, start.future, on_stored))

    def _on_end(
        self, future: Future, on_stored: Callable[[], object] | None, new: bool | None
    ) -> None:
        if new or future._is_resolved():
            self._futures.confirm(future)
            if on_stored is not None:
                on_stored()
        else:
            future._wake()

    def send(self, start: Start, on_end: Callable[[bool], None]) -> bool:
        """Begin `store`, and don't wait: ``on_end`` is told whether it is stored, once at most.

        If it is not, `store` has to finish it.

        Returns:
          False if nothing was sent.
        """
        future = start.future

        def on_answer(new: bool | None) -> None:
            stored = bool(new) or future._is_resolved()
            if stored:
                self._futures.confirm(future)
            on_end(stored)

        return start.own and self.outbox.hears_key and self.outbox.store_soon(start.task, on_answer)

    async def store(self, start: Start, *, tried: bool = False) -> None:
        """Store it, unless it is known to the broker; return once that is confirmed."""
        future = start.future
        if not (start.own and self.outbox.hears_key):
            self._futures.expect(future)
        # An ID of the caller's own may be known. In this order nothing slips through: listen,
        # look up, publish, and look up again if the broker knew it.
        known = not start.own and await self._futures.look_up(future)
        if not known and not await self.outbox.store(start.task, tried=tried):
            future._capability = None if not start.own else start.task.capability
            await self._futures.look_up(future)  # perhaps it is another capability's
        self._futures.confirm(future)

    def fill(self, task_id: str, envelope: MessageEnvelope) -> None:
        """Fill the blanks of an envelope."""
        envelope.id = task_id
        if envelope.created_at is None or envelope.submitted_at is None:
            now = datetime.now(UTC)
            envelope.created_at = envelope.created_at or now
            envelope.submitted_at = envelope.submitted_at or now
        if envelope.submitted_by == "":
            envelope.submitted_by = self._name
