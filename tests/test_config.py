# NATSConfig: what it refuses, where the URL comes from, and that no secret shows.

from __future__ import annotations

import dataclasses
import math
import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from trio_swarmtask import NATSConfig
from trio_swarmtask.bus import MemoryBus
from trio_swarmtask.results import BusPublisher, MemoryPublisher, publish_results

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS: Final = ("connect_timeout", "result_ttl", "ack_wait", "reconnect_timeout")

# Whatever else is wrong with them, these words are in none that is shown.
SECRETS: Final = ("SECRET", "USER")
URLS_WITH_SECRETS: Final = {
    "nats://USER:SECRET@h": "nats://h",
    "nats://SECRET@h:4222": "nats://h:4222",
    "tls://USER:SECRET@[::1]:4222": "tls://[::1]:4222",
    "nats://USER:@h": "nats://h",
    "nats://USER:SEC@SECRET@h": "nats://h",
    "nats://USER:%2FSECRET@h": "nats://h",
    "nats://USER:SECRET SECRET@h": "nats://h",
    "nats://USER:SECRET\n@h": "nats://h",
    "nats://a,nats://USER:SECRET@b, tls://SECRET@c": "nats://a,nats://b,tls://c",
    "nats://USER:SECRET@a,nats://USER:SECRET@b": "nats://a,nats://b",
}
BROKEN_URLS_WITH_SECRETS: Final = (
    "USER:SECRET@h:4222",
    "http://USER:SECRET@h",
    "://USER:SECRET@h",
    "nats:USER:SECRET@h",
    "nats:/USER:SECRET@h",
    "nats://USER:SECRET@",
    "nats://USER:SECRET@:4222",
    "nats://USER:SECRET@h:port",
    "nats://USER:SECRET@h:0",
    "nats://USER:SECRET@h:99999",
    "nats://USER:SECRET@[bad",
    "nats://USER:SECRET[@h",
    "nats://USER:/SECRET@h",
    "nats://USER:SEC/SECRET@h",
    "nats://USER:123/SECRET@h",
    "nats://USER:SEC?SECRET@h",
    "nats://USER:SEC#SECRET@h",
    "nats://USER:123?SECRET@h",
    "nats://USER#SECRET@h",
    "nats://USER:://SECRET@h",
    "nats://USER:SECRET://SECRET@h",
    "nats://USER:SECRET@a,,nats://USER:SECRET@b",
    "nats://USER:SECRET@a,http://USER:SECRET@b",
    # With `@host` forgotten, or more of it.
    "nats://USER:SECRET",
    "tls://USER:SECRET/",
    "nats://USER:1/SECRET",
    "nats://USER?SECRET",
    "nats://SEC$RET USER",
    "nats://SECRET" + "x" * 60,
    "nats://h,nats://USER:SECRET",
    "nats://h:1,SECRET",
    "http://USER:SECRET",
    "nats:USER:SECRET",
    "USER:SECRET",
    "SECRET",
)
URLS_WITH_A_COMMA: Final = (  # refused or understood, as long as it is safe
    "nats://USER:SECRET,SECRET@h",
    "nats://a,nats://USER:SECRET,SECRET@h:4222",
)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATS_URL", raising=False)


# The URL


def test_url_by_default() -> None:
    assert NATSConfig().url == "nats://127.0.0.1:4222"
    assert repr(NATSConfig()) == "NATSConfig(url='nats://127.0.0.1:4222')"


