from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from capfilt.errors import PlanError, ShardError, StorageError
from capfilt.stages import index
from capfilt.stages.sources import refuse_other_web, url_list, web_shards
from capfilt.stages.tables import open_tables
from tests.small_run import SmallRun, small_recipe


@pytest.fixture
def urls(tmp_path: Path) -> Path:
    path = tmp_path / "urls.csv"
    path.write_text("url,alt\n" + "".join(f"http://web.example/{i},a\n" for i in range(5)))
    return path


def test_shards_of_the_recipe_are_numbered_in_the_order_of_the_pattern(
    small_run: SmallRun,
) -> None:
    shards = web_shards(small_run.recipe(), small_run.tables())
    assert shards.count == 2
    assert shards.locate(1) == f"{small_run.web}/00001.tar"


def test_a_url_list_makes_as_many_shards_as_it_needs(
    urls: Path, models: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(
        tmp_path / "run", web=tmp_path, models=models, input={"shards": None},
        download={"urls": str(urls), "urls_per_shard": 2},
    )  # fmt: skip
    shards = web_shards(recipe, open_tables(recipe, 0))
    assert shards.count == 3
    with pytest.raises(ShardError, match="run `capfilt download` first"):
        shards.locate(2)


def test_a_url_list_is_read_by_the_columns_the_recipe_names(
    urls: Path, models: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(
        tmp_path / "run", web=tmp_path, models=models, input={"shards": None},
        download={"urls": str(urls), "text_column": "caption"},
    )  # fmt: skip
    with pytest.raises(
        StorageError, match=r"no column 'caption'; set download\.text_column to one of url, alt"
    ):
        url_list(recipe).num_rows()


def test_other_data_under_the_names_of_indexed_shards_is_refused(
    small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run.copied_to(tmp_path / "run").with_own_web(tmp_path / "web")
    (run.web / "00000.tar").write_bytes((run.web / "00001.tar").read_bytes())
    with pytest.raises(PlanError, match=r"web/00000\.tar: is not the shard of that name"):
        index.job(run.recipe(), run.tables())


@pytest.mark.parametrize("there", [True, False])
def test_indexed_shards_may_be_moved_or_out_of_reach(
    small_run: SmallRun, tmp_path: Path, there: bool
) -> None:
    run = small_run.copied_to(tmp_path / "run").with_own_web(tmp_path / "web")
    if not there:
        (run.web / "00000.tar").unlink()
    assert len(index.job(run.recipe(), run.tables()).committed()) == 2


def test_a_shard_that_was_damaged_may_be_another_now(small_run: SmallRun) -> None:
    web, indexed = web_shards(small_run.recipe(), small_run.tables()), {}
    commits = small_run.tables().committed("index")
    indexed[0] = replace(commits[0], input_sha256="0" * 64, dropped={"shard_damaged": 1})
    refuse_other_web(web, indexed)
    with pytest.raises(PlanError, match=r"00001\.tar: "):
        refuse_other_web(web, indexed | {1: replace(commits[1], input_sha256="0" * 64)})
