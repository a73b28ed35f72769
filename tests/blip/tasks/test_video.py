from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from capfilt_blip.blip import BlipMatcher
from capfilt_blip.tasks.retriever import Retriever
from capfilt_blip.tasks.video import VideoRetriever, video_memory
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import normalise

Pixels = NDArray[np.uint8]
TEXTS = ["a red circle", "two small triangles", "a star", "green"]


@pytest.fixture
def retriever(matcher: BlipMatcher, tokenizer: Tokenizer) -> VideoRetriever:
    return VideoRetriever(matcher, tokenizer)


@pytest.fixture
def videos() -> list[Pixels]:
    """Four videos of 3, 8, 1 and 11 frames."""
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for n in (3, 8, 1, 11)]


@torch.no_grad()
def test_scores_are_those_of_one_video_and_one_text_at_a_time(
    retriever: VideoRetriever, matcher: BlipMatcher, tokenizer: Tokenizer, videos: list[Pixels]
) -> None:
    found = retriever.rank(videos, TEXTS).texts
    for video, places, scores in zip(videos, found.indices, found.scores, strict=True):
        tokens = [matcher.vision(normalise(torch.from_numpy(frame[None]))) for frame in video]
        mean = sum(matcher.vision_proj(of_frame[:, 0]) for of_frame in tokens) / len(tokens)
        vector = F.normalize(torch.as_tensor(mean), dim=-1)
        memory = matcher.text_encoder.project_memory(torch.cat(tokens, dim=1))
        for place, score in zip(places, scores, strict=True):
            fused = tokenizer.encode([TEXTS[place]], first="enc", max_tokens=35)
            lone = tokenizer.encode([TEXTS[place]], first="cls", max_tokens=35)
            expected = matcher.itm_logits(fused.ids, fused.mask, memory)[0, 1]
            expected = expected + (matcher.text_vectors(lone.ids, lone.mask) @ vector.T)[0, 0]
            assert score.item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_video_of_one_frame_is_an_image(
    retriever: VideoRetriever, matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels
) -> None:
    as_videos = retriever.rank(images[:, None], TEXTS)  # type: ignore[arg-type]  # a sequence, too
    as_images = Retriever(matcher, tokenizer).rank(images, TEXTS)
    assert torch.equal(as_videos.images.indices, as_images.images.indices)
    assert torch.allclose(as_videos.images.scores, as_images.images.scores, atol=1e-4)


def test_the_order_of_frames_means_nothing(retriever: VideoRetriever, videos: list[Pixels]) -> None:
    forth = retriever.rank(videos, TEXTS)
    back = retriever.rank([video[::-1].copy() for video in videos], TEXTS)
    assert torch.allclose(forth.texts.scores, back.texts.scores, atol=1e-4)


def test_every_frame_counts(retriever: VideoRetriever, videos: list[Pixels]) -> None:
    [whole] = retriever.find_videos(videos[3:], TEXTS[:1]).scores
    for frame in range(11):
        [less] = retriever.find_videos([np.delete(videos[3], frame, axis=0)], TEXTS[:1]).scores
        assert not torch.allclose(whole, less, atol=1e-5)


def test_a_score_does_not_depend_on_the_other_videos(
    retriever: VideoRetriever, videos: list[Pixels]
) -> None:
    together = retriever.rank(videos, TEXTS).texts
    for place, video in enumerate(videos):
        [alone] = retriever.rank([video], TEXTS).texts.scores
        assert torch.equal(alone, together.scores[place])


def test_videos_of_a_text_are_that_part_of_both(
    retriever: VideoRetriever, videos: list[Pixels]
) -> None:
    both = retriever.rank(videos, TEXTS, num_candidates=2).images
    found = retriever.find_videos(videos, TEXTS, num_candidates=2)
    assert torch.equal(found.indices, both.indices)
    assert torch.equal(found.scores, both.scores)


def test_frames_may_be_images_of_any_size(retriever: VideoRetriever) -> None:
    frames = [Image.new("RGB", (90, 50), colour) for colour in ("red", "blue")]
    squashed = np.stack([np.asarray(frame.resize((32, 32))) for frame in frames])
    plain = retriever.rank([squashed], TEXTS).texts.scores
    assert torch.equal(retriever.rank([frames], TEXTS).texts.scores, plain)


def test_a_video_without_frames_is_refused(retriever: VideoRetriever, videos: list[Pixels]) -> None:
    with pytest.raises(ValueError, match="video 1 has no frames; at least 1 is needed"):
        retriever.rank([videos[0], videos[1][:0]], TEXTS)


@torch.no_grad()
def test_the_memory_of_a_video_holds_its_frames_in_order(
    matcher: BlipMatcher, videos: list[Pixels]
) -> None:
    vision, encoder = matcher.vision, matcher.text_encoder
    memory = video_memory(vision, encoder, frames=videos[3])
    num_tokens = matcher.config.vision.num_tokens
    assert len(memory) == 1
    for place, frame in enumerate(torch.from_numpy(videos[3])):
        alone = encoder.project_memory(vision(normalise(frame[None])))
        mine = slice(place * num_tokens, (place + 1) * num_tokens)
        for kv, kv_alone in zip(memory.layers, alone.layers, strict=True):
            assert torch.allclose(kv[0][:, :, mine], kv_alone[0], atol=1e-4)
            assert torch.allclose(kv[1][:, :, mine], kv_alone[1], atol=1e-4)
