from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from capfilt.errors import CapfiltError
from capfilt.pool import Quarantine, ShardReport
from capfilt.records import Reason
from capfilt.runtime.dispatch import Dispatcher
from capfilt.runtime.lanes import Action, Demand, Limits, Release, Start, Submit
from capfilt.suspects import Probe, Run

RAISED = Quarantine(reason=Reason.WORKER_ERROR, detail="ValueError: bad")


def demand(stage: str = "first", *, num_workers: int = 1, committed: tuple[int, ...] = ()):
    return Demand(
        stage=stage,
        num_workers=num_workers,
        shard_timeout_s=100.0,
        committed={shard: report(shard, stage) for shard in committed},
    )


def report(shard: int, stage: str = "first") -> ShardReport:
    return ShardReport(stage=stage, shard=shard, rows_in=1, kept=1, dropped={})


def started(*demands: Demand, shards: list[int], **limits: float) -> Dispatcher:
    """A dispatcher whose first job's actors are all ready."""
    dispatcher = Dispatcher(demands or (demand(),), shards, Limits(**limits))
    for action in dispatcher.next_actions(now=0.0):
        assert isinstance(action, Start)
        dispatcher.placed(action.actor, now=0.0)
        dispatcher.ready(action.actor, now=0.0)
    return dispatcher


def submits(actions: list[Action]) -> list[tuple[int, int, int]]:
    """(actor, ticket, shard) of what is handed out."""
    return [(a.actor, a.ticket, a.task.shard) for a in actions if isinstance(a, Submit)]


def test_nothing_to_do_means_no_actor():
    dispatcher = Dispatcher([demand(committed=(0,))], [0])
    assert [r.already for r in dispatcher.take_reports()] == [True]
    assert dispatcher.over
    assert dispatcher.next_actions(now=0.0) == []


def test_no_more_actors_are_started_than_there_are_shards():
    actions = Dispatcher([demand(num_workers=8)], [0, 1]).next_actions(now=0.0)
    assert actions == [Start(actor=0, position=0), Start(actor=1, position=0)]


def test_an_actor_has_one_shard_at_work_and_one_ahead():
    dispatcher = started(shards=[0, 1, 2])
    assert submits(dispatcher.next_actions(now=0.0)) == [(0, 0, 0), (0, 1, 1)]
    assert dispatcher.next_actions(now=0.0) == []


def test_an_actor_that_is_ready_stays_so_when_its_placement_is_heard_of_later():
    dispatcher = Dispatcher([demand()], [0])
    dispatcher.next_actions(now=0.0)
    dispatcher.ready(0, now=0.0)
    dispatcher.placed(0, now=0.0)
    assert submits(dispatcher.next_actions(now=0.0)) == [(0, 0, 0)]


def test_every_free_actor_gets_a_shard_before_any_gets_two():
    dispatcher = started(demand(num_workers=2), shards=[0, 1, 2])
    assert submits(dispatcher.next_actions(now=0.0)) == [(0, 0, 0), (1, 0, 1), (0, 1, 2)]


def test_the_last_shards_are_left_for_actors_that_are_being_built():
    dispatcher = Dispatcher([demand(num_workers=2)], [0, 1])
    dispatcher.next_actions(now=0.0)
    dispatcher.placed(1, now=0.0)
    dispatcher.ready(0, now=0.0)
    assert submits(dispatcher.next_actions(now=0.0)) == [(0, 0, 0)]


def test_later_jobs_get_actors_only_when_their_first_shard_comes():
    dispatcher = started(demand(), demand("second"), shards=[0, 1])
    dispatcher.next_actions(now=0.0)
    dispatcher.finished(0, 0, report(0), now=1.0)
    assert Start(actor=1, position=1) in dispatcher.next_actions(now=1.0)


