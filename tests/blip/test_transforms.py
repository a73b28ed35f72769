from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from capfilt_blip.transforms import (
    fixed_batches,
    normalise,
    to_device,
    to_uint8,
)


def test_normalised_white_and_black_are_those_of_clip() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 4, 4, 3)
    black, white = normalise(images)
    # (0 - mean) / std and (1 - mean) / std of the red channel, by hand.
    assert black[0, 0, 0].item() == pytest.approx(-0.48145466 / 0.26862954, abs=1e-5)
    assert white[0, 0, 0].item() == pytest.approx((1 - 0.48145466) / 0.26862954, abs=1e-5)
    assert normalise(images).shape == (2, 3, 4, 4)


def test_pil_images_are_squashed_bicubically_without_a_crop() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8))
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(to_uint8([image], side_px=32)[0].numpy(), expected)


def test_a_grey_image_becomes_red_green_blue() -> None:
    assert to_uint8([Image.new("L", (5, 5), 9)], side_px=8).shape == (1, 8, 8, 3)


def test_an_array_may_be_turned_round() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    turned = to_uint8(images[::-1, :, ::-1], side_px=8)
    assert np.array_equal(turned.numpy(), images[:, :, ::-1])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (Image.new("RGB", (5, 5)), r"one picture was given .* write \[picture\]"),
        (["cat.jpg"], r"images\[0\] is a str; give PIL images"),
    ],
)
def test_what_is_no_list_of_pictures_is_refused(images: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_uint8(images, side_px=8)  # type: ignore[arg-type]  # the point of the test


def test_no_images_are_an_empty_tensor() -> None:
    assert to_uint8([], side_px=8).shape == (0, 8, 8, 3)


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8, 3)), np.zeros((2, 9, 9, 3), np.uint8)])
def test_an_array_of_another_shape_or_dtype_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"this model takes torch.uint8 of shape \(N, 8, 8, 3\)"):
        to_uint8(images, side_px=8)


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(1, [2, 2, 2]), (2, [2, 2, 2]), (4, [4, 4]), (9, [9])]
)
def test_all_batches_have_the_same_shape(batch_size: int, sizes: list[int]) -> None:
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 2, 2, 3)
    batches = list(fixed_batches(images, batch_size=batch_size))
    assert [len(batch) for batch in batches] == sizes


def test_the_last_batch_repeats_its_first_image() -> None:
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 2, 2, 3)
    *_, last = fixed_batches(images, batch_size=3)
    assert last[:, 0, 0, 0].tolist() == [3, 4, 3]


def test_a_full_batch_is_not_copied_so_that_pinned_memory_stays_pinned() -> None:
    images = torch.zeros((5, 2, 2, 3), dtype=torch.uint8)
    first, _ = fixed_batches(images, batch_size=3)
    assert first.data_ptr() == images.data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_pinned_images_arrive_on_the_gpu_as_they_were() -> None:
    images = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8).pin_memory()
    assert torch.equal(to_device(images, torch.device("cuda")).cpu(), images)
