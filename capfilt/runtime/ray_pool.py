"""The pool of a cluster: a set of actors per job of the chain, driven by the dispatcher.

This file only carries messages: what actors answer goes to the `Dispatcher`, and what it decides
goes to the `Crew`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from capfilt.errors import CapfiltError, ShardError
from capfilt.pool import AnyJob, Quarantine, ShardReport
from capfilt.runtime.actor import Probed
from capfilt.runtime.cluster import ClusterSettings, connect
from capfilt.runtime.crew import Answer, Crew, Death, Kind
from capfilt.runtime.dispatch import Dispatcher
from capfilt.runtime.lanes import Action, Demand, Limits, Release, Start, Submit
from capfilt.stopping import stop_on_signals

log = logging.getLogger(__name__)

TICK_S = 0.5  # how long the loop may sleep before it looks at clocks and stop requests


Together = Callable[[AnyJob, Sequence[int]], Iterator[ShardReport]]
"""Does shards whose workers work together: `ray_train.run_together`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySettings:
    """Where the actors live, and how patient the pool is with them."""

    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    limits: Limits = field(default_factory=Limits)
    stop_within_s: float = 20.0
    """Time that shards being worked on have to finish after a stop request."""


class RayPool:
    """Runs chains of jobs on a Ray cluster, which is joined or started on creation.

    Args:
        settings: where the actors live, and how patient the pool is.
        together: does the shards of a job whose workers work together; needed for such jobs only.

    Raises:
        CapfiltError: no cluster can be joined or started.
    """

    def __init__(self, settings: RaySettings, *, together: Together | None = None) -> None:
        self._settings = settings
        self._together = together
        self._cluster = connect(settings.cluster)

    def run(self, chain: Sequence[AnyJob], shards: Sequence[int]) -> Iterator[ShardReport]:
        """Take every shard through the chain; see `pool.Pool.run`."""
        self._cluster.check_room(chain)
        if any(job.resources.together for job in chain):
            [job] = chain
            assert self._together is not None, f"{job.stage}: nobody who lets workers work together"
            yield from self._together(job, shards)
            return
        dispatcher = Dispatcher([_demand(job) for job in chain], shards, self._settings.limits)
        crew = Crew()
        try:
            with stop_on_signals(within_s=self._settings.stop_within_s) as stop:
                yield from dispatcher.take_reports()
                while not dispatcher.over:
                    _step(dispatcher, crew, chain)
                    yield from dispatcher.take_reports()
                    if stop.requested:
                        dispatcher.stop()
                stop.raise_if_requested()
                crew.close()
        finally:
            crew.kill_all()

    def close(self) -> None:
        """Disconnect from the cluster; one that was started here ends."""
        self._cluster.close()


def _demand(job: AnyJob) -> Demand:
    return Demand(
        stage=job.stage,
        num_workers=job.resources.num_workers,
        shard_timeout_s=job.resources.shard_timeout_s,
        committed=job.committed(),
        divisible=job.resources.divisible,
    )


def _step(dispatcher: Dispatcher, crew: Crew, chain: Sequence[AnyJob]) -> None:
    """Do what is decided, wait for something to happen, and tell the dispatcher."""
    for action in dispatcher.next_actions(now=time.monotonic()):
        _do(action, crew, chain)
    for event in crew.wait(timeout_s=TICK_S):
        if isinstance(event, Death):
            _mourn(event, dispatcher)
        else:
            _tell(event, dispatcher)
    for actor in dispatcher.overdue(now=time.monotonic()):
        crew.kill(actor)
        dispatcher.hung(actor)


def _do(action: Action, crew: Crew, chain: Sequence[AnyJob]) -> None:
    match action:
        case Start():
            crew.start(action.actor, chain[action.position])
        case Submit():
            crew.submit(action.actor, action.ticket, action.task)
        case Release():
            crew.release(action.actor)


def _tell(answer: Answer, dispatcher: Dispatcher) -> None:
    actor, ticket, now = answer.call.actor, answer.call.ticket, time.monotonic()
    match answer.value:
        case ShardReport() as report:
            dispatcher.finished(actor, ticket, report, now=now)
        case Probed(num_inputs=num_inputs):
            dispatcher.probed(actor, ticket, num_inputs, now=now)
        case Quarantine() as why:
            dispatcher.raised(actor, ticket, why, now=now)
        case ShardError() as error if answer.call.kind is Kind.TASK:
            dispatcher.refused(actor, ticket, str(error), now=now)
        case CapfiltError() as error:
            raise error
        case _ if answer.call.kind is Kind.PLACE:
            dispatcher.placed(actor, now=now)
        case _:
            dispatcher.ready(actor, now=now)


def _mourn(death: Death, dispatcher: Dispatcher) -> None:
    log.warning("a worker is gone and is replaced: %s", death.why)
    if death.with_machine:
        dispatcher.lost(death.actor)
    else:
        dispatcher.died(death.actor, death.why)
