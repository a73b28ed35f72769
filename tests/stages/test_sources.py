from __future__ import annotations

from pathlib import Path

import pytest

from capfilt.errors import ShardError, StorageError
from capfilt.stages.sources import url_list, web_shards
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
