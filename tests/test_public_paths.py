"""What users see names where they find it: in tracebacks, in `repr`, in `help`."""

from __future__ import annotations

import pickle
import pydoc
from types import ModuleType
from typing import get_type_hints

import pytest

import trio_swarmtask
import trio_swarmtask.bus
import trio_swarmtask.results
import trio_swarmtask.server

MODULES = (trio_swarmtask, trio_swarmtask.bus, trio_swarmtask.results)


def public_names(module: ModuleType) -> dict[str, object]:
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_nothing_public_names_a_private_module(module: ModuleType) -> None:
    for name, value in public_names(module).items():
        origin = getattr(value, "__module__", None) or ""
        assert not origin.startswith("trio_swarmtask") or "._" not in origin, name


def test_path_is_the_shortest_that_there_is() -> None:
    paths = (
        trio_swarmtask.ClosedError,
        trio_swarmtask.Message,
        trio_swarmtask.open_worker,
        trio_swarmtask.results.Result,
        trio_swarmtask.results.open_kv_publisher,
        trio_swarmtask.bus.MemoryBus,
    )
    assert [f"{path.__module__}.{path.__name__}" for path in paths] == [
        "trio_swarmtask.ClosedError",
        "trio_swarmtask.Message",
        "trio_swarmtask.open_worker",
        "trio_swarmtask.results.Result",
        "trio_swarmtask.results.open_kv_publisher",
        "trio_swarmtask.bus.MemoryBus",
    ]


def test_help_lists_what_is_public() -> None:
    text = pydoc.plain(pydoc.render_doc(trio_swarmtask))
    for name in public_names(trio_swarmtask):
        assert f"\n    {name}" in text or f" {name}" in text, name
    assert "class ClosedError(SwarmTaskError, trio.ClosedResourceError)" in text
    assert "open_worker(" in text


@pytest.mark.parametrize(
    "cls",
    [
        trio_swarmtask.Message,
        trio_swarmtask.Result,
        trio_swarmtask.NATSConfig,
        trio_swarmtask.Retry,
        trio_swarmtask.DeadLetter,
        trio_swarmtask.WorkerStatistics,
        trio_swarmtask.results.Result,
        trio_swarmtask.results.ResultFilter,
        trio_swarmtask.bus.BusMessage,
        trio_swarmtask.server.Server,
    ],
)
def test_help_says_what_each_field_is(cls: type) -> None:
    text = pydoc.plain(pydoc.render_doc(cls))
    fields = [name for name in cls.__annotations__ if not name.startswith("_")]
    assert fields
    for name in fields:
        assert f"\n |    {name}: " in text, name


def test_annotations_can_be_evaluated_all_the_same() -> None:
    """msgspec does so when it first reads or writes one."""
    for cls in (trio_swarmtask.Message, trio_swarmtask.results.Result, trio_swarmtask.Result):
        assert str not in {type(hint) for hint in get_type_hints(cls).values()}


def test_pickles() -> None:
    for each in (trio_swarmtask.Message(id="t1"), trio_swarmtask.Retry(), trio_swarmtask.Status):
        assert pickle.loads(pickle.dumps(each)) == each
    error = pickle.loads(pickle.dumps(trio_swarmtask.ClosedError("gone")))
    assert isinstance(error, trio_swarmtask.ClosedError)
