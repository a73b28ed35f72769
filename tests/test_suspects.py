from __future__ import annotations

import pytest

from capfilt.pool import Quarantine
from capfilt.records import Reason
from capfilt.suspects import (
    Probe,
    Run,
    Suspect,
    Task,
    breaks_device,
    ran_out_of_memory,
    worker_error,
)

DIED = Quarantine(reason=Reason.KILLED_WORKER, detail="the worker process died")


def hurts(task: Task, poison: set[int], num_inputs: int) -> bool:
    start, stop = (0, num_inputs) if isinstance(task, Run) else (task.start, task.stop)
    return any(row in poison and row not in task.excluded for row in range(start, stop))


def investigate(poison: set[int], *, num_inputs: int, **limits: int) -> tuple[Suspect, list[Task]]:
    """Play a shard whose worker dies of the poison rows until it is through or given up."""
    suspect, tried = Suspect(0, **limits), []
    while suspect.given_up is None:
        tried.append(suspect.next_task())
        if hurts(tried[-1], poison, num_inputs):
            suspect.failed(DIED)
        elif isinstance(tried[-1], Run):
            break
        else:
            suspect.came_back(num_inputs)
    return suspect, tried


def test_a_shard_that_fails_once_is_simply_run_again():
    suspect = Suspect(7)
    suspect.failed(DIED)
    assert suspect.next_task() == Run(shard=7)


def test_a_second_failure_starts_a_search_that_first_only_reads():
    suspect = Suspect(7)
    suspect.failed(DIED)
    suspect.failed(DIED)
    assert suspect.next_task() == Probe(shard=7, start=0, stop=0)


@pytest.mark.parametrize("row", [0, 1, 49, 50, 98, 99])
def test_one_poison_row_is_found_wherever_it_is(row: int):
    _, tried = investigate({row}, num_inputs=100)
    assert tried[-1] == Run(shard=0, excluded={row: DIED})


@pytest.mark.parametrize("num_inputs", [1, 2, 3, 1000])
def test_a_search_costs_no_more_deaths_than_halving_takes(num_inputs: int):
    _, tried = investigate({0}, num_inputs=num_inputs)
    deaths = sum(hurts(task, {0}, num_inputs) for task in tried)
    assert deaths <= num_inputs.bit_length() + 3


def test_several_poison_rows_are_found_one_after_the_other():
    _, tried = investigate({3, 4, 77}, num_inputs=100)
    assert set(tried[-1].excluded) == {3, 4, 77}


def test_a_shard_with_too_many_poison_rows_is_given_up():
    suspect, _ = investigate(set(range(9)), num_inputs=20, max_excluded=8)
    assert suspect.given_up is not None
    assert suspect.given_up.startswith("more than 8 rows fail their worker")


def test_a_shard_that_fails_only_as_a_whole_is_given_up_and_no_row_is_blamed():
    suspect = Suspect(0, max_failures=4)
    runs = 0
    while suspect.given_up is None:
        task = suspect.next_task()
        assert not task.excluded
        if isinstance(task, Run):
            runs += 1
            suspect.failed(DIED)
        else:
            suspect.came_back(10)
    assert runs == 5
    assert suspect.given_up == (
        "failed 5 times, and no row alone is to blame; last: the worker process died"
    )


def test_a_shard_whose_reading_kills_is_not_blamed_on_a_row():
    suspect = Suspect(0, max_failures=3)
    while suspect.given_up is None:
        assert not suspect.next_task().excluded
        suspect.failed(DIED)


def test_a_row_that_fails_only_once_on_its_own_is_kept():
    suspect = Suspect(0)
    for _ in range(2):
        suspect.failed(DIED)
    suspect.came_back(1)
    suspect.failed(DIED)  # the single row, first strike
    suspect.came_back(1)
    assert suspect.next_task() == Run(shard=0)


def test_an_empty_shard_ends_the_search():
    suspect = Suspect(0)
    for _ in range(2):
        suspect.failed(DIED)
    suspect.came_back(0)
    assert isinstance(suspect.next_task(), Run)


def test_a_whole_that_raises_is_given_up_at_once_with_its_error():
    suspect = Suspect(0, divisible=False)
    suspect.failed(Quarantine(reason=Reason.WORKER_ERROR, detail="ValueError: no pairs"))
    assert suspect.given_up == "the worker raised ValueError: no pairs"


def test_a_whole_that_dies_is_tried_once_more_and_never_searched():
    suspect = Suspect(0, divisible=False)
    suspect.failed(DIED)
    assert suspect.next_task() == Run(shard=0)
    suspect.failed(DIED)
    assert suspect.given_up == "failed twice; last: the worker process died"


def test_the_description_of_an_exception_is_the_same_in_every_process():
    error = ValueError(f"bad thing\n at {object()!r}")
    assert worker_error(error).detail == "ValueError: bad thing at <object object at 0x...>"


def test_an_accelerator_fault_is_known_by_the_name_of_its_class():
    fault = type("AcceleratorError", (RuntimeError,), {})
    assert breaks_device(type("Derived", (fault,), {})("sticky"))
    assert not breaks_device(RuntimeError("CUDA is only mentioned"))


def test_memory_that_runs_out_is_known_by_class_and_by_torchs_words():
    of_gpu = type("OutOfMemoryError", (RuntimeError,), {})
    for error in (
        of_gpu("CUDA out of memory. Tried to allocate 20.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    ):
        assert ran_out_of_memory(error)
    assert not ran_out_of_memory(RuntimeError("shapes do not match"))
    assert not ran_out_of_memory(ValueError("out of memory is only mentioned"))
