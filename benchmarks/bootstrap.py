"""Does training on captioned, filtered texts beat training on the raw web? BLIP's table 1, small.

    python -m benchmarks.bootstrap                    all arms on the miniature web; writes the page
    python -m benchmarks.bootstrap --short            a small version in ten minutes, for CI
    python -m benchmarks.bootstrap --real DIR         Flickr8k photographs; needs a GPU to mean much

What is done is kept in `--work`, step by step, and not done again; a killed run goes on. The page
and the plots are written from what is there when the time is up.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.bootstrap_rows.arms import Arm
from benchmarks.bootstrap_rows.findings import Findings, findings
from benchmarks.bootstrap_rows.miniature import web_truth
from benchmarks.bootstrap_rows.page import marks_chart, noise_chart, sections, whole_page
from benchmarks.bootstrap_rows.photographs import (
    as_lines,
    full_plan,
    run_photographs,
    smoke_plan,
)
from benchmarks.bootstrap_rows.plans import FULL, SHORT, TINY, Plan
from benchmarks.bootstrap_rows.runner import run, tasks_of, with_needs

_PLANS = {plan.name: plan for plan in (FULL, SHORT, TINY)}
_ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run what was asked for."""
    chosen = _options().parse_args()
    if chosen.real:
        _photographs(chosen)
        return
    plan = SHORT if chosen.short else _PLANS[chosen.plan]
    seeds = tuple(chosen.seeds) if chosen.seeds else plan.seeds
    folder = chosen.work / plan.folder_name
    found = measured(
        plan, seeds, chosen.arms, folder=folder, num_processes=chosen.processes,
        minutes=chosen.minutes,
    )  # fmt: skip
    print(sections(found, plan))
    if chosen.json:
        chosen.json.write_text(json.dumps(as_json(found, plan), indent=1) + "\n")
    if chosen.page:
        write_page(chosen.page, found, plan)


def _photographs(chosen: argparse.Namespace) -> None:
    plan = (smoke_plan if chosen.short else full_plan)(chosen.device)
    folder = chosen.work / plan.folder_name
    lines = as_lines(run_photographs(chosen.real, work=folder, plan=plan))
    print("\n".join(lines))
    if chosen.json:
        chosen.json.write_text("\n".join(lines) + "\n")


def measured(
    plan: Plan, seeds: Sequence[int], arms: Sequence[Arm], *, folder: Path, num_processes: int,
    minutes: float,
) -> Findings:  # fmt: skip
    """Take all steps that there is time for, then read what is on disk.

    Args:
        plan: sizes and settings.
        seeds: of worlds and orders; one chain of steps each.
        arms: wanted; what they need is done too.
        folder: where results are kept.
        num_processes: steps at a time.
        minutes: after which no step begins.
    """
    deadline = time.monotonic() + 60 * minutes
    tasks = tasks_of(seeds, with_needs(arms))
    for task in run(plan, tasks, folder=folder, num_processes=num_processes, deadline=deadline):
        print(f"{time.strftime('%H:%M:%S')} seed {task.seed}: {task.step}", flush=True)
    truth = {seed: web_truth(seed, plan.world) for seed in seeds}
    return findings(folder, seeds, web_is_true=truth)


def as_json(found: Findings, plan: Plan) -> Mapping[str, object]:
    """Everything that was measured, in plain values."""
    return {
        "plan": asdict(plan),
        "rows": [asdict(row) for rows in found.rows.values() for row in rows],
        "texts": [asdict(one) for facts in found.facts.values() for one in facts],
    }


def write_page(path: Path, found: Findings, plan: Plan) -> None:
    """Write the page and, beside it, its plots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(whole_page(found, plan))
    path.with_name("bootstrap.svg").write_text(marks_chart(found))
    path.with_name("bootstrap_noise.svg").write_text(noise_chart(found))


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="\n".join((__doc__ or "").splitlines()[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--short", action="store_true", help="small sizes, one seed")
    options.add_argument("--plan", choices=_PLANS, default=FULL.name)
    options.add_argument("--seeds", type=int, nargs="+", help="by default those of the plan")
    options.add_argument("--arms", type=Arm, nargs="+", choices=list(Arm), default=list(Arm))
    options.add_argument("--minutes", type=float, default=120.0, help="no step begins after them")
    options.add_argument("--processes", type=int, default=2, help="of one thread each")
    options.add_argument("--work", type=Path, default=_ROOT / ".bootstrap", help="kept results")
    options.add_argument("--json", type=Path, help="every figure")
    options.add_argument("--page", type=Path, help="docs/bootstrap.md; plots go beside it")
    options.add_argument("--real", type=Path, help="folder of Flickr8k shards")
    options.add_argument("--device", default="cpu", help="of --real")
    return options


if __name__ == "__main__":
    main()