def test_a_job_is_not_held_back_for_a_successor_without_a_machine():
    dispatcher = started(demand(), demand("second"), shards=[*range(9)], max_ahead=1)
    for shard in range(6):
        dispatcher.next_actions(now=0.0)
        dispatcher.finished(0, shard, report(shard), now=0.0)
    assert submits(dispatcher.next_actions(now=0.0))


def test_a_job_is_held_back_while_enough_shards_wait_for_a_ready_successor():
    dispatcher = started(demand(), demand("second"), shards=[*range(99)], max_ahead=2)
    handed_out: list[int] = []
    for _ in range(10):
        for action in dispatcher.next_actions(now=0.0):
            if isinstance(action, Start):
                dispatcher.ready(action.actor, now=0.0)
            elif isinstance(action, Submit) and action.actor == 0:
                handed_out.append(action.task.shard)
                dispatcher.finished(0, action.ticket, report(action.task.shard), now=0.0)
    assert handed_out == [0, 1, 2, 3]  # the successor has two in hand, and two wait for it


def test_an_idle_actor_goes_when_no_shard_can_come_any_more():
    dispatcher = started(demand(num_workers=2), shards=[0, 1])
    dispatcher.next_actions(now=0.0)
    dispatcher.finished(1, 0, report(1), now=1.0)
    assert dispatcher.next_actions(now=1.0) == [Release(actor=1)]


def test_an_idle_actor_makes_room_for_a_job_that_waits_for_a_machine():
    dispatcher = started(demand(), demand("second"), shards=[0, 1], placement_grace_s=5.0)
    dispatcher.next_actions(now=0.0)
    dispatcher.finished(0, 0, report(0), now=0.0)
    dispatcher.next_actions(now=0.0)
    dispatcher.ready(1, now=0.0)
    dispatcher.next_actions(now=0.0)
    dispatcher.finished(1, 0, report(0, "second"), now=1.0)
    dispatcher.lost(0)  # its machine is gone: the first job waits for another one
    assert dispatcher.next_actions(now=1.0) == [Start(actor=2, position=0)]
    assert dispatcher.next_actions(now=7.0) == [Release(actor=1)]


def test_of_two_shards_on_a_dead_actor_neither_is_blamed_and_each_is_tried_alone():
    dispatcher = started(shards=[0, 1, 2])
    dispatcher.next_actions(now=0.0)
    dispatcher.died(0, "SIGKILL")
    [start] = dispatcher.next_actions(now=0.0)
    dispatcher.ready(start.actor, now=0.0)
    assert submits(dispatcher.next_actions(now=0.0)) == [(1, 0, 0)]
    dispatcher.finished(1, 0, report(0), now=0.0)
    assert submits(dispatcher.next_actions(now=0.0)) == [(1, 1, 1)]
    dispatcher.finished(1, 1, report(1), now=0.0)
    assert submits(dispatcher.next_actions(now=0.0)) == [(1, 2, 2)]


def test_a_shard_that_dies_twice_alone_is_probed():
    dispatcher = started(shards=[0])
    for actor in range(2):
        dispatcher.next_actions(now=0.0)
        dispatcher.died(actor, "SIGKILL")
        dispatcher.next_actions(now=0.0)
        dispatcher.ready(actor + 1, now=0.0)
    [probe] = dispatcher.next_actions(now=0.0)
    assert probe.task == Probe(shard=0, start=0, stop=0)


def test_a_row_that_raises_twice_is_excluded_and_the_shard_run_again():
    dispatcher = started(shards=[0])
    for ticket in range(2):
        dispatcher.next_actions(now=0.0)
        dispatcher.raised(0, ticket, RAISED, now=0.0)
    dispatcher.next_actions(now=0.0)
    dispatcher.probed(0, 2, 1, now=0.0)
    for ticket in (3, 4):
        dispatcher.next_actions(now=0.0)
        dispatcher.raised(0, ticket, RAISED, now=0.0)
    [again] = dispatcher.next_actions(now=0.0)
    assert again.task == Run(shard=0, excluded={0: RAISED})


