# The NATS broker: all that imports asyncio, nats or trio_asyncio.
#
#   _broker                what open_broker gives
#   _bus                   the message bus
#   _bucket  _watch        a key-value bucket, and following its keys
#   _bucket_stream         the stream of one
#   _outbox  _intake       a dispatcher's side, a worker's side
#   _task_store            tasks on their way into the queue
#   _later  _schedules     tasks that are not due, tasks that are started again and again
#   _firing                what a schedule starts, as a worker gets it
#   _stored                single messages of a queue
#   _leases                those of groups
#   _deadline              deadlines that travel with their tasks
#   _delivery              how a task at a worker is settled
#   _reports  _following   progress, as it is sent, and as it is heard
#   _cancel                cancelling a task from afar, both ends
#   _streams  _durables    found by what is needed, made where missing
#   _result_store          the results of tasks: stored, fetched
#   _answers               the shapes of what the API answers
#   _jetstream             publish with an acknowledgement, the JSON API, trying again
#   _subscribe             a subscription that the server has confirmed
#   _requests              requests and replies over one inbox
#   _connection            one connection; _errors: what its errors mean
#   _credentials           files to log in with, checked before nats-py reads them
#   _loop                  the asyncio loop under it
#   _client                the one place that touches nats-py's insides

from ._broker import NATSBroker as NATSBroker, open_nats_broker as open_nats_broker
from ._bus import open_bus_on as open_bus_on, open_nats_bus as open_nats_bus
