# The shape of the package, read from its sources: who may import whom, who may import what.
#
# docs/architecture.md has the drawing.

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import trio_swarmtask

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE: Final = Path(trio_swarmtask.__file__).parent
MODULES: Final = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
ROOMS: Final = [path for path in MODULES if path.name != "__init__.py" or path.parts[0] == "_demo"]

# Highest first. A room imports from its own floor and from lower ones. A folder counts as one room.
FLOORS: Final = (
    {"__main__", "_cli", "_demo"},
    {"bus", "results", "server", "_process"},
    {"__init__", "_open"},
    {"_jetstream", "_idempotency"},
    {"_memory", "_nats", "_worker"},
    {"_dispatcher", "_bus"},
    {"_abc"},
    {"_schedule"},
    {"_message", "_record", "_statistics"},
    {"_envelope", "_cron", "_subjects"},
    {"_check"},
    {"_errors", "_config", "_interrupts", "_sync", "_util"},
)

ROLES: Final = {"_dispatcher", "_worker"}
BROKERS: Final = {"_memory", "_jetstream", "_nats"}
ASYNCIO: Final = {"asyncio", "nats", "trio_asyncio"}
# They do no I/O. `_errors` does import trio, for its errors are trio's too.
WITHOUT_TRIO: Final = {"_message", "_record", "_envelope", "_check", "_subjects", "_cron"}

SHORT: Final = {
    "_nats/_versions.py": "one question, which several modules ask",
    "__main__.py": "python -m asks for it",
    "_cli.py": "commands, apart from what they do",
    "results/_merge.py": "what a new record keeps of the one before, for three publishers",
    "results/_errors.py": "the errors of a public package",
    "results/_select.py": "what a filter lets through, for three publishers",
}
"""Modules of less than 60 lines, and why they are not a part of another one."""


def top(module: Path) -> str:
    """`_nats` for `_nats/_client.py`, `_message` for `_message.py`."""
    return module.with_suffix("").parts[0]


def floor(room: str) -> int:
    """The lowest is 0."""
    for height, rooms in enumerate(reversed(FLOORS)):
        if room in rooms:
            return height
    pytest.fail(f"{room!r} is on no floor: give it its place in FLOORS")


@cache
def tree(module: Path) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"))


def imports(module: Path) -> Iterator[tuple[str, str]]:
    """What a module imports, wherever in it, for types too: the origin, by its full name, and what.

    Of ``import x`` the latter is empty.
    """
    inside = ("trio_swarmtask", *module.parent.parts)
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else ()
            origin = ".".join((*base, *filter(None, [node.module])))
            for alias in node.names:
                yield origin, alias.name


def own_imports(module: Path) -> set[Path]:
    """The modules of this package that it imports."""
    found = set()
    for origin, name in imports(module):
        root, *parts = origin.split(".")
        if root != "trio_swarmtask":
            continue
        folder = Path(*parts)
        candidates = [folder / f"{name}.py", folder / name / "__init__.py", folder / "__init__.py"]
        if parts:
            candidates.insert(2, folder.with_suffix(".py"))
        found.add(next(path for path in candidates if path in MODULES))
    return found


def foreign_imports(module: Path) -> set[str]:
    return {origin.partition(".")[0] for origin, _ in imports(module)}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_arrows_go_down(module: Path) -> None:
    own = floor(top(module))
    others = {top(path) for path in own_imports(module)} - {top(module)}
    assert [name for name in sorted(others) if floor(name) > own] == []


def test_no_circle() -> None:
    """Of modules, what is imported for types alone included."""
    arrows = {module: own_imports(module) for module in MODULES}
    while ends := [module for module, below in arrows.items() if not below & arrows.keys()]:
        for module in ends:
            del arrows[module]
    assert {str(module): sorted(map(str, below)) for module, below in arrows.items()} == {}


