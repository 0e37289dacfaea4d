# The broker and the bus inside one process, on Trio's clock.
#
#   _broker     tasks, results and leases, through several runs of Trio
#   _queue      the tasks of one capability: who waits, who has one, until when
#   _schedules  tasks that are started again and again
#   _bucket     keys and values
#   _bus        messages by subject

from ._broker import DeadLetter as DeadLetter, MemoryBroker as MemoryBroker
from ._bus import MemoryBus as MemoryBus
