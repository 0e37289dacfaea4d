# The dispatcher's side: it starts tasks, and holds their results to come. Pure Trio.
#
#   _dispatcher  what users call: run, start, attach, map, groups, schedules
#   _map         many tasks in a row, and their results as they come
#   _group       tasks that end together
#   _core        how a task gets to the broker; how a dispatcher is closed
#   _future      results to come, and all of those that a dispatcher waits for
#   _updates     what a handler reports of its task, as the task's future hears it

from ._dispatcher import Dispatcher as Dispatcher, host_dispatcher as host_dispatcher
from ._future import Future as Future, TaskState as TaskState
from ._group import TaskGroup as TaskGroup
from ._updates import Updates as Updates