def test_no_circle_of_rooms() -> None:
    arrows = defaultdict(set)
    for module in MODULES:
        arrows[top(module)] |= {top(path) for path in own_imports(module)} - {top(module)}
    while ends := [room for room, below in arrows.items() if not below & arrows.keys()]:
        for room in ends:
            del arrows[room]
    assert arrows == {}


@pytest.mark.parametrize("module", [m for m in MODULES if top(m) in ROLES], ids=str)
def test_roles_import_no_broker(module: Path) -> None:
    assert {top(path) for path in own_imports(module)} & BROKERS == set()


@pytest.mark.parametrize("module", [m for m in MODULES if top(m) in BROKERS], ids=str)
def test_brokers_import_no_role(module: Path) -> None:
    assert {top(path) for path in own_imports(module)} & ROLES == set()


def test_brokers_do_not_know_each_other() -> None:
    for module in MODULES:
        others = {top(path) for path in own_imports(module)}
        if top(module) == "_memory":
            assert others & {"_jetstream", "_nats"} == set(), module
        if top(module) in ("_jetstream", "_nats"):
            assert "_memory" not in others, module


# Of nats-py and trio-asyncio, whose versions `_nats/_versions.py` looks at; and the one way that
# Python has to tell what another thread is doing.
FOREIGN_PRIVATE: Final = {
    "_nats/_client.py": {"_io_reader", "_max_msgs", "_id", "_buffer", "_io_writer"},
    "_nats/_error_lines.py": {"_id"},
    "_nats/_protocol.py": {"_future"},
    "_nats/_loop.py": {
        "_main_loop_one",
        "_q_recv",
        "_timers",
        "_run",
        "_cancelled",
        "_context",
        "_nursery",
        "_callback",
        "_started",
    },
    "_worker/_watchdog.py": {"_current_frames"},
}


def own_private_names(module: Path) -> set[str]:
    """What begins with an underscore and is defined in a module, in whatever class of it."""
    names = {"_create"}  # see `NoPublicConstructor`
    for node in ast.walk(tree(module)):
        match node:
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                names.add(name)
            case ast.Attribute(ast.Name("self" | "cls"), name, ast.Store()):
                names.add(name)
            case ast.Name(name, ast.Store()):
                names.add(name)
            case ast.Assign([ast.Name("__slots__")], ast.Tuple(elements)):
                names |= {str(ast.literal_eval(element)) for element in elements}
    return names


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_private_names_stay_in_their_module(module: Path) -> None:
    """What modules share has no underscore; `self` may have what it inherits."""
    used = {
        node.attr
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
    assert used - own_private_names(module) == FOREIGN_PRIVATE.get(module.as_posix(), set())


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_private_name_is_imported(module: Path) -> None:
    taken = {name for _, name in imports(module) if name.startswith("_")}
    modules = {path.stem for path in MODULES} | {path.name for path in PACKAGE.iterdir()}
    assert taken - modules == set()


@pytest.mark.parametrize("module", [m for m in MODULES if top(m) != "_nats"], ids=str)
def test_asyncio_stays_below_the_border(module: Path) -> None:
    """Only `_nats/` imports asyncio, nats or trio_asyncio."""
    assert foreign_imports(module) & ASYNCIO == set()


@pytest.mark.parametrize("module", [m for m in MODULES if top(m) in WITHOUT_TRIO], ids=str)
def test_what_does_no_io_needs_no_trio(module: Path) -> None:
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
    if module.name not in ("__init__.py", "bus.py"):
        assert lines >= 60 or module.as_posix() in SHORT


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_function_fits_on_a_screen(module: Path) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name


FOLDERS: Final = ("_dispatcher", "_jetstream", "_memory", "_nats", "_worker", "results", "_demo")


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_has_a_table_of_contents(folder: str) -> None:
    """A line a module, in its `__init__`."""
    text = (PACKAGE / folder / "__init__.py").read_text(encoding="utf-8")
    listed = {line.split()[1] for line in text.splitlines() if line.startswith("#   ")}
    modules = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
    assert listed == modules
