"""Where the web's shards are: the recipe's own tars, or those `download` made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capfilt.config import Recipe
from capfilt.errors import PlanError, ShardError, StorageError
from capfilt.io.commits import Commit, Table
from capfilt.io.inputs import UrlList, file_digest, shard_urls
from capfilt.records import Reason
from capfilt.stages.tables import Tables


@dataclass(frozen=True, slots=True, kw_only=True)
class WebShards:
    """The shards of the web data: how many, and where each one is."""

    count: int
    urls: tuple[str, ...]  # empty if they are made by `download`
    downloads: Table | None

    def locate(self, shard: int) -> str:
        """The URL of a shard's tar.

        Raises:
            ShardError: `download` has not made it.
        """
        if self.downloads is None:
            return self.urls[shard]
        commit = self.downloads.find(shard)
        if commit is None:
            raise ShardError("not downloaded yet; run `capfilt download` first")
        [tar] = [file for file in commit.files if file.role == "shard"]
        return f"{self.downloads.store.url}/{tar.path}"


def web_shards(recipe: Recipe, tables: Tables) -> WebShards:
    """The shards the recipe's web data has; input shards may be out of reach.

    Raises:
        StorageError: the pattern is wrong, or the URL list cannot be read.
    """
    if recipe.input.shards is not None:
        urls = tuple(shard_urls(recipe.input.shards))
        return WebShards(count=len(urls), urls=urls, downloads=None)
    rows = url_list(recipe).num_rows()
    count = -(-rows // recipe.download.urls_per_shard)
    return WebShards(count=count, urls=(), downloads=tables.of("download"))


def refuse_other_web(web: WebShards, indexed: Mapping[int, Commit]) -> None:
    """See that the shards are those this run has indexed: their names are digested, and say little.

    Looks at the first one that was whole: a damaged one may have been fetched again. Shards that
    are out of reach are let pass.

    Args:
        web: the shards the recipe names now.
        indexed: what `index` has committed.

    Raises:
        PlanError: they are others.
    """
    whole = [n for n, commit in indexed.items() if Reason.SHARD_DAMAGED not in commit.dropped]
    if web.downloads is not None or not whole:
        return
    url = web.locate(whole[0])
    try:
        found = file_digest(url)
    except StorageError:
        return
    if found != indexed[whole[0]].input_sha256:
        raise PlanError(
            f"{url}: is not the shard of that name which this run has indexed (SHA-256 "
            f"{indexed[whole[0]].input_sha256}, now {found}); put that one back, or choose another "
            "`run` folder for other data"
        )


def url_list(recipe: Recipe) -> UrlList:
    """The recipe's URL list."""
    download = recipe.download
    assert download.urls is not None, "only asked for by runs that download"
    return UrlList(
        url=download.urls, url_column=download.url_column, text_column=download.text_column
    )
