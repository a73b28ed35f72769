"""The actors of a run as Ray sees them: handles, outstanding calls, and what came of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError, RuntimeEnvSetupError

from capfilt.errors import CapfiltError
from capfilt.pool import AnyJob
from capfilt.runtime.actor import ShardActor
from capfilt.suspects import Task

CLOSING_S = 10.0  # for a worker to give back what it holds, before its process is killed


class Kind(Enum):
    """What an actor was asked."""

    PLACE = auto()
    BUILD = auto()
    TASK = auto()
    CLOSE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A question to an actor that is not answered yet."""

    actor: int
    kind: Kind
    ticket: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a call."""

    call: Call
    value: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """An actor does not answer any more."""

    actor: int
    why: str
    with_machine: bool  # the whole machine is gone


class Crew:
    """Starts, asks and ends actors. An actor that is gone is forgotten at once."""

    def __init__(self) -> None:
        self._handles: dict[int, Any] = {}
        self._calls: dict[ray.ObjectRef[Any], Call] = {}
        self._close_by: dict[int, float] = {}

    def start(self, actor: int, job: AnyJob) -> None:
        """Ask for a process and have the job's worker built in it."""
        actor_class: Any = ray.remote(ShardActor)
        handle = actor_class.options(
            num_cpus=job.resources.num_cpus,
            num_gpus=job.resources.num_gpus,
            max_concurrency=2,
            max_restarts=0,
            max_task_retries=0,
        ).remote(job)
        self._handles[actor] = handle
        self._calls[handle.pid.remote()] = Call(actor=actor, kind=Kind.PLACE)
        self._calls[handle.build.remote()] = Call(actor=actor, kind=Kind.BUILD)

    def submit(self, actor: int, ticket: int, task: Task) -> None:
        """Hand over a task."""
        ref = self._handles[actor].carry_out.remote(ticket, task)
        self._calls[ref] = Call(actor=actor, kind=Kind.TASK, ticket=ticket)

    def release(self, actor: int) -> None:
        """Let an actor close its worker, or end it if it is not ready yet."""
        if any(call.actor == actor for call in self._calls.values()):
            self.kill(actor)
            return
        self._calls[self._handles[actor].close.remote()] = Call(actor=actor, kind=Kind.CLOSE)
        self._close_by[actor] = time.monotonic() + CLOSING_S

    def kill(self, actor: int) -> None:
        """End an actor's process and forget it."""
        ray.kill(self._handles.pop(actor))
        self._close_by.pop(actor, None)
        self._calls = {ref: call for ref, call in self._calls.items() if call.actor != actor}

    def kill_all(self) -> None:
        """End every process."""
        for actor in list(self._handles):
            self.kill(actor)

    def close(self) -> None:
        """Let every actor close its worker, then end its process."""
        for actor in self._handles.keys() - self._close_by.keys():
            self.release(actor)
        while self._close_by:
            list(self.wait(timeout_s=0.1))
        self.kill_all()

    def wait(self, *, timeout_s: float) -> Iterator[Answer | Death]:
        """What happened, after at most `timeout_s`; answers before deaths.

        An answer may be the last one of an actor whose death is known at the same time, so it is
        given first: what was committed is no longer on the actor when it is mourned.
        """
        deaths: dict[int, Death] = {}
        for ref in self._ready(timeout_s):
            call = self._calls.pop(ref)
            try:
                answer = Answer(call=call, value=ray.get(ref))
            except RayTaskError:
                raise
            except RuntimeEnvSetupError as error:
                raise CapfiltError(f"Ray could not start a worker: {error}") from error
            except RayError as error:
                deaths[call.actor] = _death(call.actor, error)
                continue
            if call.kind is Kind.CLOSE:
                self.kill(call.actor)
            else:
                yield answer
        for actor, death in deaths.items():
            closing = actor in self._close_by
            self.kill(actor)
            if not closing:
                yield death
        self._end_overdue_closers()

    def _ready(self, timeout_s: float) -> list[ray.ObjectRef[Any]]:
        refs = list(self._calls)
        assert refs, "waiting for actors that were asked nothing"
        ray.wait(refs, num_returns=1, timeout=timeout_s)
        return ray.wait(refs, num_returns=len(refs), timeout=0)[0]

    def _end_overdue_closers(self) -> None:
        now = time.monotonic()
        for actor in [actor for actor, by in self._close_by.items() if by < now]:
            self.kill(actor)


def _death(actor: int, error: RayError) -> Death:
    """Ray says in prose whether the process or its machine is gone; keep its last sentences."""
    text = " ".join(str(error).split())
    with_machine = isinstance(error, RayActorError) and (
        error.preempted or "node has died" in text or "node was terminated" in text
    )
    detail = text.partition("Worker exit detail: ")[2].partition(" Some common causes")[0]
    return Death(actor=actor, why=(detail or text)[:300], with_machine=with_machine)