def test_a_whole_that_raises_is_not_tried_again():
    dispatcher = started(replace(demand(), divisible=False), shards=[0])
    dispatcher.next_actions(now=0.0)
    dispatcher.raised(0, 0, RAISED, now=0.0)
    [failed] = dispatcher.take_reports()
    assert failed.error == "the worker raised ValueError: bad"
    assert dispatcher.over


def test_a_shard_that_never_works_is_reported_with_its_last_failure():
    dispatcher = started(shards=[0], max_failures=1)
    for ticket in range(2):
        dispatcher.next_actions(now=0.0)
        dispatcher.raised(0, ticket, RAISED, now=0.0)
    [failed] = dispatcher.take_reports()
    assert failed.error is not None
    assert failed.error.endswith("last: ValueError: bad")
    assert dispatcher.over


def test_a_refused_shard_goes_no_further():
    dispatcher = started(demand(), demand("second"), shards=[0])
    dispatcher.next_actions(now=0.0)
    dispatcher.refused(0, 0, "the tar is damaged", now=0.0)
    assert [r.error for r in dispatcher.take_reports()] == ["the tar is damaged"]
    assert dispatcher.over


def test_a_hang_blames_the_first_shard_only():
    dispatcher = started(shards=[0, 1])
    dispatcher.next_actions(now=0.0)
    assert dispatcher.overdue(now=100.0) == []
    assert dispatcher.overdue(now=100.1) == [0]
    dispatcher.hung(0)
    [start] = dispatcher.next_actions(now=101.0)
    dispatcher.ready(start.actor, now=101.0)
    assert submits(dispatcher.next_actions(now=101.0)) == [(1, 0, 0)]  # alone, as a suspect


def test_the_clock_of_a_shard_read_ahead_starts_with_its_turn():
    dispatcher = started(shards=[0, 1])
    dispatcher.next_actions(now=0.0)
    dispatcher.finished(0, 0, report(0), now=90.0)
    assert dispatcher.overdue(now=150.0) == []


def test_shards_of_a_lost_machine_are_not_suspects():
    dispatcher = started(shards=[0, 1])
    dispatcher.next_actions(now=0.0)
    dispatcher.lost(0)
    [start] = dispatcher.next_actions(now=0.0)
    dispatcher.ready(start.actor, now=0.0)
    assert submits(dispatcher.next_actions(now=0.0)) == [(1, 0, 0), (1, 1, 1)]


def test_four_deaths_while_building_end_the_run():
    dispatcher = Dispatcher([demand()], [0])
    dispatcher.next_actions(now=0.0)
    for actor in range(3):
        dispatcher.died(actor, "SIGSEGV")
        dispatcher.next_actions(now=0.0)
    with pytest.raises(CapfiltError, match=r"stage first: 4 workers in a row died .* SIGSEGV"):
        dispatcher.died(3, "SIGSEGV")


def test_a_death_while_building_is_forgiven_once_a_worker_was_ready():
    dispatcher = started(shards=[*range(9)])
    for actor in range(4):
        dispatcher.died(actor, "SIGKILL")
        dispatcher.next_actions(now=0.0)
    assert not dispatcher.over


def test_a_stop_waits_for_the_shard_at_work_but_not_for_the_one_ahead():
    dispatcher = started(shards=[0, 1, 2])
    dispatcher.next_actions(now=0.0)
    dispatcher.stop()
    assert not dispatcher.over
    assert dispatcher.next_actions(now=0.0) == []
    dispatcher.finished(0, 0, report(0), now=1.0)
    assert dispatcher.over


def test_an_answer_that_is_not_waited_for_any_more_is_ignored():
    dispatcher = started(shards=[0, 1])
    dispatcher.next_actions(now=0.0)
    dispatcher.stop()
    dispatcher.finished(0, 1, report(1), now=1.0)
    assert dispatcher.take_reports() == []


