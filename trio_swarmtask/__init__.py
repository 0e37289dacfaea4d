"""Send a unit of work to a worker somewhere and get its result back: NATS JetStream for Trio."""

# Layers, highest first. A module imports from lower ones only (tests/test_layers.py holds it to
# that).
#
#   _cli, _demo*, server               programs and helpers on top
#   results/, bus                      results for others, the message bus
#   _open                              what users call
#   _dispatcher  _worker  _future      pure Trio, no NATS word
#   _memory*  _nats/                   two brokers; asyncio, nats-py and trio-asyncio in _nats/ only
#   _broker  _bucket  _bus             the interfaces that both implement
#   _wire  _record  _names  _errors    no I/O

from ._broker import Broker as Broker
from ._config import NATSConfig as NATSConfig
from ._current import CurrentTask as CurrentTask, current_task as current_task
from ._dispatcher import Dispatcher as Dispatcher
from ._envelope import VERSION as VERSION, Status as Status
from ._errors import (
    AuthenticationError as AuthenticationError,
    BrokerError as BrokerError,
    ClosedError as ClosedError,
    InvalidCapabilityError as InvalidCapabilityError,
    InvalidMessageError as InvalidMessageError,
    SwarmTaskError as SwarmTaskError,
    TaskCancelledError as TaskCancelledError,
    TaskFailedError as TaskFailedError,
    TaskTimeoutError as TaskTimeoutError,
    UnsupportedVersionError as UnsupportedVersionError,
)
from ._future import Future as Future, TaskState as TaskState
from ._group import TaskGroup as TaskGroup
from ._handler import Handler as Handler
from ._idempotency import Idempotency as Idempotency
from ._memory import DeadLetter as DeadLetter, MemoryBroker as MemoryBroker
from ._open import (
    open_broker as open_broker,
    open_dispatcher as open_dispatcher,
    open_worker as open_worker,
)
from ._open_idempotency import open_idempotency as open_idempotency
from ._retry import Retry as Retry, RetryTask as RetryTask
from ._schedule import Schedule as Schedule
from ._statistics import (
    DispatcherStatistics as DispatcherStatistics,
    GroupStatistics as GroupStatistics,
    WorkerStatistics as WorkerStatistics,
)
from ._updates import Updates as Updates
from ._util import show_public_paths as _show_public_paths
from ._wire import Message as Message, Result as Result
from ._worker import Worker as Worker

_show_public_paths(globals())
