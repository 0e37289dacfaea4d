# Random programs: what users do with tasks, step by step, and how such programs are drawn.
#
# A step names what it is about by a number, of which the stage makes one of those that are there:
# so any list of steps is a program, and a shorter one is one too. The repr of a program is Python
# that makes it again.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hypothesis import strategies as st

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Do = Literal[
    "succeed", "fail", "wait", "wait and fail", "linger", "try again", "rest until tomorrow"
]
"""What a handler does: at once; once it is told to; not end, though cancelled, until it is told."""
When = Literal["now", "soon", "tomorrow"]
How = Literal["aclose", "shutdown", "cancel"]
OnFailure = Literal["cancel", "collect"]

DISPATCHERS = 2
PLACES = 20
"""More than there are tasks in a program."""
NAMES = 3
"""IDs that are given by the caller, and may be used again."""


class Step:
    """One thing that a program does."""


@dataclass(frozen=True)
class Start(Step):
    """Start a task, or run it."""

    name: int | None
    """None: the library makes its ID."""
    capability: int
    do: Do
    by: int
    when: When
    run: bool
    group: int | None
    """Which one; None, or none is open: by the dispatcher."""
    key: bool
    """Whether it has the idempotency key of its capability."""


@dataclass(frozen=True)
class Tell(Step):
    """Let a handler go on to its end; and all that are called for that task later."""

    task: int


@dataclass(frozen=True)
class Cancel(Step):
    """By a future."""

    future: int


@dataclass(frozen=True)
class CancelRun(Step):
    """Cancel a call of `run`."""

    call: int


@dataclass(frozen=True)
class Attach(Step):
    """Hold the future of an ID, whether or not there is such a task."""

    name: int
    by: int


@dataclass(frozen=True)
class Hire(Step):
    """A new worker."""

    capabilities: tuple[int, ...]


@dataclass(frozen=True)
class Dismiss(Step):
    """Stop a worker, in one of three ways: it lets its handlers finish, or they are cut short."""

    worker: int
    how: How


@dataclass(frozen=True)
class OpenGroup(Step):
    by: int
    on_failure: OnFailure


@dataclass(frozen=True)
class LeaveGroup(Step):
    """Come to the end of its block, which then waits for its tasks."""

    group: int


@dataclass(frozen=True)
class CancelGroup(Step):
    group: int


@dataclass(frozen=True)
class DeleteDurable(Step):
    """As an operator may: whoever works makes it anew, and gets what it has once more."""

    capability: int


@dataclass(frozen=True)
class Program:
    """Steps, and how many handlers of a capability each worker runs at once.

    One place shows in which order tasks are handed out; many, that nobody waits who need not.
    """

    places: int
    steps: tuple[Step, ...]


def any_program() -> SearchStrategy[Program]:
    """Any program; most begin with one worker or two."""
    some = st.integers(0, 5)
    capability = st.sampled_from((0, 0, 1))
    by = st.integers(0, DISPATCHERS - 1)
    name = st.integers(0, NAMES - 1)
    start = st.builds(
        Start,
        name=st.none() | name,
        capability=capability,
        do=st.sampled_from(Do.__args__),
        by=by,
        when=st.sampled_from(("now",) * 6 + ("soon", "tomorrow")),
        run=st.sampled_from((False, False, True)),
        group=st.none() | some,
        key=st.booleans(),
    )
    everything = Hire((0, 1))
    hire = st.builds(Hire, st.sampled_from(((0, 1), (0,), (1,))))
    steps: dict[SearchStrategy[Step], int] = {  # and how often
        start: 8,
        hire: 2,
        st.builds(Tell, some): 4,
        st.builds(Cancel, some): 3,
        st.builds(CancelRun, some): 1,
        st.builds(Attach, name, by): 1,
        st.builds(Dismiss, some, st.sampled_from(How.__args__)): 2,
        st.builds(OpenGroup, by, st.sampled_from(OnFailure.__args__)): 2,
        st.builds(LeaveGroup, some): 1,
        st.builds(CancelGroup, some): 1,
        st.builds(DeleteDurable, capability): 1,
    }
    kinds = [kind for kind, weight in steps.items() for _ in range(weight)]
    step = st.sampled_from(kinds).flatmap(lambda kind: kind)
    groups = [(everything, OpenGroup(0, kind)) for kind in OnFailure.__args__]
    pairs = [(hire, hire) for hire in (everything, Hire((0,)))]
    first = st.sampled_from(((everything,), *groups, *pairs, ()))
    return st.builds(
        lambda places, first, rest: Program(places, (*first, *rest)),
        st.sampled_from((PLACES, PLACES, 1)),
        first,
        # Hypothesis would make lists of five, or with a lower limit none that is shorter.
        st.integers(1, 30).flatmap(lambda count: st.lists(step, min_size=count, max_size=count)),
    )
