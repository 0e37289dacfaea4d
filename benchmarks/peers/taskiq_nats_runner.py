# taskiq 0.13 with taskiq-nats 0.7: tasks and results in JetStream
#
# PullBasedJetStreamBroker for tasks, NATSObjectStoreResultBackend for results: each result is an
# object in a bucket of JetStream's object store, the only place that taskiq-nats has for it.
#
# Not PushBasedJetStreamBroker: `startup`, which a sender needs too, subscribes, so that the server
# hands a part of the tasks to a sender that never looks at them.
#
# Tasks are fetched one by one, its default. With `pull_consume_batch` above 1 a fetch waits for a
# full batch, for ever; and with a `pull_consume_timeout` beside it nats-py 2.16 raises an error
# that this broker does not catch.
#
# A result is awaited by looking for it again and again (`wait_result`, every 0.2 s by default).
# There is no call for many tasks at once.
#
# More than some 100 results in a second fail before long: each read of a result leaves a consumer
# on the bucket for 5 s, `wait_result` reads twice, and nats-server 2.15 allows 1,000 ("maximum
# consumers limit reached", 10026). After 6 s of rest a run of 400 tasks passes, one of 1,000 fails.

from __future__ import annotations

from typing import Final

import _taskiq
from _stdio import Options, main
from taskiq_nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker

POLL: Final = 0.01  # seconds; 0.003 was faster with one task in flight, 0.03 with 100


def make_broker(url: str, name: str, options: Options) -> PullBasedJetStreamBroker:
    broker = PullBasedJetStreamBroker(
        url,
        subject=name,
        stream_name=name,
        durable=name,
    )
    broker.with_result_backend(NATSObjectStoreResultBackend(url, bucket_name=f"{name}-results"))
    return broker


async def work(url: str, name: str, options: Options) -> None:
    await _taskiq.work(make_broker(url, name, options), options)


async def dispatch(url: str, name: str, options: Options) -> None:
    await _taskiq.dispatch(make_broker(url, name, options), options.poll or POLL)


if __name__ == "__main__":
    main(work, dispatch)
