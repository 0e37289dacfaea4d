# The broker and the bus inside one process, on Trio's clock.

from ._broker import DeadLetter as DeadLetter, MemoryBroker as MemoryBroker
from ._bus import MemoryBus as MemoryBus
