from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from capfilt.errors import CheckpointError
from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.records import Caption
from capfilt.workers.batches import SourceImage
from capfilt.workers.caption import CaptionWorker, load_captioner
from capfilt.workers.protocols import ImageCaptioner, Sampling
from tests.small_run import planted_shards

SAMPLING = Sampling(
    num_captions=1, prompt=None, top_p=0.9, top_k=0, temperature=1.0,
    repetition_penalty=1.0, min_new_tokens=1, max_new_tokens=6, batch_images=3, seed=0, round=0,
)  # fmt: skip


def loaded(directory: Path, sampling: Sampling = SAMPLING) -> ImageCaptioner:
    return load_captioner(
        directory, device="cpu", dtype="float32", num_threads=1, image_size_px=None,
        sampling=sampling,
    )  # fmt: skip


@pytest.fixture(scope="module")
def worker(models: Path) -> Iterator[CaptionWorker]:
    worker = CaptionWorker(loaded(models / "captioner"), ImageDecoder(ImageLimits()), SAMPLING)
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def images() -> list[SourceImage]:
    payloads = [p.image[1] for p in planted_shards()[0][:7] if p.image is not None]
    return [
        SourceImage(key=f"{i:032x}", payload=payload, sha256=hashlib.sha256(payload).hexdigest())
        for i, payload in enumerate(payloads)
    ]


def test_captions_come_in_the_order_of_their_images(
    worker: CaptionWorker, images: list[SourceImage]
) -> None:
    rows = worker(images)
    assert [[c.key for c in captions] for captions in rows] == [[image.key] for image in images]
    assert len({captions[0].text for captions in rows}) > 4


def test_a_caption_does_not_depend_on_its_batch_mates(
    worker: CaptionWorker, images: list[SourceImage]
) -> None:
    together = worker(images)
    assert [worker([image])[0] for image in images] == together
    assert worker(images[::-1])[::-1] == together


def test_a_broken_image_has_a_reason_and_changes_no_neighbour(
    worker: CaptionWorker, images: list[SourceImage]
) -> None:
    broken = SourceImage(key="b" * 32, payload=b"", sha256=hashlib.sha256().hexdigest())
    [first, refused, second] = worker([images[0], broken, images[1]])
    assert [first, second] == worker(images[:2])
    [row] = refused
    assert (row.key, row.text, row.reason) == ("b" * 32, None, "image_unreadable")


def test_a_shard_without_images_has_no_captions(worker: CaptionWorker) -> None:
    captions: list[list[Caption]] = worker([])
    assert captions == []


def test_a_directory_without_a_captioner_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path}"):
        loaded(tmp_path)
