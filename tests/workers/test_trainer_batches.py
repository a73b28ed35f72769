"""Batches: who makes them, where a training goes on, and what stands in for a broken image."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from capfilt.config import MixingSection
from capfilt.errors import CapfiltError
from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.workers.batches import SourceImage
from capfilt.workers.order import EpochOrder, Share, steps_of
from capfilt.workers.trainer_batches import TRAINING_PIXELS, BatchLoader
from capfilt.workers.trainer_pairs import OrderedPairs, TrainingPair, TrainingSet, all_pairs
from capfilt.workers.trainer_pixels import write_orders
from capfilt_blip.augment import Augmentation, augment, draw_plan, finish, position_keys
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.world import World
from tests.small_run import planted_shards

BROKEN = b"no image"
KEYS = position_keys(range(20), seed=0)
CHANGES = Augmentation(flip_probability=0.5)


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
    with ImageDecoder(ImageLimits(), part=TRAINING_PIXELS) as decoder:
        yield decoder


def loader_of(pairs: Sequence[TrainingPair], decoder: ImageDecoder) -> BatchLoader:
    order = EpochOrder([Share(num_rows=len(pairs))], seed=0)
    return BatchLoader(
        OrderedPairs(rows=pairs, order=order),
        decoder,
        side_px=32,
        augmentation=CHANGES,
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


def test_samples_with_the_same_bytes_are_one_image(decoder: ImageDecoder) -> None:
    first, other = pair(0), pair(1)
    again = replace(first, image=replace(first.image, key="another name"))
    batch = next(loader_of([first, other, again], decoder).batches([range(3)]))
    assert batch.image_ids is not None
    assert Counter(Counter(batch.image_ids).values()) == {2: 1, 1: 1}


def images_of(decoder: ImageDecoder) -> torch.Tensor:
    return torch.cat([batch.images for batch in batches_of(decoder, first=0, stop=16)])


def test_children_make_the_pixels_that_this_process_would_make(decoder: ImageDecoder) -> None:
    batches = batches_of(decoder, first=0, stop=16)
    payloads = {pair.image.sha256: pair.image.payload for pair in PAIRS}
    names = [name for batch in batches for name in batch.image_ids or ()]
    expected = augment(
        [Image.open(io.BytesIO(payloads[name])) for name in names],
        side_px=32,
        keys=position_keys(range(16), seed=0),
        augmentation=CHANGES,
    )
    assert np.array_equal(torch.cat([batch.images for batch in batches]), expected)


def test_batches_do_not_depend_on_the_number_of_children(decoder: ImageDecoder) -> None:
    with ImageDecoder(ImageLimits(), num_processes=3, part=TRAINING_PIXELS) as several:
        assert torch.equal(images_of(several), images_of(decoder))


def test_a_child_that_is_killed_changes_no_batch(decoder: ImageDecoder) -> None:
    expected = images_of(decoder)
    os.kill(decoder.pids[0], signal.SIGKILL)
    assert torch.equal(images_of(decoder), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_children_do_without_torch(decoder: ImageDecoder) -> None:
    images_of(decoder)
    mapped = Path("/proc", str(decoder.pids[0]), "maps").read_text()
    assert "PIL" in mapped and "torch" not in mapped


def changed_by(
    decoder: ImageDecoder, image: bytes, *, key: str, augmentation: Augmentation
) -> np.ndarray:
    place = np.zeros((32, 32, 3), np.uint8)
    assert decoder.fill([place], [image], write_orders([key], augmentation)) == [None]
    return place


def jpeg(width_px: int, height_px: int, **options: object) -> bytes:
    small = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((width_px, height_px), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def test_a_crop_is_cut_out_of_the_stored_picture_and_turned_upright(decoder: ImageDecoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image = jpeg(120, 90, exif=exif.tobytes())
    plan = draw_plan("a", augmentation=CHANGES, width_px=120, height_px=90)
    assert plan.window is not None
    cut = Image.open(io.BytesIO(image)).crop(plan.window.edges)
    upright = cut.transpose(Image.Transpose.ROTATE_270)
    expected = finish(plan, upright.resize((32, 32), Image.Resampling.BICUBIC))
    found = changed_by(decoder, image, key="a", augmentation=CHANGES)
    assert np.array_equal(found, expected)


def test_a_jpeg_is_scaled_while_decoded_only_where_the_crop_keeps_enough(
    decoder: ImageDecoder,
) -> None:
    image, how = jpeg(160, 160), Augmentation(num_operations=0)
    plans = [draw_plan(key, augmentation=how, width_px=160, height_px=160) for key in KEYS]
    # Half of the picture's size must leave 1.9 * 32 px = 61 of the crop: 122 of 160 before.
    enough = [
        plan.window is not None and min(plan.window.width_px, plan.window.height_px) >= 122
        for plan in plans
    ]
    with ImageDecoder(ImageLimits(), decoding="scaled", part=TRAINING_PIXELS) as scaled:
        pairs = [
            [
                changed_by(each, image, key=key, augmentation=how).astype(int)
                for each in (scaled, decoder)
            ]
            for key in KEYS
        ]
    assert [not np.array_equal(a, b) for a, b in pairs] == enough and 3 < sum(enough) < 17
    assert max(np.abs(a - b).mean() for a, b in pairs) < 3


def test_a_training_that_was_killed_and_goes_on_elsewhere_meets_each_pair_once_an_epoch(
    decoder: ImageDecoder,
) -> None:
    parts = [
        batches_of(decoder, first=0, stop=12, rank=0, size=2),
        batches_of(decoder, first=0, stop=12, rank=1, size=2),
        batches_of(decoder, first=12, stop=16),
    ]
    met = [key for part in parts for batch in part for key in batch.image_ids or ()]
    assert sorted(met) == sorted(2 * [pair.image.sha256 for pair in PAIRS])


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
