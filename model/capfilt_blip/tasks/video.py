"""Videos without a video model: the tokens of a few frames, one after the other, are the image.

Image models carry over to videos with no training and no notion of time, for the frames are not
told apart (arXiv:2201.12086, sec. 5.6). `frames.read_frames` gives the frames of a file.

Letters: N videos, F frames of one, S image side in pixels, P image tokens of a frame, T texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from capfilt_blip.attention import Memory
from capfilt_blip.blip import BlipMatcher
from capfilt_blip.checkpoint import load_matcher
from capfilt_blip.tasks.placement import Device, Dtype, torch_device, torch_dtype
from capfilt_blip.tasks.reranker import Hits, Reranker, Retrieved
from capfilt_blip.text import TextStack
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import Images, fixed_batches, normalise, to_uint8
from capfilt_blip.vision import VisionTransformer

RETRIEVAL_FRAMES = 8
"""Frames of a video that BLIP takes for retrieval (arXiv:2201.12086, sec. 5.6)."""

QUESTION_FRAMES = 16
"""And for questions (likewise)."""

MSRVTT_CANDIDATES = 128
"""Candidates that BLIP re-ranks on MSRVTT (salesforce/BLIP, configs/retrieval_msrvtt.yaml)."""

_FRAMES_PER_PASS = 8

Videos: TypeAlias = Sequence[Images]
"""N videos, each as its frames, at least one; they need not have equally many. Anything with a
length and [] that decodes a video when it is asked for will do as well."""


class VideoRetriever:
    """Ranks videos for texts and texts for videos. A pair's score depends on the two alone.

    The vector of a video is the mean of those of its frames, before they get length 1; the ITM head
    reads the tokens of all its frames at once. All else, the cost too, is as in `Retriever`; of 8
    frames at 384 px there are 4,616 tokens, whose keys and values take 340 MB in ViT-B and float32.

    Args:
        model: a matcher; it is moved to the device and dtype, and to eval mode.
        tokenizer: the one the model was trained with.
        device: where it computes.
        dtype: what it computes in.
    """

    def __init__(
        self,
        model: BlipMatcher,
        tokenizer: Tokenizer,
        *,
        device: Device = "cpu",
        dtype: Dtype = "float32",
    ) -> None:
        self._model = model.to(torch_device(device), torch_dtype(dtype)).eval()
        self._tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        tokenizer: str | Path | None = None,
        device: Device = "cpu",
        dtype: Dtype = "float32",
    ) -> VideoRetriever:
        """Load a matcher, as `Retriever.from_pretrained` does.

        Raises:
            CheckpointError: the source cannot be read, or is no matcher.
        """
        model, found = load_matcher(source, tokenizer=tokenizer, dtype=torch_dtype(dtype))
        return cls(model, found, device=device, dtype=dtype)

    @property
    def image_size_px(self) -> int:
        """Side of the square frames that arrays and tensors must hold."""
        return self._model.config.vision.image_size_px

    def rank(
        self,
        videos: Videos,
        texts: Sequence[str],
        *,
        num_candidates: int = MSRVTT_CANDIDATES,
        texts_per_pass: int = 32,
    ) -> Retrieved:
        """Rank all texts for each video, and all videos for each text.

        Args:
            videos: N videos, each as frames: (F, S, S, 3) uint8 with S = `image_size_px`, or PIL
                images. BLIP takes RETRIEVAL_FRAMES of each.
            texts: T texts, read as they are, in lower case.
            num_candidates: how many of the nearest are ranked for each query; the others are not.
            texts_per_pass: texts that are read with a video at once; memory grows with it. Fewer
                texts are padded to it.

        Raises:
            ValueError: `num_candidates` is less than 1, or a video has no frames or unfit ones.
        """
        reranker = Reranker(self._model, self._tokenizer, texts_per_pass=texts_per_pass)
        gallery = _VideoGallery(self._model.vision, videos)
        return reranker.rank(gallery, texts, num_candidates=num_candidates)

    def find_videos(
        self,
        videos: Videos,
        texts: Sequence[str],
        *,
        num_candidates: int = MSRVTT_CANDIDATES,
        texts_per_pass: int = 32,
    ) -> Hits:
        """Rank the videos for each text, T queries; the arguments are those of `rank`."""
        reranker = Reranker(self._model, self._tokenizer, texts_per_pass=texts_per_pass)
        gallery = _VideoGallery(self._model.vision, videos)
        return reranker.find_items(gallery, texts, num_candidates=num_candidates)


class _VideoGallery:
    """Videos as items of several frames."""

    def __init__(self, vision: VisionTransformer, videos: Videos) -> None:
        self._vision = vision
        self._videos = videos

    def __len__(self) -> int:
        return len(self._videos)

    def encode(self, places: Sequence[int]) -> Iterator[Tensor]:
        """Yield the tokens of each video, (F, P, width)."""
        for place in places:
            yield frame_tokens(self._vision, frames_of(self._videos, place))


def frames_of(videos: Videos, place: int) -> Images:
    """Return the frames of one video.

    Raises:
        ValueError: there are none.
    """
    frames = videos[place]
    if len(frames) == 0:
        raise ValueError(f"video {place} has no frames; at least 1 is needed")
    return frames


def video_memory(vision: VisionTransformer, text_encoder: TextStack, *, frames: Images) -> Memory:
    """Compute what the text encoder reads of a video: one memory, as if of one image.

    A matcher's `itm_logits` takes it, and so does `BlipVqa.read_questions`: questions about the
    video are then answered as those about an image.

    Args:
        vision: of the same model as the encoder.
        text_encoder: that reads texts together with the video.
        frames: F frames, at least one; BLIP takes QUESTION_FRAMES for questions.

    Returns:
        The memory of I = 1 video, of F * P tokens in the order of the frames.
    """
    tokens = frame_tokens(vision, frames)
    return text_encoder.project_memory(tokens.flatten(0, 1)[None])


def frame_tokens(vision: VisionTransformer, frames: Images) -> Tensor:
    """Encode F frames, which are (F, S, S, 3) uint8 or PIL images, as (F, P, width) tokens."""
    pixels = to_uint8(frames, side_px=vision.config.image_size_px)
    batches = fixed_batches(pixels, batch_size=_FRAMES_PER_PASS)
    device = vision.positions.device
    return torch.cat([vision(normalise(batch.to(device))) for batch in batches])[: len(pixels)]
