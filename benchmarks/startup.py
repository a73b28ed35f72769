"""How long `capfilt --help` takes, beside a Python that does nothing.

    python benchmarks/startup.py [--runs 15] [--json FILE]

The two are run in turn, each in a process of its own. Goal: at most 0.5 s.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "capfilt --help": [sys.executable, "-m", "capfilt", "--help"],
}


def measure(command: list[str]) -> tuple[float, float]:
    """Wall seconds and CPU seconds of a command."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall_s, cpu_s


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(options.runs):
        for name, command in COMMANDS.items():
            seconds[name].append(measure(command))
    rows = {
        name: {
            "wall_median_s": statistics.median(wall for wall, _ in runs),
            "wall_max_s": max(wall for wall, _ in runs),
            "cpu_median_s": statistics.median(cpu for _, cpu in runs),
        }
        for name, runs in seconds.items()
    }
    print(f"{'':<16} {'wall, median':>13} {'wall, most':>11} {'CPU, median':>12}")
    for name, row in rows.items():
        wall, most, cpu = (f"{value:.3f} s" for value in row.values())
        print(f"{name:<16} {wall:>13} {most:>11} {cpu:>12}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
