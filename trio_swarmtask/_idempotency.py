# One effect for each key: a handler answers a task with the outputs of another task of its key.
#
# A key's entry in the bucket is a claim, or an outcome. Both are put by compare-and-set, so a key
# has one claim at a time. A claim expires after `lease` seconds, by the bucket's clock, unless it
# is put again; a holder that could not do that in time cancels its handler. So a worker that dies
# holds up the others for no longer than that, and no two handlers of a key run at once, as far as a
# lease can promise it.
#
# As soon as the handler has ended, its outcome is kept, or else its claim is given up. If the
# bucket can't be reached just then, that is done later, in the block of `open_idempotency`: an
# effect must not happen twice, and nobody should wait for a claim that nobody uses.
#
# A handler that waited for a claim of its own caller would wait for itself. So a wrapped handler is
# not wrapped again, and a handler that meets a claim of its own caller raises.
#
# The bucket is opened twice, because claims and outcomes live for different times.

from __future__ import annotations

import functools
import hashlib
import secrets
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Final, final

import msgspec
import trio

from ._abc import Refused
from ._check import Malformed, read_json, reader
from ._envelope import Status
from ._errors import ClosedError, InvalidMessageError, SwarmTaskError
from ._message import Message, Result
from ._sync import Lifetime
from ._util import NoPublicConstructor, get_logger, open_flat_nursery, shorten
from ._worker._handler import Handler, Value, check_handler, encode_result
from ._worker._job import current_task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from ._abc import Broker, Bucket, Entry

logger: Final = get_logger("trio_swarmtask.idempotency")

# Seconds that giving up a claim may take, or keeping an outcome while all is being cancelled.
_SETTLE_SECONDS: Final = 1.0
_NOTHING: Final = b"null"

# An attribute of a wrapped handler, which decorators that use `functools.wraps` copy: by whom the
# handler is wrapped, and for which scope.
_WRAPPED: Final = "_swarmtask_idempotent"
_held: Final[ContextVar[frozenset[str]]] = ContextVar("trio_swarmtask.claims", default=frozenset())
"""The holders of the claims under which the current task runs."""


class Record(msgspec.Struct, omit_defaults=True):
    """An entry of the bucket: a claim if it has a holder, else an outcome."""

    task: str
    """ID of the task that claimed the key, or whose outputs these are."""
    holder: str = ""
    outputs: msgspec.Raw = msgspec.Raw(_NOTHING)


class _Outputs(msgspec.Struct):
    outputs: msgspec.Raw = msgspec.Raw(_NOTHING)


_read_record: Final = reader(Record)
_read_outputs: Final = reader(_Outputs)


class Claim:
    """A key that a handler here has to itself, until `deadline` if it is not renewed."""

    def __init__(self, key: str, task_id: str) -> None:
        self.key = key
        self.holder = secrets.token_hex(8)
        self.data = msgspec.json.encode(Record(task_id, self.holder))
        self.deadline = 0.0  # on Trio's clock
        self.put_over: int | None = None  # the revision that it was to replace, if it was put
        self.is_ours = True  # it is for us to give up
        self.outcome: bytes | None = None  # to be kept, and not kept yet


