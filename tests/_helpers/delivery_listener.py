"""A worker's side of a broker, without a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_swarmtask._abc import DeliveryListener

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_swarmtask._abc import Delivery, Intake, Notice


class _Each(DeliveryListener):
    def __init__(self, on_delivery: Callable[[Delivery], object]) -> None:
        self._on_delivery = on_delivery

    def delivered(self, delivery: Delivery) -> None:
        self._on_delivery(delivery)

    def cancelled(self, notice: Notice) -> None:
        pass

    def notices_missed(self) -> None:
        pass

    def ack_wait_changed(self) -> None:
        pass


def each(on_delivery: Callable[[Delivery], object]) -> Callable[[Intake], DeliveryListener]:
    """For `Broker.open_intake`: call this for each delivery, and pass over all else."""
    return lambda _: _Each(on_delivery)
