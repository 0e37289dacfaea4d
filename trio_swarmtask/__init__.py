"""Send a unit of work to a worker somewhere and get its result back: NATS JetStream for Trio."""

from ._abc import Broker as Broker
from ._config import NATSConfig as NATSConfig
from ._dispatcher._dispatcher import Dispatcher as Dispatcher
from ._dispatcher._future import Future as Future, TaskState as TaskState
from ._dispatcher._group import TaskGroup as TaskGroup
from ._dispatcher._updates import Updates as Updates
from ._envelope import VERSION as VERSION, Status as Status
from ._errors import (
    AuthenticationError as AuthenticationError,
    BrokerError as BrokerError,
    ClosedError as ClosedError,
    InvalidCapabilityError as InvalidCapabilityError,
    InvalidMessageError as InvalidMessageError,
    SwarmTaskError as SwarmTaskError,
    UnsupportedVersionError as UnsupportedVersionError,
)
from ._idempotency import Idempotency as Idempotency
from ._interrupts import protect as _protect
from ._memory._broker import MemoryBroker as MemoryBroker
from ._memory._store import DeadLetter as DeadLetter
from ._message import (
    Message as Message,
    Result as Result,
    TaskCancelledError as TaskCancelledError,
    TaskFailedError as TaskFailedError,
    TaskTimeoutError as TaskTimeoutError,
)
from ._open import (
    open_broker as open_broker,
    open_dispatcher as open_dispatcher,
    open_idempotency as open_idempotency,
    open_worker as open_worker,
)
from ._schedule import Schedule as Schedule
from ._statistics import (
    DispatcherStatistics as DispatcherStatistics,
    GroupStatistics as GroupStatistics,
    WorkerStatistics as WorkerStatistics,
)
from ._util import show_public_paths as _show_public_paths
from ._worker._handler import Handler as Handler
from ._worker._job import CurrentTask as CurrentTask, current_task as current_task
from ._worker._retry import Retry as Retry, RetryTask as RetryTask
from ._worker._worker import Worker as Worker

_show_public_paths(globals())
_protect()