@final
class Idempotency(metaclass=NoPublicConstructor):
    """Wraps handlers. Made by `open_idempotency`."""

    def __init__(self, claims: Bucket, outcomes: Bucket, lease: float, late: trio.Nursery) -> None:
        self._claims = claims
        self._outcomes = outcomes
        self._lease = lease
        self._lifetime = Lifetime()
        self._late = late  # gives up claims that could not be given up in time

    def __call__(self, handler: Handler, *, scope: str | None = None) -> Handler:
        """A handler that runs ``handler`` once for each key, and gives others what that gave.

        See `open_idempotency`. A task without a key goes straight to ``handler``.

        Args:
          handler: As for `Worker.handle`.
          scope: What the keys belong to, any text. Handlers with one scope, in whatever process,
            share their keys. None: the capability of the task.

        Raises:
          TypeError: if ``scope`` is no string, or ``handler`` is not async.
          ValueError: if ``handler`` is what this has given for the same scope: it would wait for
            its own claim.
        """
        check_handler(handler)
        if scope is not None and not isinstance(scope, str):
            raise TypeError(
                f"scope must be a string, or None for the capability, not {shorten(scope)}"
            )

        wrapped = _find_wrapped(handler)
        if (self, scope) in wrapped:
            raise ValueError(
                f"{shorten(handler)} is idempotent already, in this scope: wrapped once more it "
                "would wait for its own claim of the key"
            )

        @functools.wraps(handler)
        async def run_once(message: Message) -> object:
            if message.idempotency == "":
                return await handler(message)
            belongs_to = current_task().capability if scope is None else scope
            return await self._answer(_hash(belongs_to, message.idempotency), handler, message)

        setattr(run_once, _WRAPPED, wrapped | {(self, scope)})
        return run_once

    def _close(self) -> None:
        self._lifetime.end(
            lambda: ClosedError(
                "the block of open_idempotency was left; leave it after the worker's"
            )
        )

    async def _answer(self, key: str, handler: Handler, message: Message) -> object:
        while True:
            found = await self._lifetime.run(partial(self._claim, key, message.id))
            if isinstance(found, Record):
                logger.info(
                    "task %s has the key of task %s, and is given its outputs",
                    message.id,
                    found.task,
                )
                return None if bytes(found.outputs) == _NOTHING else found.outputs
            try:
                done, value = await self._run(found, handler, message)
                if done:
                    found.outcome = self._encode(value, message)
                    if found.outcome is not None:
                        await self._remember(found, found.outcome)
                    return value
                logger.warning("lost the claim to the key of task %s: it was cancelled", message.id)
            finally:
                await self._give_up(found, partial(self._finish, found))  # noqa: ASYNC102 - it is shielded

    async def _run(self, claim: Claim, handler: Handler, message: Message) -> tuple[bool, object]:
        """Whether ``handler`` has ended in time, and what it gave."""
        with trio.CancelScope(deadline=claim.deadline) as scope:
            async with open_flat_nursery() as nursery:
                nursery.start_soon(self._keep, claim, scope)
                token = _held.set(_held.get() | {claim.holder})
                try:
                    value = await handler(message)
                finally:
                    _held.reset(token)
                # The shield ends at once. It keeps out a cancellation from outside, which would
                # lose what has been done.
                nursery.cancel_scope.shield = True
                nursery.cancel_scope.cancel()
            return True, value
        return False, None

    # Claims

    async def _claim(self, key: str, task_id: str) -> Claim | Record:
        """Claim ``key``, or return its outcome; wait until there is either."""
        claim = Claim(key, task_id)
        try:
            return await self._claim_as(claim)
        except (trio.Cancelled, KeyboardInterrupt):
            if claim.put_over is not None:
                withdraw = partial(self._withdraw, claim, claim.put_over)
                await self._give_up(claim, withdraw)  # noqa: ASYNC102 - it is shielded
            raise

    async def _claim_as(self, claim: Claim) -> Claim | Record:
        while True:
            entry = await self._outcomes.get(claim.key)
            record = _read(entry)
            if record is not None and not record.holder:
                return record
            if record is None:
                claim.put_over = 0 if entry is None else entry.revision
                claim.deadline = trio.current_time() + self._lease
                with suppress(Refused):  # by another claim, or by ours whose answer was lost
                    await self._claims.put(claim.key, claim.data, claim.put_over)
                    return claim
            elif record.holder in _held.get():
                raise RuntimeError(
                    f"task {record.task} waits for its own claim of its key: a handler that is "
                    "idempotent was called in one that is, in the same scope; leave one of them as "
                    "it is, or give it another scope"
                )
            elif record.holder != claim.holder:
                await self._wait_unclaimed(claim.key)
            elif await self._renew(claim):  # nobody knows when it was stored
                return claim

    async def _give_up(self, claim: Claim, act: Callable[[], Awaitable[None]]) -> None:
        # Shielded, or the key stays claimed for the whole lease.
        with trio.move_on_after(_SETTLE_SECONDS, shield=True) as scope:
            await act()
        if scope.cancelled_caught and not self._lifetime.is_over:
            self._late.start_soon(self._give_up_late, claim, act)

    async def _give_up_late(self, claim: Claim, act: Callable[[], Awaitable[None]]) -> None:
        with trio.CancelScope(deadline=claim.deadline):  # by then it has expired
            await act()

    async def _withdraw(self, claim: Claim, put_over: int) -> None:
        """Give up a claim that may be on its way to be stored."""
        try:
            # Put once more: once that has an answer, nothing of the first put is under way.
            with suppress(Refused):
                await self._claims.put(claim.key, claim.data, put_over)
        except SwarmTaskError as exc:
            logger.warning("a claim could not be given up, and has to expire: %s", exc)
        else:
            await self._release(claim)

    async def _wait_unclaimed(self, key: str) -> None:
        ended = trio.Event()
        seen = False

        def on_entry(entry: Entry) -> None:
            nonlocal seen
            seen = True
            record = _read(entry)
            if record is None or not record.holder:
                ended.set()

        async with self._outcomes.watch(key, on_entry):
            if seen:  # else there is no entry any more
                await ended.wait()

    async def _find(self, claim: Claim) -> int | None:
        """The revision of a claim, which changes as it is renewed; None if it was lost."""
        entry = await self._outcomes.get(claim.key)
        record = _read(entry)
        if entry is None or record is None or record.holder != claim.holder:
            return None
        return entry.revision

    async def _keep(self, claim: Claim, scope: trio.CancelScope) -> None:
        """Renew a claim, and the deadline of ``scope``, for as long as the claim is ours."""
        try:
            while True:
                await trio.sleep(self._lease / 3)
                if not await self._renew(claim):
                    scope.cancel()
                    return
                scope.deadline = claim.deadline
        except SwarmTaskError as exc:
            logger.warning("a claim can't be renewed, and will be lost: %s", exc)

    async def _renew(self, claim: Claim) -> bool:
        """Renew a claim for the whole lease; return whether it is still ours."""
        while (revision := await self._find(claim)) is not None:
            asked_at = trio.current_time()
            try:
                await self._claims.put(claim.key, claim.data, revision)
            except Refused:
                continue  # lost, or stored by an attempt whose answer was lost
            claim.deadline = asked_at + self._lease
            return True
        return False

    async def _finish(self, claim: Claim) -> None:
        """Keep the outcome, if that is left to do; else let others have the key."""
        try:
            if claim.outcome is not None:
                await self._put(claim, claim.outcome)
        except SwarmTaskError as exc:
            logger.warning("the outputs of a task may not be remembered: %s", exc)
        await self._release(claim)

    async def _release(self, claim: Claim) -> None:
        """Let others have the key; if that fails, it is theirs when the claim has expired."""
        try:
            while claim.is_ours and (revision := await self._find(claim)) is not None:
                try:
                    return await self._outcomes.remove(claim.key, revision)
                except Refused:
                    pass  # it was renewed just then
        except SwarmTaskError as exc:
            logger.warning("a claim could not be given up, and has to expire: %s", exc)

    # Outcomes

    def _encode(self, value: object, message: Message) -> bytes | None:
        """What is remembered of a handler's value; None: nothing."""
        if isinstance(value, Result):
            if value.status != Status.SUCCESS:
                return None
            result: Result | Value = value
        else:
            result = Value(value)
        try:
            data = encode_result(result, message, 1, "", 0.0)
        except InvalidMessageError:
            return None  # the worker says why, in the task's failed result
        outputs = _read_outputs(data).outputs
        outcome = msgspec.json.encode(Record(message.id, outputs=outputs))
        limit = self._outcomes.max_size
        if limit is not None and len(outcome) > limit:
            logger.warning(
                "the outputs of task %s are not remembered: with %d bytes they are larger than the "
                "%d that the bucket takes, so the next task of its key runs again",
                message.id,
                len(outcome),
                limit,
            )
            return None
        return outcome

    async def _remember(self, claim: Claim, outcome: bytes) -> None:
        """Keep an outcome, within the time that a result may wait for it."""
        try:
            # The effect has happened: that is worth a moment, even if all is being cancelled.
            with trio.move_on_after(_SETTLE_SECONDS, shield=True):
                return await self._put(claim, outcome)
            with trio.move_on_after(self._lease):
                return await self._put(claim, outcome)
            logger.warning("the outputs of a task are not remembered yet: no answer in time")
        except SwarmTaskError as exc:
            claim.outcome = None
            logger.warning("the outputs of a task may not be remembered: %s", exc)

    async def _put(self, claim: Claim, outcome: bytes) -> None:
        while True:
            entry = await self._outcomes.get(claim.key)
            record = _read(entry)
            if record is None or record.holder:  # else another task's outcome was first
                try:
                    revision = 0 if entry is None else entry.revision
                    await self._outcomes.put(claim.key, outcome, revision)
                except Refused:
                    continue
            claim.outcome, claim.is_ours = None, False
            return