def test_url_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none is given; an empty one counts as none."""
    monkeypatch.setenv("NATS_URL", "nats://there")
    assert NATSConfig().url == NATSConfig("").url == "nats://there"
    assert NATSConfig("nats://here").url == "nats://here"
    monkeypatch.setenv("NATS_URL", "")
    assert NATSConfig().url == "nats://127.0.0.1:4222"


def test_url_from_the_environment_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "http://there")
    with pytest.raises(ValueError, match="'http://there' is not the URL of a NATS server"):
        NATSConfig()


def test_url_list() -> None:
    config = NATSConfig("nats://a:1, tls://b , nats://[::1]:3/")
    assert config.servers == ["nats://a:1", "tls://b", "nats://[::1]:3/"]


@pytest.mark.parametrize(
    "url",
    [
        *("http://h", "h", "nats:h", "nats://", "nats://:4222", "nats://h:0"),
        *("nats://h:port", "nats://h:65536", "nats://[::1", " ", ",", "nats://h,", "nats://a,b"),
    ],
)
def test_url_broken(url: str) -> None:
    with pytest.raises(
        ValueError, match=r"is not the URL of a NATS server; write nats://host:port"
    ):
        NATSConfig(url)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [("nats://h", False), ("tls://h", True), ("nats://a, tls://b", True)],
)
def test_wants_tls(url: str, wanted: bool) -> None:
    assert NATSConfig(url).wants_tls is wanted
    assert NATSConfig(url, tls=ssl.create_default_context()).wants_tls


@pytest.mark.parametrize("url", ["TLS://h", "Tls://h"])
def test_wants_tls_in_capitals(url: str) -> None:
    """Refused or understood, but never taken for a connection without TLS."""
    try:
        config = NATSConfig(url)
    except ValueError as exc:
        assert "is not the URL of a NATS server" in str(exc)  # noqa: PT017 - one of two good ways
    else:
        assert config.wants_tls


# Secrets


def shown(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


@pytest.mark.parametrize("url", URLS_WITH_SECRETS)
def test_safe_url(url: str) -> None:
    config = NATSConfig(url)
    assert config.safe_url == URLS_WITH_SECRETS[url]
    assert repr(config) == str(config) == f"NATSConfig(url={URLS_WITH_SECRETS[url]!r})"


@pytest.mark.parametrize("url", [*BROKEN_URLS_WITH_SECRETS, *URLS_WITH_A_COMMA])
def test_url_broken_shows_no_secret(url: str) -> None:
    """Neither in the error, nor in one that it came from, which a traceback would show."""
    exc: BaseException | None = None
    try:
        config = NATSConfig(url)
    except ValueError as refused:
        exc = refused
    else:
        assert url in URLS_WITH_A_COMMA
        assert shown(repr(config) + config.safe_url) == []
    while exc is not None:
        assert shown(str(exc)) == []
        exc = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)


@pytest.mark.parametrize("port", ["nats://u:SECRET", "nats://u:70000"])
def test_url_broken_says_what_is_wrong(port: str) -> None:
    """In words, for nothing of it is shown."""
    with pytest.raises(ValueError, match=r"^what was given \(not shown: .* port belongs is no num"):
        NATSConfig(port)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda url: BusPublisher(url), TypeError),
        (lambda url: MemoryBus(url), TypeError),
        (lambda url: publish_results(url, MemoryPublisher()), TypeError),
        (lambda url: NATSConfig(ack_wait=url), TypeError),
        (lambda url: NATSConfig(replicas=url), ValueError),
        (lambda url: NATSConfig(manage_streams=url), TypeError),
    ],
)
@pytest.mark.parametrize("url", URLS_WITH_SECRETS)
def test_url_in_the_wrong_place_shows_no_secret(
    call: Callable[[Any], object], error: type[Exception], url: str
) -> None:
    with pytest.raises(error) as caught:
        call(url)
    assert shown(str(caught.value)) == []


def test_repr_shows_no_secret() -> None:
    """It shows what differs from the defaults."""
    config = NATSConfig(
        "nats://USER:SECRET@h", user="me", password="SECRET", token="SECRET", ack_wait=2
    )
    expected = "NATSConfig(url='nats://h', user='me', password='***', token='***', ack_wait=2)"
    assert repr(config) == str(config) == expected


# The rest


@pytest.mark.parametrize("setting", SECONDS)
@pytest.mark.parametrize("value", ["1", None, True, [1], b"1"])
def test_seconds_of_a_wrong_type(setting: str, value: object) -> None:
    wrong = re.escape(f"{setting} must be a number of seconds, not {value!r}")
    with pytest.raises(TypeError, match=wrong):
        NATSConfig(**{setting: value})


@pytest.mark.parametrize("setting", SECONDS)
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, -math.inf])
def test_seconds_not_above_0(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be .*not {value!r}"):
        NATSConfig(**{setting: value})


@pytest.mark.parametrize("setting", ["result_ttl", "ack_wait"])
@pytest.mark.parametrize("value", [math.inf, 1e300, 1e-10])
def test_seconds_that_the_server_cannot_count(setting: str, value: float) -> None:
    """It counts nanoseconds in 64 bits, and takes 0 for its own default or for ever."""
    with pytest.raises(ValueError, match=f"{setting} must be .*not {re.escape(repr(value))}"):
        NATSConfig(**{setting: value})


@pytest.mark.parametrize("setting", ["connect_timeout", "reconnect_timeout"])
def test_seconds_may_be_infinite(setting: str) -> None:
    assert getattr(NATSConfig(**{setting: math.inf}), setting) == math.inf


@pytest.mark.parametrize("replicas", [0, 6, -1, 1.5, 3.0, True, "3", None, [1]])
def test_replicas_not_1_to_5(replicas: object) -> None:
    wrong = re.escape(f"replicas must be a whole number from 1 to 5, not {replicas!r}")
    with pytest.raises(ValueError, match=wrong):
        NATSConfig(replicas=replicas)


def test_replicas_1_to_5() -> None:
    assert [NATSConfig(replicas=count).replicas for count in (1, 2, 3, 4, 5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("url", 5), ("url", b"nats://h"), ("name", 5), ("user", 5), ("password", 5)),
        *(("token", b"x"), ("credentials", 5), ("nkey_seed", b"x")),
        *(("url", Path("h")), ("password", Path("h"))),  # only what names a file may be one
        *(("manage_streams", "no"), ("tls", True)),
    ],
)
def test_setting_of_a_wrong_type(setting: str, value: Any) -> None:  # noqa: ANN401 - any wrong one
    with pytest.raises(TypeError, match=f"^{setting} must be "):
        NATSConfig(**{setting: value})


def test_path_of_a_file() -> None:
    config = NATSConfig(credentials=Path("a.creds"), nkey_seed="b.seed")
    assert (config.credentials, config.nkey_seed) == (Path("a.creds"), "b.seed")


@pytest.mark.parametrize("setting", ["password", "token"])
def test_secret_of_a_wrong_type_is_not_shown(setting: str) -> None:
    with pytest.raises(TypeError, match=f"^{setting} must be ") as info:
        NATSConfig(**{setting: b"SECRET"})
    assert shown(str(info.value)) == []


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="url"):
        NATSConfig().url = "nats://h"
    with pytest.raises(TypeError, match="positional"):
        NATSConfig("nats://h", "name")
