# A subscription that stands: the server has it, and permits it.
#
# SUB has no answer. A refusal comes as an error of its own, before the answer to whatever is asked
# next: so an echo tells both that the server listens for us and that nothing was refused.

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ._jetstream import persist
from ._requests import Requests, refused_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.subscription import Subscription

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
    refused: list[str] = []

    def on_refused(action: str, name: str) -> None:
        if action == "subscription" and name == subject.lower():  # nats-py has made it lower case
            refused.append(name)

    subscription = connection.subscribe(subject, callback, queue)
    connection.on_refused.append(on_refused)
    stands = False
    try:
        await requests.lifetime.run(
            partial(persist, connection, f"subscribe to {subject}", requests.echo)
        )
        stands = not refused
    finally:
        connection.on_refused.remove(on_refused)
        if not stands:
            connection.unsubscribe(subscription)
    if refused:
        raise refused_error(connection, f"subscribe to {subject}")
    return subscription
