"""The images of an indexed shard, for the stages that look at them again."""

from __future__ import annotations

from capfilt.io.commits import Table
from capfilt.io.parquet import from_bytes, records_from
from capfilt.io.shards import ShardFile
from capfilt.records import Sample
from capfilt.workers.batches import SourceImage


def readable_samples(table: Table, shard: int) -> list[Sample]:
    """The samples of a shard whose image can be read, in order of key."""
    rows = records_from(from_bytes(table.read(shard), Sample), Sample)
    return [row for row in rows if row.reason is None]


def source_image(file: ShardFile, sample: Sample) -> SourceImage:
    """A sample's image as it stands in the shard, with the digest it must have."""
    assert sample.image_offset is not None
    assert sample.num_bytes is not None
    assert sample.image_sha256 is not None
    payload = file.read(offset=sample.image_offset, num_bytes=sample.num_bytes)
    return SourceImage(key=sample.key, payload=payload, sha256=sample.image_sha256)
