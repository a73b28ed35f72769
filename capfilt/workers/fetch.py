"""The download stage's worker: fetches a shard's URLs with img2dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capfilt.io.fetch import Fetch, FetchOptions, fetch_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlShard:
    """The URLs of one shard, with their web texts."""

    shard: int
    urls: tuple[tuple[str, str | None], ...]


class FetchWorker:
    """Fetches whole shards.

    Args:
        options: how to fetch.
    """

    def __init__(self, options: FetchOptions) -> None:
        self._options = options

    def __call__(self, inputs: Sequence[UrlShard]) -> list[list[Fetch]]:
        """The results of each shard, one per URL in the list's order."""
        return [fetch_shard(row.shard, row.urls, self._options) for row in inputs]

    def close(self) -> None:
        """Nothing to give back: each shard has a process of its own."""
