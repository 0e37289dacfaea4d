# One connection to a NATS server: all that imports asyncio, nats or trio_asyncio.

from ._bus import open_bus_on as open_bus_on, open_nats_bus as open_nats_bus
