"""The pairs a training learns from: where they are, whose they are, and which are held out.

A pair is an image and one text of it. The shards are listed once; an image is read when training
meets it, so a round may have more pairs than memory has room for.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from capfilt.errors import ShardError
from capfilt.io.ranges import open_ranges
from capfilt.io.rows import LazyRows
from capfilt.io.shards import ShardFile, open_shard
from capfilt.io.tar import TarDamage, TarSample, group_samples
from capfilt.records import Reason
from capfilt.stages.index import IMAGE_EXTENSIONS, web_text_of
from capfilt.workers.batches import SourceImage
from capfilt.workers.trainer_pairs import TrainingPair

MAX_TEXTS = 100
"""Texts of one image that are looked for."""

MAX_OPEN_SHARDS = 256
"""Shards held open while training reads images: a quarter of the usual limit of open files."""

PLACES = pa.schema(
    [
        ("shard", pa.int32()),  # position among the shards listed
        ("sample", pa.large_string()),  # its name and occurrence in the shard
        ("text", pa.large_string()),
        ("written_by", pa.string()),
        ("offset", pa.int64()),  # of the image in the tar
        ("num_bytes", pa.int64()),
    ]
)
"""Columns that say where a pair is: a round may have more pairs than memory has objects."""

WrittenBy = Literal["web", "synthetic", "human"]
"""The source of a text: the web page (T_w), the captioner (T_s) or a person (T_h)."""

FoundText = tuple[str, WrittenBy]

TextsOf = Callable[[Mapping[str, bytes]], list[FoundText]]
"""Finds a sample's texts among its text members."""


def published_texts(texts: Mapping[str, bytes]) -> list[FoundText]:
    """The texts of a published sample, from its json."""
    fields = json.loads(texts["json"])
    return [(str(text["text"]), text["text_source"]) for text in fields["texts"]]


def human_texts(texts: Mapping[str, bytes], *, text_field: str | None) -> list[FoundText]:
    """The text, or texts, people wrote for an image.

    Args:
        texts: the sample's text members by extension.
        text_field: as `input.text_field`; if it names a list, every string in it is a text.
    """
    one = web_text_of(texts, text_field)
    if one is not None:
        return [(one, "human")] if one.strip() else []
    several = (web_text_of(texts, f"{text_field or 'caption'}.{i}") for i in range(MAX_TEXTS))
    return [(text, "human") for text in several if text is not None and text.strip()]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPairs:
    """Where the pairs of some shards are; nothing of it is held open.

    Args:
        urls: the shards.
        places: `PLACES`, a row per pair.
        lost: samples without an image or a text, by reason.
    """

    urls: Sequence[str]
    places: pa.Table
    lost: Mapping[str, int]

    def written_by(self, source: WrittenBy) -> ListedPairs:
        """The pairs whose text is of one source."""
        return replace(self, places=self.places.filter(pc.field("written_by") == source))


def list_pairs(urls: Sequence[str], texts_of: TextsOf, *, max_text_bytes: int) -> ListedPairs:
    """Find the pairs of some shards: one per text of each sample that has an image.

    Args:
        urls: the shards.
        texts_of: finds a sample's texts.
        max_text_bytes: of a .txt or .json member; a longer one is cut.

    Raises:
        ShardError: a shard is damaged or cannot be read.
    """
    lost: Counter[str] = Counter()
    found = [PLACES.empty_table()]
    for number, url in enumerate(urls):
        places = []
        for sample, texts in _described(open_shard(url), texts_of, max_text_bytes=max_text_bytes):
            image = next((sample.members[e] for e in IMAGE_EXTENSIONS if e in sample.members), None)
            if image is None or not texts:
                lost[Reason.IMAGE_MISSING if image is None else Reason.TEXT_MISSING] += 1
                continue
            name = f"{sample.source_key}/{sample.occurrence}"
            places += [
                (number, name, text, written_by, image.offset, image.num_bytes)
                for text, written_by in texts
            ]
        found.append(_columns(places))
    return ListedPairs(urls=urls, places=pa.concat_tables(found), lost=lost)


def held_out_split(
    pairs: ListedPairs, *, num_pairs: int, seed: int
) -> tuple[ListedPairs, ListedPairs]:
    """Set samples aside by a hash of their names: the same ones in every round.

    Args:
        pairs: of the human shards.
        num_pairs: at least so many are set aside, all texts of an image together; 0 for none.
        seed: of the choice.

    Returns:
        The pairs to learn from, and those set aside.
    """
    shards, names = (pairs.places[column].to_pylist() for column in ("shard", "sample"))
    samples = list(zip(shards, names, strict=True))
    num_texts = Counter(samples)
    chosen, left = set[tuple[int, str]](), num_pairs
    for sample in sorted(num_texts, key=lambda sample: _keyed(seed, *sample)) if left else ():
        if left <= 0:
            break
        chosen.add(sample)
        left -= num_texts[sample]
    aside = pa.array([sample in chosen for sample in samples], pa.bool_())
    rest = replace(pairs, places=pairs.places.filter(pc.invert(aside)))
    return rest, replace(pairs, places=pairs.places.filter(aside), lost={})


def read_pairs(pairs: ListedPairs) -> Sequence[TrainingPair]:
    """The pairs; their images are read as they are asked for, by as many threads as like."""
    opened = lru_cache(maxsize=MAX_OPEN_SHARDS)(open_ranges)
    places = pairs.places.combine_chunks()  # a row of many chunks is slow to find

    def read(row: int) -> TrainingPair:
        place = {name: places[name][row].as_py() for name in PLACES.names}
        url = pairs.urls[place["shard"]]
        payload = opened(url).read(offset=place["offset"], num_bytes=place["num_bytes"])
        digest = hashlib.sha256(payload).hexdigest()
        image = SourceImage(key=f"{url}/{place['sample']}", payload=payload, sha256=digest)
        return TrainingPair(image=image, text=place["text"])

    return LazyRows(range(len(places)), read)


def _keyed(seed: int, shard: int, sample: str) -> bytes:
    name = f"held out/{seed}/{shard}/{sample}"
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _described(
    file: ShardFile, texts_of: TextsOf, *, max_text_bytes: int
) -> Iterator[tuple[TarSample, list[FoundText]]]:
    """The samples of a shard, each with its texts."""
    try:
        samples = group_samples(file.members())
    except TarDamage as err:
        raise ShardError(f"{file.url}: damaged at byte {err.at_byte}: {err.why}") from err
    for sample in samples:
        texts = {
            extension: file.read(
                offset=member.offset, num_bytes=min(member.num_bytes, max_text_bytes)
            )
            for extension, member in sample.members.items()
            if extension in ("txt", "json")
        }
        yield sample, texts_of(texts)


def _columns(places: Sequence[tuple[int, str, str, str, int, int]]) -> pa.Table:
    rows = [dict(zip(PLACES.names, place, strict=True)) for place in places]
    return pa.Table.from_pylist(rows, schema=PLACES)
