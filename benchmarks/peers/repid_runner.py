# repid 2.1 on NATS: tasks and replies in a JetStream stream
#
# `Repid.run_worker` inside a program. repid has no results to wait for, since 2.0; what is measured
# is built here from what it documents: the task's `Message.reply_json` to a channel of the sender,
# which has an actor of its own there. So the sender is a worker, too, the reply is a message like
# any other (stored, confirmed, acknowledged), and a sender that ends loses its results. `reply_to`
# cannot name the channel: what goes through JetStream leaves without it, so a header does.
#
# NATS, not Redis: with Redis there is no native reply. repid leaves making the stream to its user.
# There is no call for many tasks at once.

from __future__ import annotations

import asyncio
import itertools

import nats
from _stdio import Handler, Options, background, each, follow, main, serve
from repid import Message, NatsServer, Repid, Router


def make_app(url: str) -> Repid:
    app = Repid()
    app.servers.register_server("nats", NatsServer(url), is_default=True)
    return app


async def make_stream(url: str, name: str) -> None:
    """repid leaves streams to its user."""
    async with await nats.connect(url) as client:
        await client.jetstream().add_stream(name=name, subjects=[name, f"{name}-results"])


async def work(url: str, name: str, options: Options) -> None:
    handler = Handler(options)
    router = Router(channel=name)

    async def task(text: str, message: Message) -> None:
        await handler()
        headers = message.headers or {}
        if "id" in headers:
            reply = {"topic": "result", "id": headers["id"]}
            await message.reply_json(payload={}, headers=reply, channel=f"{name}-results")

    for task_name in options.names:
        router.actor(task, name=task_name)
    app = make_app(url)
    app.include_router(router)
    await make_stream(url, name)
    worker = app.run_worker(tasks_limit=options.concurrency)
    async with app.servers.default.connection(), background(worker):
        await serve(handler)


class Dispatcher:
    def __init__(self, app: Repid, name: str) -> None:
        self._app = app
        self._name = name
        self._ids = itertools.count()
        self._results: dict[str, asyncio.Future[None]] = {}

    async def on_result(self, message: Message) -> None:
        headers = message.headers or {}
        self._results.pop(headers["id"]).set_result(None)

    async def run(self, text: str) -> None:
        task_id = str(next(self._ids))
        future = self._results[task_id] = asyncio.get_running_loop().create_future()
        await self._app.send_message_json(
            channel=self._name, payload={"text": text}, headers={"topic": "work", "id": task_id}
        )
        await future

    async def enqueue(self, tasks: int, text: str) -> None:
        await each(
            tasks,
            lambda: self._app.send_message_json(
                channel=self._name, payload={"text": text}, headers={"topic": "work"}
            ),
        )


async def dispatch(url: str, name: str, options: Options) -> None:
    app = make_app(url)
    dispatcher = Dispatcher(app, name)
    router = Router(channel=f"{name}-results")
    router.actor(dispatcher.on_result, name="result")
    app.include_router(router)
    await make_stream(url, name)
    async with app.servers.default.connection(), background(app.run_worker()):
        await follow(dispatcher)


if __name__ == "__main__":
    main(work, dispatch)
