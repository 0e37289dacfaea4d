# The dispatcher's side: starts tasks, holds what is to come of them.

from ._dispatcher import Dispatcher as Dispatcher, host_dispatcher as host_dispatcher
from ._future import Future as Future, TaskState as TaskState, Updates as Updates
from ._group import TaskGroup as TaskGroup
