from __future__ import annotations

import hashlib

import pytest

import capfilt.workers.inspect
from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.workers.inspect import InspectWorker, chunks
from tests.small_run import planted_shards

GOOD = planted_shards()[0][0].image


def test_every_image_is_answered_in_its_place() -> None:
    assert GOOD is not None
    worker = InspectWorker(ImageDecoder(ImageLimits()))
    missing, good, broken = worker([None, GOOD[1], b"no image"])
    worker.close()
    assert (missing.reason, missing.sha256) == ("image_missing", None)
    assert (good.reason, good.image_format, good.width_px, good.height_px) == (None, "JPEG", 48, 48)
    assert good.sha256 == hashlib.sha256(GOOD[1]).hexdigest()
    assert (broken.reason, broken.width_px, broken.phash) == ("image_unreadable", None, None)
    assert broken.sha256 == hashlib.sha256(b"no image").hexdigest()


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([1, 1, 1, 1], [[1, 1, 1], [1]]),
        ([4, 7, 1, 30, 2], [[4, 7], [1, 30], [2]]),
    ],
)
def test_images_in_memory_are_bounded_by_number_and_by_bytes(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], expected: list[list[int]]
) -> None:
    monkeypatch.setattr(capfilt.workers.inspect, "CHUNK_IMAGES", 3)
    monkeypatch.setattr(capfilt.workers.inspect, "CHUNK_BYTES", 10)
    found = chunks([bytes(length) for length in lengths])
    assert [[len(image or b"") for image in chunk] for chunk in found] == expected
