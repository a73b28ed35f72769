from __future__ import annotations

import torch

from capfilt_blip.blip import BlipMatcher
from capfilt_blip.config import BlipConfig
from capfilt_blip.momentum import MomentumEncoder, VectorQueue


def matcher() -> BlipMatcher:
    torch.manual_seed(0)
    config = BlipConfig.tiny(vocab_size=20, image_size_px=16, width=32, text_depth=1, dropout=0.0)
    return BlipMatcher(config)


def push(queue: VectorQueue, *numbers: int) -> None:
    ids = torch.tensor(numbers)
    vectors = ids[:, None].float().repeat(1, 2)
    queue.push(image_vectors=vectors, text_vectors=-vectors, image_ids=ids, text_ids=ids + 100)


def test_average_starts_as_a_copy_and_gives_unit_vectors() -> None:
    model = matcher()
    pixels, ids = torch.randn(2, 3, 16, 16), torch.tensor([[2, 5, 3], [2, 6, 3]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    images, texts = MomentumEncoder(model).encode(pixels, ids, mask)
    assert torch.allclose(images, model.image_vectors(model.vision(pixels)))
    assert torch.allclose(texts, model.text_vectors(ids, mask)) and not texts.requires_grad


def test_update_moves_by_one_minus_the_momentum() -> None:
    model = matcher()
    average = MomentumEncoder(model, momentum=0.75)
    before = average._average.vision_proj.bias.clone()
    with torch.no_grad():
        model.vision_proj.bias.add_(4)
    average.update()
    assert torch.allclose(average._average.vision_proj.bias, before + 1)


def test_queue_drops_the_oldest_pairs() -> None:
    queue = VectorQueue(size=3, width=2)
    push(queue, 1, 2)
    push(queue, 3, 4)
    assert queue.image_ids.tolist() == [2, 3, 4] and queue.text_ids.tolist() == [102, 103, 104]
    assert queue.text_vectors[:, 0].tolist() == [-2, -3, -4]


def test_queue_of_no_size_keeps_nothing() -> None:
    queue = VectorQueue(size=0, width=2)
    push(queue, 1, 2)
    assert queue.image_vectors.shape == (0, 2)


def test_queue_takes_a_batch_larger_than_itself() -> None:
    queue = VectorQueue(size=1, width=2)
    push(queue, 1, 2, 3)
    assert queue.image_ids.tolist() == [3]
