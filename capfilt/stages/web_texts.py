"""Whether the web texts are where the recipe looks for them, told as soon as the web is indexed.

A slip in `input.text_field` is no error: each sample merely has no text, and the run goes on to
publish synthetic texts alone. So the first shards are looked at, and what is there is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice

from capfilt.config import Recipe
from capfilt.errors import ShardError, StorageError
from capfilt.io.parquet import from_bytes
from capfilt.io.shards import ShardFile, open_shard
from capfilt.io.tar import TarSample, group_samples
from capfilt.records import Sample
from capfilt.stages.sources import web_shards
from capfilt.stages.tables import Tables

SHARDS_LOOKED_AT = 3
MEMBERS_LOOKED_AT = 16
"""Of the first shard: the members of its first sample are among them."""

MAX_MISSING_SHARE = 0.99
"""Of samples without a text. Real webs lack some, and a list of images may lack most."""

MAX_NAMED = 8
MAX_DEPTH = 6
"""Names of texts in the json, and how deep they are looked for."""

MAX_JSON_BYTES = 1_000_000


def missing_texts(recipe: Recipe, tables: Tables) -> str | None:
    """One line if hardly any sample has a web text, with what there is and what to set.

    Args:
        recipe: the run.
        tables: a round, with some shards indexed.
    """
    table, shards = tables.of("index"), list(tables.committed("index"))[:SHARDS_LOOKED_AT]
    columns = [from_bytes(table.read(shard), Sample, ["web_text"])["web_text"] for shard in shards]
    samples, missing = sum(map(len, columns)), sum(column.null_count for column in columns)
    if missing == 0 or missing < MAX_MISSING_SHARE * samples:
        return None
    return (
        f"{missing:,} of the {samples:,} samples of the first shards have no web text "
        f"{_place(recipe.input.text_field)}; {_cure(recipe, tables, shards[0])}"
    )


def text_paths(value: object, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The dotted paths in parsed json that lead to a text, as `input.text_field` takes them."""
    if isinstance(value, str):
        yield ".".join(path)
    elif len(path) < MAX_DEPTH and isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in inner:
            if "." not in str(name):
                yield from text_paths(part, (*path, str(name)))


def _place(text_field: str | None) -> str:
    if text_field is None:
        return "in a .txt, nor at `caption` in their json (input.text_field is null)"
    return f"at {text_field!r} in their json (input.text_field)"


def _cure(recipe: Recipe, tables: Tables, shard: int) -> str:
    try:
        file = open_shard(web_shards(recipe, tables).locate(shard))
    except (ShardError, StorageError):
        return "see where their texts are, and set input.text_field"
    try:
        return _what_is_there(file)
    except StorageError:  # a damaged beginning has its own row
        return "see where their texts are, and set input.text_field"
    finally:
        file.close()


def _what_is_there(file: ShardFile) -> str:
    first = group_samples(islice(file.members(), MEMBERS_LOOKED_AT))[0]
    named = f"sample {first.source_key!r}"
    if paths := list(islice(text_paths(_json_of(file, first)), MAX_NAMED)):
        there = f"the json of {named} has texts at {', '.join(paths)}; set input.text_field to one"
    elif "txt" in first.members:
        there = f"{named} has a .txt; set input.text_field: null"
    else:
        there = f"{named} has {', '.join(f'.{e}' for e in first.members)}, and no text in a json"
    return f"{there} (and on_changed_settings: recompute, to index again)"


def _json_of(file: ShardFile, sample: TarSample) -> object:
    member = sample.members.get("json")
    if member is None:
        return None
    num_bytes = min(member.num_bytes, MAX_JSON_BYTES)
    try:
        return json.loads(file.read(offset=member.offset, num_bytes=num_bytes))
    except (ValueError, RecursionError):
        return None
