"""The table of what the server's refusals mean, against the list of those that it has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests._helpers.brokers import within
from trio_swarmtask import BrokerError, NATSConfig, open_dispatcher
from trio_swarmtask._jetstream._api import APIError
from trio_swarmtask._jetstream._refusals import FINAL, IN_FLIGHT, PASSING, passes
from trio_swarmtask._nats import _requests
from trio_swarmtask._nats._connection import Troubles, open_connection
from trio_swarmtask._nats._requests import in_time, persist

if TYPE_CHECKING:
    from trio_swarmtask.server import Server

ALL: Final = {
    int(err_code): (int(code), name)
    for err_code, code, name in (
        line.split("\t")
        for line in (Path(__file__).parent / "server_errors.tsv").read_text().splitlines()
        if not line.startswith("#")
    )
}


@pytest.mark.parametrize(
    ("err_code", "name"),
    [
        (10002, "JSAccountResourcesExceededErr"),
        (10005, "JSClusterNoPeersErrF"),
        (10008, "JSClusterNotAvailErr"),
        (10009, "JSClusterNotLeaderErr"),
        (10023, "JSInsufficientResourcesErr"),
        (10047, "JSStorageResourcesExceededErr"),
        (10077, "JSStreamStoreFailedF"),
        (10118, "JSStreamOfflineErr"),
        (10158, "JSStreamDuplicateMessageConflict"),
        (10163, "JSStreamExpectedLastSeqPerSubjectNotReady"),
        (10164, "JSStreamWrongLastSequenceConstantErr"),
        (10167, "JSStreamTooManyRequests"),
    ],
)
def test_refusal_that_passes(err_code: int, name: str) -> None:
    code, found = ALL[err_code]
    assert found == name
    assert passes(code, err_code)


@pytest.mark.parametrize(
    ("err_code", "name"),
    [
        (10003, "JSBadRequestErr"),
        (10026, "JSMaximumConsumersLimitErr"),
        (10036, "JSClusterUnSupportFeatureErr"),
        (10052, "JSStreamInvalidConfigF"),
        (10054, "JSStreamMessageExceedsMaximumErr"),
        (10071, "JSStreamWrongLastSequenceErrF"),
        (10074, "JSStreamReplicasNotSupportedErr"),
        (10109, "JSStreamSealedErr"),
        (10188, "JSMessageSchedulesDisabledErr"),
    ],
)
def test_refusal_for_good(err_code: int, name: str) -> None:
    code, found = ALL[err_code]
    assert found == name
    assert not passes(code, err_code)


def test_table_has_known_refusals_alone_and_reasons_that_are_needed() -> None:
    """What the HTTP code decides as well stands in no table."""
    for err_code in PASSING:
        assert err_code in IN_FLIGHT or ALL[err_code][0] < 500
    for err_code in FINAL:
        assert ALL[err_code][0] >= 500


def test_refusals_of_a_newer_server() -> None:
    assert passes(503, 19999)
    assert passes(429, 19999)
    assert not passes(400, 19999)


@within(10)
async def test_last_refusal_is_in_the_error(server: Server) -> None:
    config = NATSConfig(server.url, connect_timeout=0.3)

    async def attempt() -> None:
        raise APIError(400, 10005, "no suitable peers for placement")

    async with open_connection(config) as connection:
        with pytest.raises(BrokerError) as caught:
            await in_time(connection, "dance", lambda: persist(connection, "dance", attempt))
    assert str(caught.value) == (
        f"{server.url} did not dance within 0.3 seconds: no suitable peers for placement "
        "(code 10005)"
    )


@within(10)
async def test_replicas_without_a_cluster_are_refused_at_once(server: Server) -> None:
    with pytest.raises(BrokerError, match="replicas > 1 not supported"):
        async with open_dispatcher(NATSConfig(server.url, replicas=3, connect_timeout=60)):
            pass


def test_trouble_is_told_once_while_somebody_waits() -> None:
    troubles = Troubles()
    with troubles.open() as first:
        assert first.is_news("full")
        assert not first.is_news("full")
        assert not first.is_news("slow")  # one caller tells once
        with troubles.open() as second:
            assert not second.is_news("full")
        with troubles.open() as third:
            assert not third.is_news("slow")
    with troubles.open() as later:
        assert later.is_news("full")


async def test_pause_grows(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = [0.0]
    for _ in range(8):
        before = trio.current_time()
        pauses.append(await _requests._pause(pauses[-1], 2.0))
        assert trio.current_time() - before == pytest.approx(pauses[-1])
    assert pauses[1:] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
