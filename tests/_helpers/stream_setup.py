# Streams and durables as other people may have made them, for tests.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests._helpers.brokers import NATSSwarm, echo
from trio_swarmtask import Message, Status

if TYPE_CHECKING:
    from tests._helpers.api_client import Raw

REPUBLISH = {"src": "done.*", "dest": "notify.{{split(1,-)}}"}


async def config_of(raw: Raw, stream: str) -> dict[str, Any]:
    """As it is now, whole."""
    config: dict[str, Any] = (await raw.api(f"STREAM.INFO.{stream}"))["config"]
    return config


async def make(raw: Raw, name: str, *subjects: str, **settings: Any) -> dict[str, Any]:
    await raw.api(f"STREAM.CREATE.{name}", name=name, subjects=subjects, **settings)
    return await config_of(raw, name)


async def make_durable(raw: Raw, stream: str, capability: str, **settings: Any) -> dict[str, Any]:
    name = f"work-{capability}"
    config = {
        "name": name,
        "durable_name": name,
        "filter_subject": f"work.{capability}.*",
        "ack_policy": "explicit",
        **settings,
    }
    made = await raw.api(
        f"CONSUMER.CREATE.{stream}.{name}", stream_name=stream, config=config, action="create"
    )
    return made["config"]


async def use(swarm: NATSSwarm) -> None:
    """A task of an ID that the library makes, and one of the caller's own, twice."""
    async with swarm.dispatcher() as dispatcher, swarm.worker() as worker:
        future = await dispatcher.start("coder", Message())
        await worker.handle("coder", echo)
        for value in ("a", "b"):
            result = await dispatcher.run("coder", Message(id="mine", inputs={"is": value}))
            assert result.outputs == {"is": "a"}
        assert (await future.wait()).status == Status.SUCCESS