@dataclass
class ScarceCluster:
    """Plays a cluster with few CPUs: places, builds, works and dies in random order."""

    dispatcher: Dispatcher
    cpus_per_worker: list[int]
    cpus: int
    rng: random.Random
    deaths_left: int
    stage_of: dict[int, int] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    placed: set[int] = field(default_factory=set)
    building: set[int] = field(default_factory=set)
    tasks: dict[int, list[Submit]] = field(default_factory=dict)
    reports: list[ShardReport] = field(default_factory=list)
    now: float = 0.0

    def play(self) -> None:
        for _ in range(20_000):
            self.reports += self.dispatcher.take_reports()
            if self.dispatcher.over:
                return
            for action in self.dispatcher.next_actions(now=self.now):
                self._do(action)
            self.now += 1.0
            self._let_something_happen()
        raise AssertionError("the chain stands still")

    def _do(self, action: Action) -> None:
        match action:
            case Start(actor=actor, position=position):
                self.stage_of[actor] = position
                self.waiting.add(actor)
            case Submit(actor=actor):
                self.tasks[actor].append(action)
            case Release(actor=actor):
                self._forget(actor)

    def _forget(self, actor: int) -> None:
        self.waiting.discard(actor)
        self.building.discard(actor)
        self.tasks.pop(actor, None)
        if actor in self.placed:
            self.placed.remove(actor)
            self.cpus += self.cpus_per_worker[self.stage_of[actor]]

    def _let_something_happen(self) -> None:
        fits = [a for a in self.waiting if self.cpus_per_worker[self.stage_of[a]] <= self.cpus]
        busy = [a for a, tasks in self.tasks.items() if tasks]
        events = [*((self._place, a) for a in fits), *((self._ready, a) for a in self.building)]
        events += [(self._work, a) for a in busy]
        if self.deaths_left:
            events += [(self._die, a) for a in self.tasks]
        if events:
            event, actor = self.rng.choice(sorted(events, key=lambda e: (e[0].__name__, e[1])))
            event(actor)

    def _place(self, actor: int) -> None:
        self.cpus -= self.cpus_per_worker[self.stage_of[actor]]
        self.waiting.remove(actor)
        self.placed.add(actor)
        self.building.add(actor)
        self.dispatcher.placed(actor, now=self.now)

    def _ready(self, actor: int) -> None:
        self.building.remove(actor)
        self.tasks[actor] = []
        self.dispatcher.ready(actor, now=self.now)

    def _work(self, actor: int) -> None:
        submit = self.tasks[actor].pop(0)
        if isinstance(submit.task, Probe):
            self.dispatcher.probed(actor, submit.ticket, 4, now=self.now)
            return
        done = report(submit.task.shard, str(self.stage_of[actor]))
        self.dispatcher.finished(actor, submit.ticket, done, now=self.now)

    def _die(self, actor: int) -> None:
        self.deaths_left -= 1
        self._forget(actor)
        self.dispatcher.died(actor, "SIGKILL")


@pytest.mark.parametrize("seed", range(200))
def test_every_chain_gets_through_on_scarce_machines_whatever_dies(seed: int):
    rng = random.Random(seed)
    cpus = rng.randint(1, 4)
    cpus_per_worker = [rng.randint(0, cpus) for _ in range(rng.randint(1, 4))]
    demands = [demand(str(i), num_workers=rng.randint(1, 3)) for i in range(len(cpus_per_worker))]
    shards = list(range(rng.randint(1, 30)))
    limits = Limits(max_ahead=rng.randint(1, 4), placement_grace_s=2.0)
    cluster = ScarceCluster(
        dispatcher=Dispatcher(demands, shards, limits),
        cpus_per_worker=cpus_per_worker,
        cpus=cpus,
        rng=rng,
        deaths_left=rng.choice([0, 5]),
    )
    cluster.play()
    done = sorted((r.stage, r.shard) for r in cluster.reports)
    assert done == [(d.stage, shard) for d in demands for shard in shards]
