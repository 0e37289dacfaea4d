"""A message bus: publish, subscribe and request by subject, at most once; in memory or on NATS."""

from ._bus import (
    BusMessage as BusMessage,
    BusSubscription as BusSubscription,
    MessageBus as MessageBus,
)
from ._errors import (
    BusClosedError as BusClosedError,
    InvalidSubjectError as InvalidSubjectError,
    NoRespondersError as NoRespondersError,
)
from ._interrupts import protect as _protect
from ._memory._bus import MemoryBus as MemoryBus
from ._open import open_nats_bus as open_nats_bus
from ._util import show_public_paths as _show_public_paths

_show_public_paths(globals())
_protect()
