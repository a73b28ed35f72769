from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from capfilt_blip.config import VisionConfig
from capfilt_blip.vision import VisionAttention, VisionLayer, VisionTransformer, resize_positions

CONFIG = VisionConfig(
    image_size_px=32, patch_size_px=8, width=64, depth=2, num_heads=2, mlp_width=128
)


def test_attention_equals_torchs_own() -> None:
    ours = VisionAttention(width=64, num_heads=4)
    theirs = torch.nn.MultiheadAttention(64, 4, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.qkv.weight.data, ours.qkv.bias.data
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = (
        ours.out.weight.data,
        ours.out.bias.data,
    )
    tokens = torch.randn(3, 17, 64)
    torch.testing.assert_close(ours(tokens), theirs(tokens, tokens, tokens)[0])


def test_an_image_becomes_a_class_token_and_one_token_per_patch() -> None:
    assert VisionTransformer(CONFIG)(torch.randn(2, 3, 32, 32)).shape == (2, 17, 64)


def test_patches_are_read_row_by_row() -> None:
    model = VisionTransformer(dataclasses.replace(CONFIG, depth=0))
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[0, :, :8, 8:16] = 1  # the second patch of the first row
    changed = (model(pixels) - model(torch.zeros_like(pixels)))[0].abs().sum(-1) > 0
    assert changed.nonzero().flatten().tolist() == [2]


def test_a_gradient_reaches_every_weight() -> None:
    model = VisionTransformer(CONFIG)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_images_of_one_batch_do_not_meet() -> None:
    model = VisionTransformer(CONFIG).eval()
    pixels, other = torch.randn(3, 3, 32, 32), torch.randn(3, 3, 32, 32)
    other[1] = pixels[1]
    assert torch.equal(model(pixels)[1], model(other)[1])


def test_a_dropped_path_leaves_tokens_as_they_were_in_training_only() -> None:
    layer = VisionLayer(CONFIG, drop_path=0.999999)
    tokens = torch.randn(4, 5, 64)
    assert torch.equal(layer.train()(tokens), tokens)
    assert not torch.equal(layer.eval()(tokens), tokens)


@pytest.mark.parametrize("side", [3, 4, 7])
def test_positions_are_resized_as_a_grid_without_the_class_token(side: int) -> None:
    positions = torch.randn(1, 17, 6)
    resized = resize_positions(positions, num_tokens=side * side + 1)
    grid = positions[:, 1:].view(1, 4, 4, 6).movedim(-1, 1)
    expected = (
        F.interpolate(grid, size=(side, side), mode="bicubic").movedim(1, -1).reshape(1, -1, 6)
    )
    assert torch.equal(resized[:, :1], positions[:, :1])
    torch.testing.assert_close(resized[:, 1:], expected)
