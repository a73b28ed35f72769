"""Batches: who makes them, where a training goes on, and what stands in for a broken image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import pytest
import torch

from capfilt.config import MixingSection
from capfilt.errors import CapfiltError
from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.workers.batches import SourceImage
from capfilt.workers.order import EpochOrder, Share, steps_of
from capfilt.workers.trainer_batches import BatchLoader
from capfilt.workers.trainer_pairs import OrderedPairs, TrainingPair, TrainingSet, all_pairs
from capfilt_blip.augment import Augmentation
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.world import World
from tests.small_run import planted_shards

BROKEN = b"no image"


def pair(number: int, payload: bytes | None = None) -> TrainingPair:
    image = planted_shards()[0][number].image
    assert image is not None
    payload = image[1] if payload is None else payload
    digest = hashlib.sha256(payload).hexdigest()
    source = SourceImage(key=f"key {number}", payload=payload, sha256=digest)
    return TrainingPair(image=source, text=f"text {number}")


PAIRS = [pair(number) for number in range(8)]


@pytest.fixture(scope="module")
def decoder() -> Iterator[ImageDecoder]:
    with ImageDecoder(ImageLimits()) as decoder:
        yield decoder


def loader_of(pairs: Sequence[TrainingPair], decoder: ImageDecoder) -> BatchLoader:
    order = EpochOrder([Share(num_rows=len(pairs))], seed=0)
    return BatchLoader(
        OrderedPairs(rows=pairs, order=order),
        decoder,
        side_px=32,
        augmentation=Augmentation(flip_probability=0.5),
        seed=0,
        device="cpu",
    )


def batches_of(
    decoder: ImageDecoder, *, first: int, stop: int, rank: int = 0, size: int = 1
) -> list[TextImageBatch]:
    world = World(rank=rank, size=size)
    steps = steps_of(first=first, stop=stop, batch_size=4, world=world)
    return list(loader_of(PAIRS, decoder).batches(steps))


def test_two_processes_make_the_same_batches_as_one(decoder: ImageDecoder) -> None:
    whole = batches_of(decoder, first=0, stop=16)
    halves = [batches_of(decoder, first=0, stop=16, rank=rank, size=2) for rank in (0, 1)]
    assert len(whole) == 4
    for batch, left, right in zip(whole, *halves, strict=True):
        assert torch.equal(batch.images, torch.cat([left.images, right.images]))
        assert list(batch.texts) == [*left.texts, *right.texts]


def test_a_training_that_was_killed_and_goes_on_elsewhere_meets_each_pair_once_an_epoch(
    decoder: ImageDecoder,
) -> None:
    parts = [
        batches_of(decoder, first=0, stop=12, rank=0, size=2),
        batches_of(decoder, first=0, stop=12, rank=1, size=2),
        batches_of(decoder, first=12, stop=16),
    ]
    met = [key for part in parts for batch in part for key in batch.image_ids or ()]
    assert sorted(met) == sorted(2 * [pair.image.key for pair in PAIRS])


def test_an_image_is_seen_otherwise_in_every_epoch(decoder: ImageDecoder) -> None:
    seen = {
        (key, image.numpy().tobytes())
        for batch in batches_of(decoder, first=0, stop=16)
        for key, image in zip(batch.image_ids or (), batch.images, strict=True)
    }
    assert len(seen) == 16


def test_a_pair_that_cannot_be_read_is_noted_and_another_one_stands_in(
    decoder: ImageDecoder,
) -> None:
    loader = loader_of([*PAIRS[:3], pair(3, BROKEN)], decoder)
    first, second = loader.batches([range(4), range(4, 8)])
    assert len(first.texts) == len(second.texts) == 4
    assert "text 3" not in {*first.texts, *second.texts}
    assert loader.take_lost() == {"key 3\0text 3": "image_unreadable"}
    assert loader.take_lost() == {}


def test_images_that_are_all_broken_end_the_training(decoder: ImageDecoder) -> None:
    loader = loader_of([pair(0, BROKEN), pair(1, BROKEN)], decoder)
    with pytest.raises(CapfiltError, match=r"16 images in a row .* key \d: image_unreadable \("):
        list(loader.batches([range(2)]))


def test_batches_may_be_left_at_any_time(decoder: ImageDecoder) -> None:
    batches = loader_of(PAIRS, decoder).batches([range(4)] * 1000)
    next(batches)
    batches.close()
    assert len(batches_of(decoder, first=0, stop=4)) == 1


def test_sources_are_mixed_by_their_weights() -> None:
    pairs = TrainingSet(web=PAIRS[:2], synthetic=PAIRS[2:4], human=PAIRS[4:6])
    mixed = all_pairs(pairs, mixing=MixingSection(web=0, human=2), seed=0)
    epoch = sorted(mixed.rows[mixed.order(i)].text for i in range(mixed.order.epoch_size))
    assert epoch == ["text 2", "text 3", "text 4", "text 4", "text 5", "text 5"]
