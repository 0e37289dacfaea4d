# Connections to a NATS server. Only this folder imports asyncio, nats-py and trio-asyncio.
#
#   _bus            the message bus
#   _requests       requests and replies; calls that are repeated until there is an answer
#   _connection     one connection, for any number of roles: outages, refusals
#   _client         nats-py's client, with its reading and its writing replaced
#   _io             the socket: bytes in, bytes out
#   _protocol       what a server sends: lines and messages
#   _subscriptions  which subscription an error line is about if it names none
#   _error_lines    what the error lines of a server mean
#   _errors         what errors of nats-py mean, as this library's errors
#   _credentials    logins by a file
#   _loop           asyncio's loop inside of Trio
#   _versions       which versions of nats-py and trio-asyncio have known private parts

import warnings

with warnings.catch_warnings():
    # trio-asyncio 0.16 subclasses an asyncio class that Python 3.12 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    import trio_asyncio as _trio_asyncio  # noqa: F401 - the first import is the one that warns

from .._interrupts import protect as _protect
from ._bus import open_bus_on as open_bus_on, open_nats_bus as open_nats_bus

_protect()
