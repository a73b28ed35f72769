"""What the dispatcher works with: what it is told of jobs, what it asks for, what it remembers."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from capfilt.pool import ShardReport
from capfilt.suspects import Suspect, Task

TASKS_PER_ACTOR = 2  # one being worked on, one being read


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the dispatcher knows of one job of the chain."""

    stage: str
    num_workers: int
    shard_timeout_s: float
    committed: Mapping[int, ShardReport]
    divisible: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of the dispatcher's patience."""

    max_ahead: int = 64
    """Shards that may wait for a job with a worker ready, before its predecessor is held back."""
    max_failures: int = 12
    """Failures of a shard without a row to blame, before it is given up."""
    placement_grace_s: float = 5.0
    """How long actors may wait for a machine before idle ones of other jobs make room."""


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start an actor for a job."""

    actor: int
    position: int  # of the job in the chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Hand a task to an actor. Tickets count up from 0 per actor: the order of work."""

    actor: int
    ticket: int
    task: Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Let an actor close its worker and go."""

    actor: int


Action = Start | Submit | Release


class State(Enum):
    """Where an actor stands."""

    WAITING = auto()  # for a machine
    BUILDING = auto()
    READY = auto()


@dataclass(slots=True, kw_only=True)
class Assignment:
    """A task on an actor; `suspect` if its shard failed before."""

    ticket: int
    task: Task
    suspect: Suspect | None


@dataclass(slots=True, kw_only=True)
class Actor:
    """What is known of one actor."""

    position: int
    since: float  # start of its state; of the first assignment's turn once ready
    state: State = State.WAITING
    assigned: list[Assignment] = field(default_factory=list)
    tickets: int = 0

    @property
    def has_room(self) -> bool:
        """A suspect is alone on its actor, so that a death is certainly its own."""
        alone = any(assignment.suspect for assignment in self.assigned)
        return not alone and len(self.assigned) < TASKS_PER_ACTOR


@dataclass(slots=True, kw_only=True)
class Lane:
    """One job of the chain with its queues and actors."""

    demand: Demand
    waiting: deque[int]
    suspects: deque[Suspect] = field(default_factory=deque)
    actors: dict[int, Actor] = field(default_factory=dict)
    build_deaths: int = 0
    ever_ready: bool = False

    @property
    def queued(self) -> int:
        """Shards nobody works on yet."""
        return len(self.waiting) + len(self.suspects)

    @property
    def load(self) -> int:
        """Shards not finished: queued, or on an actor."""
        return self.queued + sum(len(actor.assigned) for actor in self.actors.values())

    def in_state(self, state: State) -> list[Actor]:
        """Its actors in one state."""
        return [actor for actor in self.actors.values() if actor.state is state]
