"""Who works on which shard: every decision of the Ray pool, as plain data in and out.

The dispatcher is told what happened (an actor is ready, a shard is committed, a worker died) and
answers with actions. It knows neither Ray nor clock nor files, so all of it is tested without.

Three rules keep a chain of jobs from standing still when machines are scarce:

- actors of a job are asked for when its first shard comes, never earlier;
- a job is held back only while `max_ahead` shards wait for a successor that has a worker ready;
  one that waits for a machine holds nobody back;
- an actor without work is released when no more work can come, or when another job has shards but
  has been waiting for a machine longer than `placement_grace_s`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from capfilt.errors import CapfiltError
from capfilt.pool import Quarantine, ShardReport, failed_report
from capfilt.records import Reason
from capfilt.route import Route
from capfilt.runtime.lanes import (
    DEFAULT_LIMITS,
    TASKS_PER_ACTOR,
    Action,
    Actor,
    Assignment,
    Demand,
    Lane,
    Limits,
    Release,
    Start,
    State,
    Submit,
)
from capfilt.suspects import Run, Suspect

log = logging.getLogger(__name__)

FIRST_BUILD_DEATHS = 4  # deaths in a row while building a worker, before any was ever ready
LATER_BUILD_DEATHS = 6  # the same after one was: machines fail too


class Dispatcher:
    """Decides what the actors of a chain of jobs do.

    Args:
        demands: the jobs of the chain, in order.
        shards: the shards to take through it.
        limits: bounds of patience.
    """

    def __init__(
        self, demands: Sequence[Demand], shards: Sequence[int], limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._limits = limits
        self._route = Route([demand.committed for demand in demands])
        self._lanes = [
            Lane(demand=demand, waiting=waiting)
            for demand, waiting in zip(demands, self._route.waiting, strict=True)
        ]
        self._owner: dict[int, Lane] = {}
        self._num_actors = 0
        self._stopping = False
        self._reports = deque(report for shard in shards for report in self._route.arrive(shard, 0))

    @property
    def over(self) -> bool:
        """Whether nothing is left to do; once stopping, whether nothing is being done."""
        if self._stopping:
            return not any(a.assigned for lane in self._lanes for a in lane.actors.values())
        return not any(lane.load for lane in self._lanes)

    def take_reports(self) -> list[ShardReport]:
        """Reports since the last call."""
        reports = list(self._reports)
        self._reports.clear()
        return reports

    def stop(self) -> None:
        """Give out nothing more and forget what only waits its turn on an actor."""
        self._stopping = True
        for lane in self._lanes:
            for actor in lane.actors.values():
                del actor.assigned[1:]

    # --- what happened ---

    def placed(self, actor: int, *, now: float) -> None:
        """An actor found a machine and begins to build its worker."""
        if self._owner[actor].actors[actor].state is State.WAITING:  # answers may overtake
            self._enter(actor, State.BUILDING, now=now)

    def ready(self, actor: int, *, now: float) -> None:
        """An actor built its worker."""
        lane = self._enter(actor, State.READY, now=now)
        lane.ever_ready = True
        lane.build_deaths = 0

    def finished(self, actor: int, ticket: int, report: ShardReport, *, now: float) -> None:
        """An actor committed a shard."""
        if self._settle(actor, ticket, now=now) is None:
            return
        self._reports.append(report)
        position = self._owner[actor].actors[actor].position
        self._reports.extend(self._route.arrive(report.shard, position + 1))

    def refused(self, actor: int, ticket: int, error: str, *, now: float) -> None:
        """A shard cannot be processed, wherever it is tried."""
        assignment = self._settle(actor, ticket, now=now)
        if assignment is not None:
            self._give_up(self._owner[actor], assignment.task.shard, error)

    def probed(self, actor: int, ticket: int, num_inputs: int, *, now: float) -> None:
        """A probe came back; `num_inputs` are the rows of its whole shard."""
        assignment = self._settle(actor, ticket, now=now)
        if assignment is not None and assignment.suspect is not None:
            assignment.suspect.came_back(num_inputs)
            self._owner[actor].suspects.appendleft(assignment.suspect)

    def raised(self, actor: int, ticket: int, why: Quarantine, *, now: float) -> None:
        """The worker raised on a task and lives on."""
        assignment = self._settle(actor, ticket, now=now)
        if assignment is not None:
            self._blame(self._owner[actor], assignment, why)

    def died(self, actor: int, why: str) -> None:
        """An actor is gone, and nobody knows yet which of its shards did it.

        Args:
            actor: its number.
            why: what is known of its end, for the error about workers that die while built.

        Raises:
            CapfiltError: workers of this job die while they are built.
        """
        lane = self._owner.pop(actor)
        gone = lane.actors.pop(actor)
        if gone.state is not State.READY:
            self._count_build_death(lane, why)
        elif len(gone.assigned) == 1:
            guilty = Quarantine(reason=Reason.KILLED_WORKER, detail="the worker process died")
            self._blame(lane, gone.assigned[0], guilty)
        else:
            for assignment in reversed(gone.assigned):
                lane.suspects.appendleft(self._suspect(lane, assignment))

    def lost(self, actor: int) -> None:
        """An actor is gone with its machine: no shard is to blame."""
        lane = self._owner.pop(actor)
        for assignment in reversed(lane.actors.pop(actor).assigned):
            self._requeue(lane, assignment)

    def hung(self, actor: int) -> None:
        """An actor was killed because its first task took too long; the second one only waited."""
        lane = self._owner.pop(actor)
        first, *others = lane.actors.pop(actor).assigned
        for assignment in reversed(others):
            self._requeue(lane, assignment)
        detail = f"the worker gave no answer in {lane.demand.shard_timeout_s:g} s"
        self._blame(lane, first, Quarantine(reason=Reason.KILLED_WORKER, detail=detail))

    # --- what to do ---

    def overdue(self, *, now: float) -> list[int]:
        """Actors whose shard takes longer than its stage allows; each is to be killed."""
        return [
            number
            for lane in self._lanes
            for number, actor in lane.actors.items()
            if actor.assigned and now - actor.since > lane.demand.shard_timeout_s
        ]

    def next_actions(self, *, now: float) -> list[Action]:
        """Everything that can be started or ended now."""
        if self._stopping:
            return []
        actions: list[Action] = []
        upstream = 0  # shards that may still come from earlier jobs
        for position, lane in enumerate(self._lanes):
            actions += self._feed(position, now=now)
            actions += self._grow(position, upstream, now=now)
            actions += self._shrink(lane, upstream, now=now)
            upstream += lane.load
        return actions

    def _feed(self, position: int, *, now: float) -> list[Action]:
        lane = self._lanes[position]
        submitted: list[Action] = []
        for depth in range(TASKS_PER_ACTOR):
            for number, actor in lane.actors.items():
                free = actor.state is State.READY and actor.has_room
                if not free or len(actor.assigned) != depth:
                    continue
                assignment = self._next_assignment(position, actor, now=now)
                if assignment is None:
                    continue
                if not actor.assigned:
                    actor.since = now
                actor.assigned.append(assignment)
                actor.tickets += 1
                submitted.append(
                    Submit(actor=number, ticket=assignment.ticket, task=assignment.task)
                )
        return submitted

    def _next_assignment(self, position: int, actor: Actor, *, now: float) -> Assignment | None:
        lane = self._lanes[position]
        suspect = None
        if lane.suspects:
            if actor.assigned:  # it runs dry, so that a suspect can be alone on it
                return None
            suspect = lane.suspects.popleft()
            task = suspect.next_task()
        elif self._may_start(position, ahead=bool(actor.assigned), now=now):
            task = Run(shard=lane.waiting.popleft())
        else:
            return None
        return Assignment(ticket=actor.tickets, task=task, suspect=suspect)

    def _may_start(self, position: int, *, ahead: bool, now: float) -> bool:
        """Whether a job may take its next shard; `ahead` of time, while another is worked on."""
        lane = self._lanes[position]
        if position + 1 < len(self._lanes):
            successor = self._lanes[position + 1]
            if successor.in_state(State.READY) and successor.queued >= self._limits.max_ahead:
                return False
        # The last shards are left for actors that start just now instead of queueing behind others.
        starting = sum(1 for a in lane.actors.values() if self._is_starting(a, now=now))
        return len(lane.waiting) > (starting if ahead else 0)

    def _grow(self, position: int, upstream: int, *, now: float) -> list[Action]:
        lane = self._lanes[position]
        if not lane.queued:
            return []
        wanted = min(lane.demand.num_workers, lane.load + upstream)
        started: list[Action] = []
        for _ in range(wanted - len(lane.actors)):
            number = self._num_actors
            self._num_actors += 1
            self._owner[number] = lane
            lane.actors[number] = Actor(position=position, since=now)
            started.append(Start(actor=number, position=position))
        return started

    def _shrink(self, lane: Lane, upstream: int, *, now: float) -> list[Action]:
        if lane.queued or (upstream and not self._someone_starves(now=now)):
            return []
        idle = [number for number, actor in lane.actors.items() if not actor.assigned]
        for number in idle:
            del lane.actors[number], self._owner[number]
        return [Release(actor=number) for number in idle]

    def _someone_starves(self, *, now: float) -> bool:
        """Whether a job has shards but no machine at all, and has waited a while for one."""
        return any(
            lane.queued
            and len(lane.actors) == len(lane.in_state(State.WAITING))
            and not any(self._is_starting(actor, now=now) for actor in lane.actors.values())
            for lane in self._lanes
        )

    def _is_starting(self, actor: Actor, *, now: float) -> bool:
        just_asked = now - actor.since < self._limits.placement_grace_s
        return actor.state is State.BUILDING or (actor.state is State.WAITING and just_asked)

    # --- bookkeeping ---

    def _enter(self, actor: int, state: State, *, now: float) -> Lane:
        lane = self._owner[actor]
        lane.actors[actor].state = state
        lane.actors[actor].since = now
        return lane

    def _settle(self, actor: int, ticket: int, *, now: float) -> Assignment | None:
        """Take an answered task off its actor; None if it is no longer waited for."""
        assigned = self._owner[actor].actors[actor].assigned
        for index, assignment in enumerate(assigned):
            if assignment.ticket == ticket:
                self._owner[actor].actors[actor].since = now
                return assigned.pop(index)
        return None

    def _suspect(self, lane: Lane, assignment: Assignment) -> Suspect:
        return assignment.suspect or Suspect(
            assignment.task.shard,
            max_failures=self._limits.max_failures,
            divisible=lane.demand.divisible,
        )

    def _requeue(self, lane: Lane, assignment: Assignment) -> None:
        if assignment.suspect is None:
            lane.waiting.appendleft(assignment.task.shard)
        else:
            lane.suspects.appendleft(assignment.suspect)

    def _blame(self, lane: Lane, assignment: Assignment, why: Quarantine) -> None:
        stage, task = lane.demand.stage, assignment.task
        log.warning("stage %s, shard %d: %s (%s)", stage, task.shard, why.detail, task)
        suspect = self._suspect(lane, assignment)
        suspect.failed(why)
        if suspect.given_up is None:
            lane.suspects.appendleft(suspect)
        else:
            self._give_up(lane, task.shard, suspect.given_up)

    def _give_up(self, lane: Lane, shard: int, error: str) -> None:
        self._reports.append(failed_report(lane.demand.stage, shard, error))

    def _count_build_death(self, lane: Lane, why: str) -> None:
        lane.build_deaths += 1
        allowed = LATER_BUILD_DEATHS if lane.ever_ready else FIRST_BUILD_DEATHS
        if lane.build_deaths >= allowed:
            raise CapfiltError(
                f"stage {lane.demand.stage}: {lane.build_deaths} workers in a row died while they "
                f"were built, often for want of memory; the last: {why}"
            )
