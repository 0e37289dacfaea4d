# A subscription that stands: the server has it, and permits it.
#
# SUB has no answer. A refusal comes as an error of its own, before the answer to whatever is asked
# next: so an echo tells both that the server listens for us and that nothing was refused. An error
# that names no subject is waited out, until it is known whose it was.

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ._jetstream import persist
from ._requests import Requests, refused_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.subscription import Subscription

    from ._error_lines import Refusal
    from ._incoming import Incoming


async def subscribe(
    requests: Requests, subject: str, callback: Callable[[Incoming], None], queue: str = ""
) -> Subscription:
    """Subscribe; return when the server listens for us. Waits through an outage.

    Raises:
      BrokerError: if the server does not permit it, or is lost for good.
      ClosedError: if the role was closed.
    """
    connection = requests.connection
    refused: list[Refusal] = []

    def on_refused(refusal: Refusal) -> None:
        if refusal.is_of(subscription):
            refused.append(refusal)

    async def stand() -> None:
        await requests.echo()
        await connection.wait_certain()

    subscription = connection.subscribe(subject, callback, queue)
    connection.on_refused.append(on_refused)
    stands = False
    try:
        await requests.lifetime.run(partial(persist, connection, f"subscribe to {subject}", stand))
        stands = not refused
    finally:
        connection.on_refused.remove(on_refused)
        if not stands:
            connection.unsubscribe(subscription)
    if refused:
        raise refused_error(connection, refused[0])
    return subscription
