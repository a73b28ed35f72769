"""A trace is read by two viewers: whole when the worker is closed, and cut when it is killed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from capfilt.errors import StorageError
from capfilt.io.trace import TraceFile

ROOT = Path(__file__).resolve().parents[2]


def spans_in(path: Path) -> list[dict[str, object]]:
    return [event for event in json.loads(path.read_text()) if event["ph"] == "X"]


def test_a_closed_trace_holds_each_span_in_the_form_of_chromes_trace_events(tmp_path: Path):
    trace = TraceFile(tmp_path / "new" / "a.json", process="caption host:1")
    trace.add("decode", began_s=10.0, ended_s=10.25, counts={"images": 8})
    trace.close()
    named, lane, span = json.loads((tmp_path / "new" / "a.json").read_text())
    assert (named["ph"], named["name"], named["args"]) == (
        "M", "process_name", {"name": "caption host:1"},
    )  # fmt: skip
    assert (lane["ph"], lane["name"], lane["args"]) == (
        "M", "thread_name", {"name": threading.current_thread().name},
    )  # fmt: skip
    assert (span["ph"], span["name"], span["args"]) == ("X", "decode", {"images": 8})
    assert span["dur"] in (249_999, 250_000, 250_001)  # microseconds
    assert span["pid"] == os.getpid()
    assert span["tid"] == lane["tid"]


def test_spans_that_lie_in_each_other_still_do_in_microseconds(tmp_path: Path):
    trace = TraceFile(tmp_path / "a.json", process="p")
    for step in range(200):
        began_s = step / 7
        trace.add("inner", began_s=began_s + 1e-7, ended_s=began_s + 0.1 - 1e-7, counts={})
        trace.add("outer", began_s=began_s, ended_s=began_s + 0.1, counts={})
    trace.close()
    spans = spans_in(tmp_path / "a.json")
    for inner, outer in zip(spans[::2], spans[1::2], strict=True):
        assert outer["ts"] <= inner["ts"]
        assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]


def test_a_thread_that_takes_over_anothers_part_takes_over_its_row(tmp_path: Path):
    trace = TraceFile(tmp_path / "a.json", process="p")
    for name in ("decode_0", "decode_0", "commit_0"):
        add = threading.Thread(
            name=name, target=lambda: trace.add("x", began_s=0.0, ended_s=1.0, counts={})
        )
        add.start()
        add.join()
    trace.close()
    rows = [span["tid"] for span in spans_in(tmp_path / "a.json")]
    assert rows[0] == rows[1] != rows[2]


def test_the_trace_of_a_killed_worker_lacks_its_closing_bracket_and_nothing_else(tmp_path: Path):
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from capfilt.io.trace import TraceFile\n"
        "trace = TraceFile(Path(sys.argv[1]), process='p')\n"
        "for step in range(50):\n"
        "    trace.add('step', began_s=step, ended_s=step + 0.5, counts={'step': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "a.json"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "model")])
    killed = subprocess.run(
        [sys.executable, "-c", program, str(path)], env={**os.environ, "PYTHONPATH": paths}
    )
    assert killed.returncode == -9
    events = json.loads(path.read_text() + "]")
    assert [e["args"]["step"] for e in events if e["ph"] == "X"] == list(range(50))


def test_a_span_after_the_end_is_left_out(tmp_path: Path):
    trace = TraceFile(tmp_path / "a.json", process="p")
    trace.close()
    trace.add("late", began_s=0.0, ended_s=1.0, counts={})
    trace.close()
    assert spans_in(tmp_path / "a.json") == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/a\.json: cannot be written \(pool\.trace\)"):
        TraceFile(tmp_path / "file" / "a.json", process="p")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_trace_and_not_the_work(tmp_path, caplog):
    trace = TraceFile(tmp_path / "a.json", process="p")
    full = open("/dev/full", "w")
    trace._file.close()
    trace._file = full
    trace.add("x", began_s=0.0, ended_s=1.0, counts={})
    trace.add("x", began_s=1.0, ended_s=2.0, counts={})
    trace.close()
    assert [os.strerror(errno.ENOSPC) in message for message in caplog.messages] == [True]
