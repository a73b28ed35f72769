from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_run import SmallRun, finished, training, write_models, write_web


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of the small web, and `human.tar`."""
    folder = tmp_path_factory.mktemp("web")
    write_web(folder)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner and a filter of random weights."""
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture(scope="session")
def small_run(web: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """Round 0 over the small web, done. Read it, or change a copy."""
    run = SmallRun(folder=tmp_path_factory.mktemp("small") / "run", web=web, models=models)
    finished(run)
    return run


@pytest.fixture(scope="session")
def two_rounds(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """The small run, trained on after round 0 and gone through again with the new models."""
    run = small_run.copied_to(tmp_path_factory.mktemp("two") / "run")
    finished(run, rounds=2, train=training(run.web))
    return run
