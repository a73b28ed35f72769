"""Download: a URL list to WebDataset shards of original bytes, with img2dataset.

A shard is a slice of the list. What img2dataset fetched is put into a tar in the order of the
list, and every URL gets a row: fetched, or the reason why not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from capfilt.config import Recipe
from capfilt.errors import CapfiltError
from capfilt.io.commits import NewFile, Table
from capfilt.io.fetch import (
    Fetch,
    FetchOptions,
    image_extension,
    require_img2dataset,
    source_key,
)
from capfilt.io.parquet import table_from, to_bytes
from capfilt.io.tar import write_tar
from capfilt.lineage import canonical_json
from capfilt.pool import Fetched, Pool, Quarantine, Resources, ShardReport
from capfilt.records import Download
from capfilt.stages.shards import (
    Funnel,
    drop_counts,
    report_of,
    reports_of,
    resources_of,
    run_jobs,
)
from capfilt.stages.sources import url_list, web_shards
from capfilt.stages.tables import Tables
from capfilt.workers.fetch import FetchWorker, UrlShard

STAGE = "download"


def run(recipe: Recipe, tables: Tables, pool: Pool) -> Funnel:
    """Download all shards of the URL list.

    Raises:
        CapfiltError: not one URL gave an image.
    """
    shards, work = web_shards(recipe, tables).count, job(recipe, tables)
    funnel = run_jobs([work], shards, tables=tables, pool=pool)[STAGE]
    _require_images(funnel, where=work.table.store.url)
    return funnel


def job(recipe: Recipe, tables: Tables) -> DownloadJob:
    """The stage's work on one shard.

    Raises:
        MissingDependencyError: img2dataset is not installed.
    """
    require_img2dataset()
    return DownloadJob(
        recipe=recipe,
        table=tables.begin(STAGE, recompute=recipe.on_changed_settings == "recompute"),
    )


def _require_images(funnel: Funnel, *, where: str) -> None:
    """Refuse to go on with nothing: it is rather the network that is down than the whole list."""
    if funnel.kept:
        return
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in funnel.dropped.items())
    raise CapfiltError(
        f"download: none of {funnel.rows_in:,} URLs gave an image ({reasons}), so there is nothing "
        f"to caption. If the network or the server was down, remove {where} and run again"
    )


def download_row(fetch: Fetch, url: str, web_text: str | None) -> Download:
    """The row of a URL."""
    payload = fetch.payload
    return Download(
        source_key=fetch.source_key,
        url=url,
        web_text=web_text,
        image_sha256=None if payload is None else hashlib.sha256(payload).hexdigest(),
        num_bytes=None if payload is None else len(payload),
        reason=fetch.reason,
        detail=fetch.detail,
    )


def tar_members(row: Download, payload: bytes) -> Iterator[tuple[str, bytes]]:
    """The files of a fetched sample: the image as served, its web text, its URL."""
    yield f"{row.source_key}.{image_extension(payload)}", payload
    meta = {"url": row.url, "sha256": row.image_sha256}
    yield f"{row.source_key}.json", canonical_json(meta).encode()
    if row.web_text is not None:
        yield f"{row.source_key}.txt", row.web_text.encode("utf-8", "replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadJob:
    """Downloading of one shard."""

    recipe: Recipe
    table: Table

    stage = STAGE

    @property
    def resources(self) -> Resources:
        """What each worker needs."""
        return resources_of(self.recipe.pool, self.recipe.pool.download)

    def committed(self) -> Mapping[int, ShardReport]:
        """Shards downloaded by an earlier run."""
        return reports_of(STAGE, self.table)

    def build_worker(self) -> FetchWorker:
        """A worker; img2dataset itself starts with each shard."""
        options = self.recipe.download.model_dump(exclude={"urls", "url_column", "text_column"})
        return FetchWorker(FetchOptions(**options))

    def fetch(self, shard: int) -> Fetched[UrlShard]:
        """The shard's slice of the URL list."""
        size = self.recipe.download.urls_per_shard
        rows = url_list(self.recipe).rows(shard * size, (shard + 1) * size).to_pydict()
        urls = tuple(zip(rows["url"], rows["text"], strict=True))
        return Fetched(inputs=[UrlShard(shard=shard, urls=urls)])

    def quarantine(self, rejected: UrlShard, why: Quarantine) -> list[Fetch]:
        """A result for each URL of a shard no worker survives."""
        return [
            Fetch(
                source_key=source_key(rejected.shard, row),
                payload=None,
                reason=why.reason,
                detail=why.detail,
            )
            for row in range(len(rejected.urls))
        ]

    def commit(
        self, shard: int, fetched: Fetched[UrlShard], outputs: Sequence[list[Fetch]]
    ) -> ShardReport:
        """Write the shard's tar and its rows, both in the order of the list."""
        [urls], [fetches] = fetched.inputs, outputs
        rows = [
            download_row(fetch, url or "", text)
            for fetch, (url, text) in zip(fetches, urls.urls, strict=True)
        ]
        tar = write_tar(
            [
                member
                for row, fetch in zip(rows, fetches, strict=True)
                if fetch.payload is not None
                for member in tar_members(row, fetch.payload)
            ]
        )
        table = to_bytes(table_from(rows, Download))
        kept = sum(row.reason is None for row in rows)
        files = [
            NewFile(role="rows", folder="", suffix=".parquet", payload=table, rows=len(rows)),
            NewFile(role="shard", folder="", suffix=".tar", payload=tar, rows=kept),
        ]
        commit = self.table.commit(
            shard,
            files,
            rows_in=len(rows),
            kept=kept,
            dropped=drop_counts(row.reason for row in rows),
        )
        return report_of(STAGE, commit)
