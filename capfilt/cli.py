"""The command line: joins a recipe, a pool and a stage, and shows what happens.

Heavy packages are imported by the command that needs them, so that `capfilt --help` is quick; this
is the only module that does so.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from capfilt import __version__
from capfilt.errors import (
    CapfiltError,
    CollapseError,
    MissingDependencyError,
    RecipeError,
    Stopped,
    StorageError,
)

if TYPE_CHECKING:
    # argparse has no public name for what add_subparsers returns.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

    from capfilt.config import Recipe
    from capfilt.console import ReportingPool
    from capfilt.pool import Pool
    from capfilt.stages.shards import Funnel

DESCRIPTION = """\
CapFilt as a pipeline: a captioner writes texts for web images, a filter drops the texts that do
not fit, a new model is trained on the rest; and round again (BLIP, arXiv:2201.12086)."""

EPILOG = """\
exit codes: 0 done, 1 failed with one readable line, 2 wrong usage or recipe, 75 stopped on
request (the same command resumes)"""

STAGE_HELP = {
    "download": "URL list to WebDataset shards of original bytes (img2dataset)",
    "index": "every sample: is it readable, what is it",
    "caption": "the captioner samples synthetic texts",
    "score": "the filter scores every text of every image",
    "select": "keep or drop each text, with a reason",
    "dedup": "near-duplicate images become one",
    "publish": "Parquet and WebDataset files, manifest, card, funnel",
    "train": "a new BLIP, then a captioner and a filter finetuned from it",
}
"""Stage commands in the order of the loop, each with its line of help."""

NEEDS = {"download": ("download.urls", "download"), "train": ("train.human", "train on")}
"""Stages a recipe may be without: the field that is missing then, and the word for it."""


MAX_PASSPORTS = 5
"""Samples of one name that are explained."""


def main() -> None:
    """Entry point of the `capfilt` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name.

    Returns:
        The exit code: 0, 1, 2 or 75.
    """
    options = _parser().parse_args(arguments)
    _log_to_stderr(options.log_level)
    try:
        options.command(options)
        sys.stdout.flush()
    except CapfiltError as err:
        print(f"capfilt: {err}", file=sys.stderr)
        return err.exit_code
    except KeyboardInterrupt:
        print("capfilt: stopped; the same command goes on from here", file=sys.stderr)
        return Stopped.exit_code
    except BrokenPipeError:
        # The reader has left, as `head` does; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="capfilt",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"capfilt {__version__}")
    parser.add_argument(
        "--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING"], help="default: INFO"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_init(commands)
    for stage, help_ in STAGE_HELP.items():
        _add_recipe_command(commands, stage, help_, partial(_run_stage, stage=stage))
    whole = _add_recipe_command(
        commands, "run", "all stages, skipping what is committed", _run_loop
    )
    whole.add_argument("--rounds", type=int, help="bootstrap rounds; default: the recipe's")
    status = _add_recipe_command(commands, "status", "where the run stands", _status)
    status.add_argument("--json", action="store_true", help="machine-readable")
    explain = _add_recipe_command(commands, "explain", "one sample's passport", _explain)
    explain.add_argument("key", help="key (or its first digits), source key, or URL")
    explain.add_argument("--round", type=int, default=0, help="bootstrap round; default: 0")
    report = _add_recipe_command(commands, "report", "a page with the funnel and samples", _report)
    report.add_argument("--out", help="default: report.html in the run's folder")
    _add_demo(commands)
    schemas = commands.add_parser("schemas", help="write the JSON Schema of every table")
    schemas.add_argument("folder", nargs="?", default="schemas", help="default: schemas")
    schemas.set_defaults(command=_schemas)
    return parser


def _add_recipe_command(
    commands: Commands, name: str, help_: str, command: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help_, description=help_[0].upper() + help_[1:] + ".")
    parser.add_argument("recipe", help="YAML file; `capfilt init` writes one")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a field of the recipe; may be given more than once",
    )
    parser.set_defaults(command=command)
    return parser


def _add_init(commands: Commands) -> None:
    parser = commands.add_parser("init", help="write a commented recipe")
    parser.add_argument("run", help="folder of the run: a path or a URL")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", help="WebDataset tars: 's3://bucket/{00000..00999}.tar'")
    source.add_argument("--urls", help="URL list to download: a Parquet or CSV file")
    parser.add_argument("--captioner", required=True, help="hub id or model directory")
    parser.add_argument("--filter", required=True, help="hub id or model directory")
    parser.add_argument("--human", help="tars or Parquet files of human pairs, to train on")
    parser.add_argument("--out", default="recipe.yaml", help="default: recipe.yaml")
    parser.set_defaults(command=_init)


def _add_demo(commands: Commands) -> None:
    parser = commands.add_parser(
        "demo", help="the whole loop on the built-in miniature web, no download needed"
    )
    parser.add_argument("--folder", default="capfilt-demo", help="default: capfilt-demo")
    parser.add_argument("--json", metavar="FILE", help="write the figures to a file")
    parser.add_argument("--pages", type=int, default=400, help="size of the web; default: 400")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another web")
    parser.add_argument(
        "--local", action="store_true", help="work in this process instead of Ray actors"
    )
    parser.set_defaults(command=_demo)


def _init(options: argparse.Namespace) -> None:
    from capfilt.config import check_recipe
    from capfilt.recipe_text import recipe_text

    chosen: dict[str, object] = {
        "run": options.run,
        "caption": {"model": options.captioner},
        "score": {"model": options.filter},
    }
    if options.input is not None:
        chosen["input"] = {"shards": options.input}
    else:
        chosen["download"] = {"urls": options.urls}
    if options.human is not None:
        chosen["train"] = {"human": options.human}
    check_recipe("capfilt init", chosen)
    with _writing(options.out), Path(options.out).open("x", encoding="utf-8") as file:
        file.write(recipe_text(chosen))
    print(f"{options.out} is written; look through it, then: capfilt run {options.out}")


def _run_stage(options: argparse.Namespace, *, stage: str) -> None:
    from importlib import import_module

    from capfilt.stages.status import open_rounds, stages_of

    recipe = _recipe(options)
    rounds = open_rounds(recipe)
    if not rounds[0].has(stage):
        field, what = NEEDS[stage]
        raise RecipeError(options.recipe, [f"{field}: not set, so there is nothing to {what}"])
    with _open_pool(recipe) as pool:
        for tables in rounds:
            if stage in stages_of(tables):
                _show(import_module(f"capfilt.stages.{stage}").run(recipe, tables, pool), recipe)


def _run_loop(options: argparse.Namespace) -> None:
    from capfilt.stages.loop import bootstrap
    from capfilt.stages.status import open_rounds

    if options.rounds is not None:
        options.overrides.append(f"rounds={options.rounds}")
    recipe = _recipe(options)
    try:
        with _open_pool(recipe) as pool:
            for funnel in bootstrap(recipe, pool, rounds=recipe.rounds):
                _show(funnel, recipe)
    except CollapseError:
        _show_rounds(recipe)  # what it is about
        raise
    if recipe.train.human is None:
        print("train     skipped: train.human is null; set it to shards of human pairs to train")
    _show_rounds(recipe)
    for tables in open_rounds(recipe):
        if tables.committed("publish"):
            print(f"dataset of round {tables.round}: {tables.of('publish').store.url}")
        if tables.has("train") and tables.committed("train"):
            print(f"models of round {tables.round}: {tables.of('train').store.url}")


def _show_rounds(recipe: Recipe) -> None:
    from capfilt.console import show_rounds
    from capfilt.stages.round_report import round_report
    from capfilt.stages.status import open_rounds

    measured = (round_report(recipe, tables) for tables in open_rounds(recipe))
    show_rounds([report for report in measured if report is not None])


def _show(funnel: Funnel, recipe: Recipe) -> None:
    """What a stage did, and after the first `index` whether it found the web's texts."""
    from capfilt.console import show_funnel, show_warning
    from capfilt.stages.tables import open_tables
    from capfilt.stages.web_texts import missing_texts

    show_funnel(funnel)
    if (funnel.stage, funnel.round) == ("index", 0):
        line = missing_texts(recipe, open_tables(recipe, 0))
        if line is not None:
            show_warning(line)


