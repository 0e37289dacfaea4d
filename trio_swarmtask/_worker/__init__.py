# The worker's side: it takes tasks, runs handlers, and stores what came of them. Pure Trio.
#
#   _worker          what users call; the order in which a worker stops
#   _capability      one capability: the tasks in hand, their leases, their cancellations
#   _lanes           Trio tasks that run handlers one after another, each in a scope of its own
#   _runner          one task: whether it is run, the call of its handler, the storing of its result
#   _job             one task in hand, and what its handler sees of it
#   _own_dispatcher  the dispatcher through which handlers start tasks
#   _handler         what a handler may be, and what becomes of what it returns or raises
#   _retry           which failures are worth another attempt, and when
#   _observers       those who follow what a worker does
#   _watchdog        names the handler that keeps the Trio thread to itself

from ._worker import Worker as Worker, host_worker as host_worker
