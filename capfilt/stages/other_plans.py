"""What a stage left under settings other than the recipe's, and what differs, in words.

A digest in a plan tells that something differs, and not what. Of shard names a list lies beside the
plan, so that the difference between two lists can be named.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from capfilt.io.storage import Store
from capfilt.lineage import canonical_json, plan_differences

SHARDS_FILE = "shards.json"
MAX_NAMED = 3
"""Differences named in a line; a refusal names all."""

DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


def other_plans(folder: Store, *, own: str) -> list[str]:
    """The plans under which a stage has committed shards, less its own.

    A plan under which nothing was committed has cost nothing, and does not count.

    Args:
        folder: of the stage's tables.
        own: folder of the plan the recipe implies.
    """
    return [name for name in folder.names() if name != own and folder.names(f"{name}/_commits")]


def plan_changes(
    folder: Store,
    described: Mapping[str, object],
    *,
    shards_now: Callable[[], Sequence[str] | None],
) -> list[str]:
    """What differs between the plan on record in a folder and another, one line per field.

    Args:
        folder: of the plan on record.
        described: `Plan.describe()` of the plan now asked for.
        shards_now: names of the shards the recipe has; None if it names none.
    """
    lines = plan_differences(json.loads(folder.read("plan.json")), described)
    return [_shards_line(folder, line, shards_now) for line in lines]


def in_a_line(differences: Sequence[str]) -> str:
    """Differences in one line: the first few, digests cut to 12 digits."""
    more = len(differences) - MAX_NAMED
    named = ", ".join(DIGEST.sub(r"\1", line) for line in differences[:MAX_NAMED])
    return f"{named} and {more} more" if more > 0 else named


def note_shards(folder: Store, urls: Sequence[str]) -> None:
    """Put the names of the shards, folders left out, beside the plan that digests them."""
    folder.put_new(SHARDS_FILE, (canonical_json(_names(urls)) + "\n").encode())


def shard_changes(before: Sequence[str], now: Sequence[str]) -> str:
    """How two lists of shards differ: how many came and went, and the first of each.

    Args:
        before: URLs or names; folders do not count.
        now: the same.
    """
    old, new = Counter(_names(before)), Counter(_names(now))
    sides = {"added": list((new - old).elements()), "removed": list((old - new).elements())}
    parts = [f"{len(names):,} {side} (first: {names[0]})" for side, names in sides.items() if names]
    return ", ".join(parts) or f"the same {len(now):,} in another order"


def _shards_line(folder: Store, line: str, shards_now: Callable[[], Sequence[str] | None]) -> str:
    if not line.startswith("inputs.shards: ") or not folder.exists(SHARDS_FILE):
        return line
    now = shards_now()
    if now is None:
        return line
    return f"input.shards: {shard_changes(json.loads(folder.read(SHARDS_FILE)), now)}"


def _names(urls: Sequence[str]) -> list[str]:
    return [url.rsplit("/", 1)[-1] for url in urls]
