# The broker on a NATS server with JetStream: streams, consumers, and what goes over them.
#
#   _broker         opens the parts below on one connection
#   _outbox         a dispatcher's side: stores tasks, hears of results, finds what was missed
#   _intake         a worker's side of one capability: a standing pull; how long leases last
#   _delivery       one task at a worker, and all the ways in which it ends
#   _tasks          tasks on their way into the queue, now or later
#   _schedules      tasks that are started again and again
#   _results        the first result of each task: stored, and looked up
#   _cancel         cancelling one task: the canceller's side, and the worker's
#   _cancel_many    cancelling the tasks of a group together
#   _group_leases   leases of groups, which end with the program that started the group
#   _reports        what handlers report, and those who follow it
#   _bucket         keys and values, read, put and followed
#   _bucket_stream  the stream of a bucket
#   _streams        which stream holds what, and what it can do; the durables; JetStream
#   _unfit          streams and durables of others that would lose messages
#   _portions       many stored messages at once, in portions that a slow link carries
#   _headers        what the headers and subjects of a task say
#   _api            JetStream's requests: publish, get, delete
#   _answers        the shapes that answers must have
#   _refusals       which refusals pass, and which are final

from .._interrupts import protect as _protect
from ._broker import NATSBroker as NATSBroker, open_nats_broker as open_nats_broker

_protect()
