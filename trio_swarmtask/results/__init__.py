"""Publish results of tasks by their IDs; get, list and follow them, from other processes too."""

#   _bridge     publishes what workers do: publish_results
#   _in_bucket  a publisher whose results are in a bucket: durable, for all processes
#   _on_bus     a publisher whose results are in each process, told by a bus
#   _local      a publisher whose results are in this process
#   _publisher  what a publisher is, and what follows a task
#   _select     which results a filter lets through, and in which order
#   _merge      what a new result keeps of the one before
#   _types      results, statuses and filters, checked
#   _errors     what goes wrong

from .._interrupts import protect as _protect
from .._util import show_public_paths as _show_public_paths
from ._bridge import as_result as as_result, publish_results as publish_results
from ._errors import (
    InvalidResultError as InvalidResultError,
    InvalidStatusError as InvalidStatusError,
    InvalidTaskIDError as InvalidTaskIDError,
    PublisherClosedError as PublisherClosedError,
    ResultExistsError as ResultExistsError,
    ResultNotFoundError as ResultNotFoundError,
)
from ._in_bucket import open_kv_publisher as open_kv_publisher
from ._local import MemoryPublisher as MemoryPublisher
from ._on_bus import BusPublisher as BusPublisher, BusPublisherConfig as BusPublisherConfig
from ._publisher import ResultPublisher as ResultPublisher, Subscription as Subscription
from ._types import (
    Result as Result,
    ResultFilter as ResultFilter,
    ResultStatus as ResultStatus,
    validate_result as validate_result,
    validate_task_id as validate_task_id,
)

_show_public_paths(globals())
_protect()
