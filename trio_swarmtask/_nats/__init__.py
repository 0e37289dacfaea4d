# One connection to a NATS server: all that imports asyncio, nats-py or trio-asyncio.
#
#   _bus            the message bus
#   _requests       requests and replies; calls that are made until there is an answer
#   _connection     one connection, for any number of roles: outages, refusals
#   _client         nats-py's client, with its reading and its writing replaced
#   _io             the socket: bytes in, bytes out
#   _protocol       what a server sends: lines and messages
#   _subscriptions  which subscription an error line is about that names none
#   _error_lines    what the error lines of a server mean
#   _errors         errors of nats-py, as this library's
#   _credentials    logins by a file
#   _loop           asyncio's loop inside of Trio
#   _versions       which versions of nats-py and trio-asyncio are known from inside

import warnings

with warnings.catch_warnings():
    # It subclasses an asyncio class that Python 3.12 deprecates (trio-asyncio 0.16).
    warnings.simplefilter("ignore", DeprecationWarning)
    import trio_asyncio as _trio_asyncio  # noqa: F401 - the first import is the one that warns

from ._bus import open_bus_on as open_bus_on, open_nats_bus as open_nats_bus
