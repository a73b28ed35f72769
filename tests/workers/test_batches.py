from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from capfilt.io.images import ImageDecoder, ImageLimits, Refused
from capfilt.io.rows import LazyRows
from capfilt.workers.batches import (
    BatchFeeder,
    DecodedBatch,
    SourceImage,
    decoded_batches,
)
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
    rows, images = batch.readable()
    assert (rows, images.shape) == ([], (0, 16, 16, 3))
    assert [seen.reason for seen in batch.pixels if isinstance(seen, Refused)] == [
        "image_unreadable"
    ] * 2


def test_nothing_in_nothing_out(decoder: ImageDecoder) -> None:
    assert batches([], decoder, batch_images=2) == []


class Rows:
    """Shards of rows that note when they are read, and a feeder over them."""

    def __init__(self, decoder: ImageDecoder, *, broken: frozenset[int] = frozenset()) -> None:
        self.read: list[int] = []
        self._changed = threading.Condition()
        self._broken = broken
        self.feeder: BatchFeeder[SourceImage] = BatchFeeder(
            lambda row: row, decoder, batch_images=1, side_px=16
        )

    def shard(self, *numbers: int) -> LazyRows[int, SourceImage]:
        return LazyRows(numbers, self._image)

    def _image(self, number: int) -> SourceImage:
        with self._changed:
            self.read.append(number)
            self._changed.notify_all()
        if number in self._broken:
            raise OSError("the disk is gone")
        return source(GOOD[number % 10])

    def read_in_all(self, num_rows: int) -> list[int]:
        """What was read once so many rows were, and the feeder has nothing more to do."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.read) >= num_rows, timeout=10)
        self.feeder.close()
        return self.read


@pytest.fixture
def rows(decoder: ImageDecoder) -> Iterator[Rows]:
    rows = Rows(decoder)
    yield rows
    rows.feeder.close()


def test_two_batches_are_decoded_ahead_and_no_more(rows: Rows) -> None:
    running = rows.feeder.batches(rows.shard(0, 1, 2, 3, 4))
    next(running)
    assert rows.read_in_all(3) == [0, 1, 2]


def test_decoding_goes_on_into_the_shard_that_comes_next(rows: Rows) -> None:
    at_hand = rows.feeder.batches(rows.shard(0, 1))
    next(at_hand)
    rows.feeder.prepare(rows.shard(10, 11, 12))
    assert rows.read_in_all(3) == [0, 1, 10]


def test_a_shard_prepared_early_waits_for_the_one_at_hand(rows: Rows) -> None:
    at_hand = rows.feeder.batches(rows.shard(0, 1, 2, 3))
    next(at_hand)
    ahead = rows.feeder.prepare(rows.shard(10, 11))
    assert [len(list(at_hand)), len(list(rows.feeder.batches(ahead)))] == [3, 2]
    assert rows.read == [0, 1, 2, 3, 10, 11]


def test_a_prepared_shard_is_decoded_once_and_a_second_time_if_it_is_tried_again(
    rows: Rows,
) -> None:
    ahead = rows.feeder.prepare(rows.shard(0, 1))
    first, again = (
        [batch.images.tolist() for batch in rows.feeder.batches(ahead)] for _ in range(2)
    )
    assert first == again
    assert rows.read == [0, 1, 0, 1]


def test_a_part_of_a_prepared_shard_can_be_worked_on(rows: Rows) -> None:
    ahead = rows.feeder.prepare(rows.shard(0, 1, 2))
    assert [len(ahead), ahead[2].payload] == [3, GOOD[2]]
    [batch] = rows.feeder.batches(ahead[1:2])
    assert [image.payload for image in batch.inputs] == [GOOD[1]]


def test_a_shard_tried_again_keeps_its_own_batches_ahead(rows: Rows) -> None:
    rows.feeder.prepare(rows.shard(10, 11, 12))  # holds both places
    at_hand = rows.feeder.batches(rows.shard(0, 1, 2, 3))
    next(at_hand)
    assert sorted(rows.read_in_all(5)) == [0, 1, 2, 10, 11]


def test_batches_nobody_takes_any_more_make_room(rows: Rows) -> None:
    given_up = rows.feeder.batches(rows.shard(0, 1, 2, 3, 4, 5))
    next(given_up)
    given_up.close()
    assert [b.inputs[0].payload for b in rows.feeder.batches(rows.shard(3, 4))] == GOOD[3:5]
    assert not {4, 5} & set(rows.read[:-2])


def test_what_breaks_in_the_next_shard_leaves_this_one_whole(decoder: ImageDecoder) -> None:
    rows = Rows(decoder, broken=frozenset({10}))
    at_hand = rows.feeder.batches(rows.shard(0, 1, 2))
    next(at_hand)
    ahead = rows.feeder.prepare(rows.shard(10, 11))
    assert len(list(at_hand)) == 2
    with pytest.raises(OSError, match="the disk is gone"):
        list(rows.feeder.batches(ahead))
    rows.feeder.close()


def test_the_model_gets_the_array_that_was_filled_while_decoding(decoder: ImageDecoder) -> None:
    images = [source(GOOD[0]), source(b"no image"), source(GOOD[1])]
    [batch] = batches(images, decoder, batch_images=3)
    _, readable = batch.readable()
    assert readable.shape == (2, 16, 16, 3)
    assert readable.flags.c_contiguous
    assert all(np.shares_memory(p, readable) for p in (batch.pixels[0], batch.pixels[2]))
    assert readable.tolist() == [p.tolist() for p in decoder.pixels(GOOD[:2], side_px=16)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gets_pinned_memory(decoder: ImageDecoder) -> None:
    feeder: BatchFeeder[SourceImage] = BatchFeeder(
        lambda row: row, decoder, batch_images=2, side_px=16, device="cuda"
    )
    [batch] = feeder.batches([source(GOOD[0]), source(GOOD[1])])
    assert torch.from_numpy(batch.images).is_pinned()
    feeder.close()


def test_what_reading_raises_reaches_the_caller(decoder: ImageDecoder) -> None:
    def broken(number: int) -> SourceImage:
        raise OSError("the disk is gone")

    rows = LazyRows(range(3), broken)
    with pytest.raises(OSError, match="the disk is gone"):
        list(decoded_batches(rows, lambda row: row, decoder, batch_images=1, side_px=16))
