from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from capfilt.errors import Stopped
from capfilt.stopping import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_only_sets_the_request(number: signal.Signals):
    with stop_on_signals() as stop:
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(Stopped, match="stopped on request"):
            stop.raise_if_requested()


def test_the_second_signal_stops_at_once():
    with stop_on_signals(), pytest.raises(Stopped, match="stopped at once"):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_request_that_is_not_answered_in_time_stops_at_once():
    with stop_on_signals(within_s=0.01), pytest.raises(Stopped, match="stopped at once"):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(timeout=5)


def test_handlers_and_timer_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_outside_the_main_thread_nothing_is_installed():
    def in_thread() -> bool:
        with stop_on_signals() as stop:
            return stop.requested

    with ThreadPoolExecutor(max_workers=1) as pool:
        assert pool.submit(in_thread).result() is False
