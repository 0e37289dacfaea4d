"""Tasks that are given back over a real server, whatever becomes of the notes of that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests._helpers.brokers import NATSSwarm, echo, until, within
from tests._helpers.delivery_listener import each
from trio_swarmtask import Message, Status
from trio_swarmtask._jetstream._delivery import NATSDelivery

if TYPE_CHECKING:
    from collections.abc import Callable

LONG_BEFORE_THE_LEASE = 5  # seconds; ack_wait is 30


async def hang(delivery: NATSDelivery) -> None:
    await trio.sleep_forever()


@within(30)
async def test_results_that_can_not_be_stored_and_notes_that_hang(
    nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many wait for their results to be stored as the worker gives up: none holds up another."""

    def never_end(delivery: NATSDelivery, result: bytes, on_end: Callable[[bool], None]) -> bool:
        return True

    monkeypatch.setattr(NATSDelivery, "complete_soon", never_end)
    monkeypatch.setattr(NATSDelivery, "_note", hang)
    async with nats_swarm.dispatcher() as dispatcher:
        futures = [await dispatcher.start("coder", Message()) for _ in range(10)]
        async with nats_swarm.worker() as worker:
            await worker.handle("coder", echo)
            await until(lambda: worker.statistics().in_flight == 10)
            await until(lambda: worker._services["coder"].running == 0)  # type: ignore[union-attr]  # it is there
            with pytest.raises(trio.TooSlowError):
                await worker.shutdown(0)
        assert worker.statistics().given_back == 10
        monkeypatch.undo()
        async with nats_swarm.worker() as other:
            await other.handle("coder", echo)
            with trio.fail_after(LONG_BEFORE_THE_LEASE):
                for future in futures:
                    assert (await future.wait()).status == Status.SUCCESS


@within(30)
async def test_note_that_breaks(nats_swarm: NATSSwarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a fault of ours, say: the task is given back before that is told."""

    async def fail(delivery: NATSDelivery) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(NATSDelivery, "_note", fail)
    async with nats_swarm.dispatcher() as dispatcher, nats_swarm.open() as broker:
        future = await dispatcher.start("coder", Message())
        arrived: list[NATSDelivery] = []
        async with broker.open_intake("coder", each(arrived.append)) as intake:  # type: ignore[arg-type]  # they are
            intake.ask(1)
            await until(lambda: arrived)
            await intake.stop()
            with pytest.raises(ZeroDivisionError):
                await arrived[0].give_back()
        async with nats_swarm.worker() as worker:
            await worker.handle("coder", echo)
            with trio.fail_after(LONG_BEFORE_THE_LEASE):
                assert (await future.wait()).attempt == 2
