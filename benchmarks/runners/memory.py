# The library on MemoryBroker: dispatcher and worker in one process, no server
#
# So there is one role only, the dispatcher; its process does the worker's part as well.

from __future__ import annotations

import trio
from ours import make_handler, serve
from role import Meter, Options, capabilities, in_turn, read_arguments

from trio_swarmtask import MemoryBroker, open_dispatcher, open_worker


async def run_both(name: str, options: Options) -> None:
    broker = MemoryBroker()
    async with open_worker(broker) as worker, open_dispatcher(broker) as dispatcher:
        handler = make_handler(options, Meter())
        for capability in capabilities(name, options.capabilities):
            await worker.handle(capability, handler, max_in_flight=options.concurrency)
        await serve(dispatcher, in_turn(name, options), options)


if __name__ == "__main__":
    _role, _url, name, options = read_arguments()
    trio.run(run_both, name, options)