def _status(options: argparse.Namespace) -> None:
    from capfilt.console import show_status, status_json
    from capfilt.speed_text import show_speed
    from capfilt.stages.status import (
        elsewhere_lines,
        run_status,
        training_lines,
        tuned_lines,
    )

    recipe = _recipe(options)
    statuses = run_status(recipe)
    if options.json:
        print(json.dumps(status_json(statuses), indent=2))
        return
    begun = any(status.funnel.shards for status in statuses)
    folder = recipe.run if "://" in recipe.run else Path(recipe.run).resolve()
    elsewhere = elsewhere_lines(recipe)
    print(f"run {folder}" if begun or elsewhere else f"run {folder}: nothing is there yet")
    show_status(statuses)
    for line in [*elsewhere, *training_lines(recipe), *tuned_lines(recipe)]:
        print(line)
    show_speed(statuses)


def _explain(options: argparse.Namespace) -> None:
    from capfilt.console import show_lost, show_passport
    from capfilt.stages.explain import find_lost, find_samples, not_found, passport
    from capfilt.stages.tables import open_tables

    recipe = _recipe(options)
    if not 0 <= options.round < recipe.rounds:
        found = f"--round: found {options.round}; rounds of the recipe: 0 to {recipe.rounds - 1}"
        raise RecipeError(options.recipe, [found])
    tables = open_tables(recipe, options.round)
    samples, lost = find_samples(tables, options.key), find_lost(tables, options.key)
    if not samples and not lost:
        raise not_found(tables, options.key)
    for sample in samples[:MAX_PASSPORTS]:
        show_passport(passport(tables, sample))
    for row in lost[:MAX_PASSPORTS]:
        show_lost(row)
    more = max(len(samples), len(lost)) - MAX_PASSPORTS
    if more > 0:
        print(f"and {more:,} more of that name; a key is unique")
    if (elsewhere := tables.elsewhere()) is not None:
        print(elsewhere)


