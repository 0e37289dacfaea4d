# The shape of the package, read from its sources: who may import whom, who may import what.

from __future__ import annotations

import ast
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import pytest

import trio_swarmtask

PACKAGE: Final = Path(trio_swarmtask.__file__).parent
MODULES: Final = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

# Highest first. A module imports from its own layer and from lower ones. A folder counts as one
# module, and a name that ends in `*` stands for all that begin so.
BROKERS: Final = ("_memory*", "_nats")  # neither knows of the other
LAYERS: Final = (
    ("__main__", "_cli", "_demo*", "server", "_process"),
    ("results", "bus", "_open_bus"),
    ("__init__", "_open", "_open_idempotency"),
    (
        "_dispatcher",
        "_dispatcher_base",
        "_worker",
        "_future",
        "_futures",
        "_group",
        "_lease",
        "_open_group",
        "_map",
        "_open_map",
        "_starter",
        "_chain",
        "_updates",
        "_current",
        "_children",
        "_cancelled",
        "_handler",
        "_idempotency",
        "_job",
        "_observer",
        "_pace",
        "_admission",
        "_retry",
        "_runner",
        "_lane",
        "_service",
        "_watchdog",
        "_statistics",
    ),
    BROKERS,
    (
        "_broker",
        "_bucket",
        "_bus",
        "_buffer",
        "_expiring",
        "_lifetime",
        "_progress",
        "_schedule",
        "_source",
    ),
    (
        "_wire",
        "_record",
        "_record_wire",
        "_codec",
        "_envelope",
        "_untrusted",
        "_names",
        "_subjects",
        "_cron",
        "_errors",
        "_config",
        "_util",
    ),
)

ASYNCIO: Final = {"asyncio", "nats", "trio_asyncio"}
# They do no I/O. `_errors` does import trio, for its errors are trio's too.
WITHOUT_TRIO: Final = {
    "_wire",
    "_record",
    "_record_wire",
    "_codec",
    "_envelope",
    "_untrusted",
    "_names",
    "_subjects",
    "_cron",
}


def layer(module: str) -> int:
    """The height of a module's layer: the lowest is 0."""
    for height, patterns in enumerate(reversed(LAYERS)):
        if any(fnmatchcase(module, pattern) for pattern in patterns):
            return height
    pytest.fail(f"{module!r} is in no layer: give it its place in LAYERS")


def top(module: Path) -> str:
    """`_nats` for `_nats/client.py`, `_wire` for `_wire.py`."""
    return module.with_suffix("").parts[0]


def imports(module: Path) -> set[str]:
    """What a module imports, wherever in it, by absolute dotted names."""
    inside = ("trio_swarmtask", *module.parent.parts)
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else ()
            origin = ".".join((*base, *filter(None, [node.module])))
            # With the name, for it may be a module itself, as in `from . import _names`.
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return found


def own_imports(module: Path) -> set[str]:
    """Those of them that are modules of this package, by their top names."""
    names = {top(path) for path in MODULES}
    found = set()
    for dotted in imports(module):
        root, *rest = dotted.split(".")
        if root == "trio_swarmtask":
            found.add(rest[0] if rest and rest[0] in names else "__init__")
    return found - {top(module)}


def foreign_imports(module: Path) -> set[str]:
    return {dotted.partition(".")[0] for dotted in imports(module)}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_imports_no_higher_layer(module: Path) -> None:
    """Arrows go down only."""
    own = layer(top(module))
    assert [name for name in sorted(own_imports(module)) if layer(name) > own] == []


@pytest.mark.parametrize(("broker", "other"), [BROKERS, BROKERS[::-1]])
def test_brokers_do_not_import_each_other(broker: str, other: str) -> None:
    """Nothing skips a layer sideways."""
    for module in MODULES:
        if fnmatchcase(top(module), broker):
            assert [name for name in own_imports(module) if fnmatchcase(name, other)] == [], module


@pytest.mark.parametrize("module", [m for m in MODULES if top(m) != "_nats"], ids=str)
def test_asyncio_stays_below_the_border(module: Path) -> None:
    """Only `_nats/` imports asyncio, nats or trio_asyncio."""
    assert foreign_imports(module) & ASYNCIO == set()


@pytest.mark.parametrize("module", [m for m in MODULES if top(m) in WITHOUT_TRIO], ids=str)
def test_wire_does_not_import_trio(module: Path) -> None:
    """What describes the wire works without an event loop of any kind."""
    assert "trio" not in foreign_imports(module)


def test_importing_the_package_loads_no_asyncio() -> None:
    """asyncio, nats and trio_asyncio are loaded when a NATS broker is opened, not before."""
    program = f"import sys, trio_swarmtask; print(sorted({ASYNCIO} & sys.modules.keys()))"
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout == "[]\n"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_is_one_idea(module: Path) -> None:
    """A module may be long if it is one idea, whole; past 600 lines it hardly is."""
    lines = (PACKAGE / module).read_text(encoding="utf-8").count("\n")
    assert lines <= 600
