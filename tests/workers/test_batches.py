from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from capfilt.io.images import ImageDecoder, ImageLimits, Refused
from capfilt.io.rows import LazyRows
from capfilt.workers.batches import DecodedBatch, SourceImage, decoded_batches
from tests.small_run import planted_shards

GOOD = [p.image[1] for p in planted_shards()[0][:5] if p.image is not None]


@pytest.fixture(scope="module")
def decoder() -> Iterator[ImageDecoder]:
    with ImageDecoder(ImageLimits()) as decoder:
        yield decoder


def source(payload: bytes, *, sha256: str | None = None) -> SourceImage:
    digest = hashlib.sha256(payload).hexdigest()
    return SourceImage(key=digest, payload=payload, sha256=sha256 or digest)


def batches(
    images: Sequence[SourceImage], decoder: ImageDecoder, *, batch_images: int
) -> list[DecodedBatch[SourceImage]]:
    return list(
        decoded_batches(images, lambda image: image, decoder, batch_images=batch_images, side_px=16)
    )


def test_images_come_in_their_order_and_only_the_last_batch_is_short(decoder: ImageDecoder) -> None:
    images = [source(payload) for payload in GOOD]
    found = batches(images, decoder, batch_images=2)
    assert [len(batch.inputs) for batch in found] == [2, 2, 1]
    assert [image for batch in found for image in batch.inputs] == images
    one_by_one = decoder.pixels(GOOD, side_px=16)
    together = [pixels for batch in found for pixels in batch.pixels]
    assert all(np.array_equal(a, b) for a, b in zip(together, one_by_one, strict=True))


def test_an_image_that_is_not_the_one_indexed_is_never_decoded(decoder: ImageDecoder) -> None:
    changed = source(GOOD[1], sha256="0" * 64)
    [batch] = batches([source(GOOD[0]), changed, source(GOOD[2])], decoder, batch_images=9)
    refused = batch.pixels[1]
    assert isinstance(refused, Refused)
    assert refused.reason == "bytes_changed"
    assert [image.payload for image in batch.readable()[0]] == [GOOD[0], GOOD[2]]


def test_a_batch_may_be_unreadable_as_a_whole(decoder: ImageDecoder) -> None:
    [batch] = batches([source(b"no image")] * 2, decoder, batch_images=2)
    assert batch.readable() == ([], [])


def test_nothing_in_nothing_out(decoder: ImageDecoder) -> None:
    assert batches([], decoder, batch_images=2) == []


def test_one_batch_is_decoded_ahead_and_no_more(decoder: ImageDecoder) -> None:
    read: list[int] = []

    def image(number: int) -> SourceImage:
        read.append(number)
        return source(GOOD[number])

    rows = LazyRows(range(5), image)
    running = decoded_batches(rows, lambda row: row, decoder, batch_images=1, side_px=16)
    next(running)
    running.close()  # waits for what has begun
    assert read == [0, 1]


def test_what_reading_raises_reaches_the_caller(decoder: ImageDecoder) -> None:
    def broken(number: int) -> SourceImage:
        raise OSError("the disk is gone")

    rows = LazyRows(range(3), broken)
    with pytest.raises(OSError, match="the disk is gone"):
        list(decoded_batches(rows, lambda row: row, decoder, batch_images=1, side_px=16))