def _report(options: argparse.Namespace) -> None:
    from capfilt.stages.report import report_path, write_report
    from capfilt.stages.status import elsewhere_lines

    recipe = _recipe(options)
    path = report_path(recipe) if options.out is None else Path(options.out)
    with _writing(str(path)):
        write_report(recipe, path)
    print(f"{path.resolve()} is written; open it in a browser")
    for line in elsewhere_lines(recipe):
        print(line)


def _schemas(options: argparse.Namespace) -> None:
    from capfilt.io.schemas import export

    with _writing(options.folder):
        export(Path(options.folder))
    print(f"schemas written to {options.folder}/")


def _demo(options: argparse.Namespace) -> None:
    from capfilt.console import show_demo, show_funnel
    from capfilt.demo import run_demo, write_figures
    from capfilt.miniature.web import MIN_PAGES

    if options.pages < MIN_PAGES:
        found = f"--pages: found {options.pages}; at least {MIN_PAGES} have room for every fault"
        raise RecipeError("capfilt demo", [found])
    with _writing(options.folder):
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    figures = run_demo(
        Path(options.folder),
        pages=options.pages,
        seed=options.seed,
        pool_kind="local" if options.local else "ray",
        open_pool=_open_pool,
        on_funnel=show_funnel,
    )
    show_demo(figures, Path(options.folder))
    if options.json is not None:
        with _writing(options.json):
            write_figures(figures, Path(options.json))


def _recipe(options: argparse.Namespace) -> Recipe:
    from capfilt.config import load_recipe

    return load_recipe(options.recipe, options.overrides)


def _open_pool(recipe: Recipe) -> ReportingPool:
    from rich.console import Console

    from capfilt.console import ReportingPool

    return ReportingPool(_new_pool(recipe), Console(stderr=True))


def _new_pool(recipe: Recipe) -> Pool:
    if recipe.pool.kind == "local":
        from capfilt.local_pool import LocalPool

        return LocalPool()
    try:
        from capfilt.runtime.cluster import ClusterSettings
        from capfilt.runtime.ray_pool import RayPool, RaySettings
    except ImportError as err:
        raise MissingDependencyError(
            "pool.kind is ray, and Ray is not installed; run `pip install 'ray[default]'`, "
            "or set pool.kind: local"
        ) from err
    settings = RaySettings(cluster=ClusterSettings(address=recipe.pool.address))
    if recipe.pool.train.workers == 1:
        return RayPool(settings)
    from capfilt.runtime.ray_train import run_together

    return RayPool(settings, together=run_together)


@contextmanager
def _writing(path: str) -> Iterator[None]:
    """Say in one line why a file or folder named on the command line cannot be written."""
    try:
        yield
    except FileExistsError as err:
        raise RecipeError(path, ["is there already; remove it, or name another"]) from err
    except OSError as err:
        raise StorageError(f"{path}: cannot be written: {err.strerror or err}") from err


class _StderrHandler(logging.Handler):
    """Writes to what `sys.stderr` is now: while progress bars are drawn, lines go above them."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _log_to_stderr(level: str) -> None:
    logging.getLogger("faiss").setLevel(logging.WARNING)  # tells which CPU build it loads
    logging.basicConfig(
        level=level, handlers=[_StderrHandler()], format="%(asctime)s %(levelname)s %(message)s"
    )