def _find_wrapped(handler: object) -> frozenset[tuple[Idempotency, str | None]]:
    while isinstance(handler, functools.partial):
        handler = handler.func
    # In its own `__dict__`: a mock has any attribute that it is asked for.
    found: frozenset[tuple[Idempotency, str | None]]
    found = getattr(handler, "__dict__", {}).get(_WRAPPED, frozenset())
    return found


def _hash(scope: str, key: str) -> str:
    text = f"{len(scope)}:{scope}{key}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _read(entry: Entry | None) -> Record | None:
    """The record of an entry; None if it has none, or one that can't be read."""
    if entry is None or entry.data is None:
        return None
    try:
        record = _read_record(entry.data)
        if not record.holder:
            read_json(record.outputs)  # or they could never be anybody's result
    except Malformed as exc:
        logger.error(
            "skipped entry %r of the bucket, which is no claim and no outcome: %s",
            entry.key,
            shorten(exc),
        )
        return None
    return record


@asynccontextmanager
async def host_idempotency(
    broker: Broker, bucket: str, ttl: float, lease: float
) -> AsyncIterator[Idempotency]:
    """Open `Idempotency` on an open broker."""
    # In this order: whoever opens the bucket first makes it, and it must keep outputs for ``ttl``.
    async with (
        broker.open_bucket(bucket, ttl) as outcomes,
        broker.open_bucket(bucket, lease) as claims,
        open_flat_nursery() as late,
    ):
        idempotent = Idempotency._create(claims, outcomes, lease, late)
        try:
            yield idempotent
        finally:
            idempotent._close()
            late.cancel_scope.cancel()
