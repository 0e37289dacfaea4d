"""docs/security.md, held to a real server: its block of permissions works, and is the least.

The block and the program `prepare.py` are taken from the document as they stand there, and so is
what its tables say of each permission that is missing.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
import trio

from tests._helpers.brokers import until, within
from tests._helpers.handlers import Waiting
from tests._helpers.secured_server import (
    BLOCK,
    DOCUMENT,
    REFUSED,
    ROLES,
    cancel,
    dispatch,
    open_site,
    publish,
    quick as quick,
    read,
    schedule,
    work,
)
from trio_swarmtask import (
    BrokerError,
    Message,
    TaskState,
    current_task,
    open_dispatcher,
    open_worker,
)
from trio_swarmtask._nats._connection import open_connection
from trio_swarmtask._nats._requests import open_requests, subscribe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trio_swarmtask._nats._protocol import Incoming


class Entry(NamedTuple):
    """One line of the block: what a role may do."""

    line: int
    role: str
    action: str
    subject: str


def entries() -> Iterator[Entry]:
    role = action = ""
    for number, line in enumerate(BLOCK.splitlines()):
        if found := re.search(r"user: (\w+)", line):
            role = found[1]
        elif found := re.search(r"(publish|subscribe): \{allow: \[", line):
            action = found[1]
        elif found := re.fullmatch(r' +"(\S+)"', line):
            yield Entry(number, role, action, found[1])


ENTRIES: Final = list(entries())


def without(entry: Entry) -> str:
    """The block, with something useless in the place of this entry."""
    lines = BLOCK.splitlines()
    lines[entry.line] = '"nothing.at.all"'  # an empty list would allow everything
    return "\n".join(lines)


def said_of(entry: Entry) -> str:
    """What the table of the role says comes of it when this entry is missing."""
    (table,) = re.findall(rf"^\| the {entry.role} may .*\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE)
    row = rf"^\| {entry.action} `{re.escape(entry.subject)}` \| .* \| `(.*)` \|$"
    (said,) = re.findall(row, table, re.MULTILINE)
    return str(said)


USES: Final = {
    "dispatcher": dispatch,
    "canceller": cancel,
    "scheduler": schedule,
    "worker": work,
    "reader": read,
    "publisher": publish,
}


def marks_of(role: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.needs_schedules] if role == "scheduler" else []


@pytest.mark.parametrize("role", [pytest.param(role, marks=marks_of(role)) for role in ROLES])
@within(20)
async def test_role_works_with_its_permissions(
    tmp_path: Path, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_site(tmp_path) as site:
        await USES[role](site)
    assert "permissions violation" not in caplog.text


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(e, id=f"{e.role}-{e.action}-{e.subject}", marks=marks_of(e.role))
        for e in ENTRIES
    ],
)
@within(20)
async def test_each_permission_is_needed(
    tmp_path: Path, entry: Entry, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it the role ends by an error that names it, or loses what the document says."""
    said = said_of(entry)
    async with open_site(tmp_path, without(entry)) as site:
        if said == "BrokerError":
            with trio.fail_after(5):
                with pytest.raises(BrokerError, match=REFUSED) as raised:
                    await USES[entry.role](site)
            ((action, subject),) = re.findall(REFUSED, str(raised.value))
            assert action == entry.action
            assert fnmatchcase(subject, entry.subject.replace(">", "*"))
            assert "s3cret" not in str(raised.value)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(USES[entry.role], site)
            await until(lambda: said in caplog.text)
            nursery.cancel_scope.cancel()


def with_lines_of(role: str, other: str) -> str:
    """The block, where ``role`` may do what ``other`` may, too."""
    lines = BLOCK.splitlines()
    for entry in ENTRIES:
        if entry.role == role:
            theirs = [e.subject for e in ENTRIES if (e.role, e.action) == (other, entry.action)]
            lines[entry.line] = ", ".join(f'"{subject}"' for subject in (entry.subject, *theirs))
    return "\n".join(lines)


@pytest.mark.parametrize("permitted", [True, False])
@within(20)
async def test_worker_whose_handlers_start_tasks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, permitted: bool
) -> None:
    """It needs the dispatcher's lines; without them the handler hears of it, and others go on."""

    async def handle(message: Message) -> str:
        if message.parent:
            return message.parent
        dispatcher = await current_task().dispatcher()
        return (await dispatcher.run("coder", Message())).raise_for_status().outputs_as(str)

    block = with_lines_of("worker", "dispatcher") if permitted else BLOCK
    async with open_site(tmp_path, block) as site:
        config = site.config("worker")
        async with open_worker(config) as worker, open_dispatcher(site.admin) as dispatcher:
            await worker.handle("coder", handle)
            for name in ("t-1", "t-2"):
                result = await dispatcher.run("coder", Message(id=name))
                if permitted:
                    assert result.outputs == name
                else:
                    assert "does not permit this user to subscribe to notify." in result.error
            assert (await dispatcher.run("coder", Message(parent="other"))).outputs == "other"
    assert ("permissions violation" in caplog.text) is not permitted


@within(20)
async def test_group_that_ends_with_its_program(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the canceller's lines a dispatcher may all that it needs; so may its tasks' worker."""
    handler, looks = Waiting(), 0

    def count(look: Incoming) -> None:
        nonlocal looks
        looks += 1

    async with (
        open_site(tmp_path, with_lines_of("dispatcher", "canceller")) as site,
        open_connection(site.admin) as admin,
        open_worker(site.config("worker")) as worker,
        open_dispatcher(site.config("dispatcher")) as dispatcher,
    ):
        admin.subscribe("$JS.API.STREAM.MSG.GET.TASK_LEASES", count)
        await worker.handle("coder", handler)
        async with dispatcher.open_group(orphans="cancel") as group:
            future = await group.start("coder", Message())
            await handler.started.wait()
            await until(lambda: looks == 3)  # before it was started, and while it runs
            group.cancel_scope.cancel()
        assert future.state == TaskState.STOPPED
    assert "permissions violation" not in caplog.text


@pytest.mark.parametrize("role", ROLES)
@within(20)
async def test_role_may_not_harm_others(tmp_path: Path, role: str) -> None:
    """Nobody but who is named in the document may publish what does harm, or hear all there is."""
    harm = re.findall(r"^\| `(\S+)` \| .* \| (the [\w, ]+) \|$", DOCUMENT, re.MULTILINE)
    assert len(harm) > 10
    async with (
        open_site(tmp_path) as site,
        open_connection(site.config(role)) as connection,
        trio.open_nursery() as nursery,
        open_requests(connection, nursery) as requests,
    ):
        for pattern, left_to in harm:
            if f"the {role}" not in left_to:
                subject = pattern.replace("*", "t1").replace(">", "1.1.1.1.0")
                with pytest.raises(BrokerError, match=rf"to publish to {re.escape(subject)}$"):
                    await requests.request(subject)
        for subject in ("work.>", "done.>", "dead.>", "$KV.>", "$JS.>", ">"):
            with pytest.raises(BrokerError, match="does not permit this user to"):
                await subscribe(requests, subject, print)
        nursery.cancel_scope.cancel()
