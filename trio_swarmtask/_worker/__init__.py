# The worker's side: takes tasks, runs handlers, stores what came of them.

from ._worker import Worker as Worker, host_worker as host_worker
