"""The pairs a training learns from: where they are, whose they are, and which are held out.

A pair is an image and one text of it. The shards are listed once; an image is read when training
meets it, so a round may have more pairs than memory has room for.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from capfilt.io.parquet_places import MAX_GROUP_BYTES, REWRITE
from capfilt.io.ranges import Ranges, open_ranges
from capfilt.io.rows import LazyRows
from capfilt.io.shards import open_shard
from capfilt.records import Reason
from capfilt.stages.index import web_text_of
from capfilt.stages.pair_shards import FoundSample, row_group_images, samples_of
from capfilt.workers.batches import SourceImage
from capfilt.workers.trainer_pairs import TrainingPair

MAX_TEXTS = 100
"""Texts of one image that are looked for."""

MAX_OPEN_SHARDS = 256
"""Shards held open while training reads images: a quarter of the usual limit of open files."""

log = logging.getLogger(__name__)

COSTLY_BYTES = 1_000_000
"""Read for one image: ten times a usual one; more is told."""

SAMPLES_AT_ONCE = 4096
"""Listed as Python objects, before they become columns: a shard may have millions."""

PLACES = pa.schema(
    [
        ("shard", pa.int32()),  # position among the shards listed
        ("sample", pa.large_string()),  # its name and occurrence in the shard
        ("text", pa.large_string()),
        ("written_by", pa.string()),
        ("offset", pa.int64()),  # of the image in the shard, as in `parquet_places.Place`
        ("num_bytes", pa.int64()),
        ("row_group", pa.int32()),  # null where those bytes are the image
        ("row", pa.int32()),
    ]
)
"""Columns that say where a pair is: a round may have more pairs than memory has objects."""

WrittenBy = Literal["web", "synthetic", "human"]
"""The source of a text: the web page (T_w), the captioner (T_s) or a person (T_h)."""

FoundText = tuple[str, WrittenBy]

DEFAULT_TEXT_FIELD = "caption"
"""Of human pairs without a .txt."""

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
    several = (
        web_text_of(texts, f"{text_field or DEFAULT_TEXT_FIELD}.{i}") for i in range(MAX_TEXTS)
    )
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


def list_pairs(
    urls: Sequence[str], texts_of: TextsOf, *, max_text_bytes: int, text_column: str = "texts"
) -> ListedPairs:
    """Find the pairs of some shards: one per text of each sample that has an image.

    Args:
        urls: the shards, tars or Parquet files.
        texts_of: finds a sample's texts.
        max_text_bytes: of a .txt or .json member; a longer one is cut.
        text_column: of Parquet files; that of published ones is the default.

    Raises:
        ShardError: a shard is damaged or cannot be read.
        CapfiltError: a Parquet file has other columns.
    """
    lost: Counter[str] = Counter()
    found = [PLACES.empty_table()]
    for number, url in enumerate(urls):
        samples = samples_of(url, text_column=text_column, max_text_bytes=max_text_bytes)
        while some := list(islice(samples, SAMPLES_AT_ONCE)):
            places = [place for sample in some for place in _places(sample, texts_of, number, lost)]
            found.append(pa.Table.from_pylist(places, schema=PLACES))
    listed = ListedPairs(urls=urls, places=pa.concat_tables(found), lost=lost)
    _warn_of_row_groups(listed)
    return listed


def held_out_split(
    pairs: ListedPairs, *, num_pairs: int, seed: int
) -> tuple[ListedPairs, ListedPairs]:
    """Set images aside by a hash of their bytes: the same ones in every round.

    A collection with a sample for each text, as COCO is often written, has an image many times.
    Only its bytes tell, so all images are read once if any are to be set aside.

    Args:
        pairs: of the human shards.
        num_pairs: at least so many are set aside, all texts of an image together; 0 for none.
        seed: of the choice.

    Returns:
        The pairs to learn from, and those set aside.

    Raises:
        ShardError: a shard cannot be read.
    """
    if num_pairs == 0:
        return pairs, replace(pairs, places=PLACES.empty_table(), lost={})
    images = _digests(pairs)
    num_texts = Counter(images)
    chosen, left = set[bytes](), num_pairs
    for image in sorted(num_texts, key=lambda image: _keyed(seed, image)):
        if left <= 0:
            break
        chosen.add(image)
        left -= num_texts[image]
    aside = pa.array([image in chosen for image in images], pa.bool_())
    rest = replace(pairs, places=pairs.places.filter(pc.invert(aside)))
    return rest, replace(pairs, places=pairs.places.filter(aside), lost={})


def read_pairs(pairs: ListedPairs) -> Sequence[TrainingPair]:
    """The pairs; their images are read as they are asked for, by as many threads as like."""
    places = pairs.places.combine_chunks()  # a row of many chunks is slow to find
    opened = lru_cache(maxsize=MAX_OPEN_SHARDS)(open_ranges)
    largest = pc.max(_in_row_groups(places)["num_bytes"]).as_py() or MAX_GROUP_BYTES
    row_group = lru_cache(maxsize=MAX_GROUP_BYTES // largest)(row_group_images)

    def read(row: int) -> TrainingPair:
        place = {name: places[name][row].as_py() for name in PLACES.names}
        url = pairs.urls[place["shard"]]
        payload = _payload(place, url, opened=opened, row_group=row_group)
        digest = hashlib.sha256(payload).hexdigest()
        image = SourceImage(key=f"{url}/{place['sample']}", payload=payload, sha256=digest)
        return TrainingPair(image=image, text=place["text"])

    return LazyRows(range(len(places)), read)


def _payload(
    place: Mapping[str, Any],
    url: str,
    *,
    opened: Callable[[str], Ranges],
    row_group: Callable[[str, int], pa.ChunkedArray],
) -> bytes:
    """The bytes of the image at a place of `PLACES`."""
    if place["row_group"] is None:
        return opened(url).read(offset=place["offset"], num_bytes=place["num_bytes"])
    found: bytes = row_group(url, place["row_group"])[place["row"]].as_py()
    return found


def _digests(pairs: ListedPairs) -> list[bytes]:
    """SHA-256 of each pair's image, shard after shard.

    A shard that lies elsewhere is copied first, as for listing it: a request for each of its images
    would take far longer.
    """
    opened = lru_cache(maxsize=1)(open_shard)
    row_group = lru_cache(maxsize=1)(row_group_images)
    digests, last = list[bytes](), None
    for batch in pairs.places.to_batches(max_chunksize=SAMPLES_AT_ONCE):
        for place in batch.to_pylist():
            if (sample := (place["shard"], place["sample"])) == last:  # another text of it
                digests.append(digests[-1])
                continue
            url, last = pairs.urls[place["shard"]], sample
            payload = _payload(place, url, opened=opened, row_group=row_group)
            digests.append(hashlib.sha256(payload).digest())
    return digests


def _keyed(seed: int, image: bytes) -> bytes:
    return hashlib.blake2b(b"held out/%d/%b" % (seed, image), digest_size=8).digest()


def _places(
    sample: FoundSample, texts_of: TextsOf, shard: int, lost: Counter[str]
) -> Iterator[dict[str, object]]:
    """Rows of `PLACES`; what is no pair is counted."""
    image, texts = sample.image, texts_of(sample.texts)
    if image is None or not texts:
        lost[Reason.IMAGE_MISSING if image is None else Reason.TEXT_MISSING] += 1
        return
    place = {"shard": shard, "sample": sample.name, **asdict(image)}
    for text, written_by in texts:
        yield {**place, "text": text, "written_by": written_by}


def _in_row_groups(places: pa.Table) -> pa.Table:
    """The places of images that are read with all others of their row group."""
    return places.filter(pc.field("row_group").is_valid())


def _warn_of_row_groups(pairs: ListedPairs) -> None:
    """Say it if many images are read to get at one, for training is slow then."""
    slow = _in_row_groups(pairs.places)
    mean_bytes = pc.mean(slow["num_bytes"]).as_py() or 0
    if mean_bytes > COSTLY_BYTES:
        log.warning(
            "%s: %d pairs are in row groups of Parquet that pyarrow reads as a whole, and an image "
            "costs %.1f MB to read; %s",
            pairs.urls[slow["shard"][0].as_py()],
            len(slow),
            mean_bytes / 1e6,
            REWRITE,
        )
