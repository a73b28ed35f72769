from __future__ import annotations

import dataclasses

import pytest

from capfilt.meter import Effort, Memory, Peak
from capfilt.stages.events import ShardEvent
from capfilt.stages.speed import stage_speed

TERA = Peak(flops_per_s=1e12, label="CPU float32, measured")


def event(worker: str = "host:1", *, attempt: str = "a", began_s: float, ended_s: float,
          **changes: object) -> ShardEvent:  # fmt: skip
    effort = Effort(
        worker=worker, began_s=began_s, ended_s=ended_s, busy_s=10.0, waiting_s=2.0, num_images=40,
        flops=3e12, peak=TERA, memory=Memory(host_bytes=100),
    )  # fmt: skip
    return ShardEvent(
        attempt=attempt, round=0, stage="caption", plan="p", shard=0,
        effort=dataclasses.replace(effort, **changes),
    )  # fmt: skip


def test_one_worker_is_the_whole_stage():
    speed = stage_speed([event(began_s=0, ended_s=10), event(began_s=15, ended_s=25)])
    assert speed is not None
    [worker] = speed.workers
    assert speed.total == worker
    assert (worker.num_images, worker.busy_s, worker.wall_s) == (80, 20.0, 25.0)
    assert worker.busy_images_per_s == 4.0
    assert worker.wall_images_per_s == 3.2
    assert worker.waiting_share == 0.2
    assert worker.mfu == pytest.approx(0.3)


def test_workers_side_by_side_share_the_clock():
    speed = stage_speed(
        [
            event("host:1", began_s=0, ended_s=10, memory=Memory(host_bytes=100)),
            event("host:2", began_s=5, ended_s=15, busy_s=5.0, memory=Memory(host_bytes=300)),
        ]
    )
    assert speed is not None
    assert [w.worker for w in speed.workers] == ["host:2", "host:1"]  # the last one seen first
    total = speed.total
    assert total.worker == "all 2"
    assert total.wall_images_per_s == pytest.approx(80 / 15)
    assert total.busy_images_per_s == pytest.approx(80 / 15)  # of one worker: 15 s of work
    assert total.waiting_share == pytest.approx(4 / 15)
    assert total.memory.host_bytes == 300


def test_the_night_between_two_attempts_is_nobodys_time():
    speed = stage_speed(
        [
            event(attempt="evening", began_s=0, ended_s=10),
            event("host:2", attempt="morning", began_s=36_000, ended_s=36_010),
        ]
    )
    assert speed is not None
    assert speed.total.wall_s == 20.0


def test_a_share_of_the_peak_weighs_devices_by_their_time():
    fast = Peak(flops_per_s=9e12, label="GPU bfloat16, published")
    speed = stage_speed(
        [
            event("host:1", began_s=0, ended_s=10),  # 3 TFLOP of 10 possible
            event("host:2", began_s=0, ended_s=10, peak=fast, flops=27e12),  # 27 of 90
        ]
    )
    assert speed is not None
    assert speed.total.mfu == pytest.approx(0.3)
    assert speed.total.peak_labels == ("CPU float32, measured", "GPU bfloat16, published")


@pytest.mark.parametrize("missing", [{"flops": None}, {"peak": None}])
def test_without_a_count_or_a_peak_there_is_no_mfu(missing: dict[str, object]):
    speed = stage_speed([event(began_s=0, ended_s=10, **missing)])
    assert speed is not None
    assert speed.total.mfu is None


def test_a_stage_that_did_nothing_divides_by_nothing():
    nothing = event(began_s=3, ended_s=3, busy_s=0.0, waiting_s=0.0, num_images=0, flops=None)
    speed = stage_speed([nothing])
    assert speed is not None
    total = speed.total
    assert (total.busy_images_per_s, total.wall_images_per_s, total.waiting_share) == (None,) * 3
    assert stage_speed([]) is None
