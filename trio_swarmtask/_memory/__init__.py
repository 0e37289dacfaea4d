# The broker and the bus inside one process, on Trio's clock.
#
#   _broker     the broker, a dispatcher's side of it, and its use in several runs of Trio
#   _queue      the tasks of one capability, and a worker's side of them
#   _store      results, leases of groups and dead letters, and who hears of results and reports
#   _schedules  tasks that are started again and again
#   _bucket     keys and values
#   _bus        messages by subject

from ._broker import MemoryBroker as MemoryBroker
from ._bus import MemoryBus as MemoryBus
from ._store import DeadLetter as DeadLetter
