"""The video answerer: videos and questions in, answers out, by a model that learned from images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from capfilt_blip.attention import Memory
from capfilt_blip.beam import Beams
from capfilt_blip.checkpoint import load_vqa
from capfilt_blip.choosing import Candidates
from capfilt_blip.decode import Limits
from capfilt_blip.tasks.answers import (
    ORIGINAL_BEAMS,
    ORIGINAL_LIMITS,
    ORIGINAL_NUM_FIRST,
    Answer,
    ChosenAnswer,
    choose_answers,
    read_questions,
    write_answers,
)
from capfilt_blip.tasks.asked import check_lists
from capfilt_blip.tasks.placement import Device, Dtype, torch_device, torch_dtype
from capfilt_blip.tasks.video import Videos, frames_of, video_memory
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.vqa import BlipVqa

T = TypeVar("T")


class VideoAnswerer:
    """Answers questions about videos. An answer depends on its video and question alone.

    The question encoder reads the tokens of all frames at once, as if they were one image
    (arXiv:2201.12086, sec. 5.6); all else is as in `Answerer`. Videos are handled one by one: of 16
    frames at 480 px there are 14,416 tokens, whose keys and values take 1.1 GB in ViT-B and
    float32.

    Args:
        model: a VQA model; it is moved to the device and dtype, and to eval mode.
        tokenizer: the one the model was trained with.
        device: where it computes.
        dtype: what it computes in.
    """

    def __init__(
        self,
        model: BlipVqa,
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
    ) -> VideoAnswerer:
        """Load a VQA model; source and tokenizer are those of `load_vqa`.

        Raises:
            CheckpointError: the source cannot be read, or is no VQA model.
        """
        model, loaded = load_vqa(source, tokenizer=tokenizer, dtype=torch_dtype(dtype))
        return cls(model, loaded, device=device, dtype=dtype)

    @property
    def image_size_px(self) -> int:
        """Side of the square frames that arrays and tensors must hold."""
        return self._model.config.vision.image_size_px

    def answer(
        self,
        videos: Videos,
        questions: Sequence[Sequence[str]],
        *,
        limits: Limits = ORIGINAL_LIMITS,
        beams: Beams = ORIGINAL_BEAMS,
    ) -> list[list[Answer]]:
        """Write the answers that a beam search finds; the questions share one pass over the video.

        Args:
            videos: N videos, each as frames: (F, S, S, 3) uint8 with S = `image_size_px`, or PIL
                images. BLIP takes `video.QUESTION_FRAMES` of each.
            questions: about each video, N lists of any length.
            limits: on the answers; the default is BLIP's.
            beams: the search; the default is BLIP's.

        Returns:
            The answers about each video, in the order of its questions.

        Raises:
            ValueError: there are not as many lists of questions as videos, or a video has no frames
                or unfit ones.
        """

        def write(memory: Memory) -> list[Answer]:
            return write_answers(self._model, self._tokenizer, memory, limits=limits, beams=beams)

        return list(self._of_each(videos, questions, write))

    def rank(
        self,
        videos: Videos,
        questions: Sequence[Sequence[str]],
        *,
        candidates: Sequence[str],
        num_first: int = ORIGINAL_NUM_FIRST,
    ) -> list[list[ChosenAnswer]]:
        """Choose the answers that are likeliest among candidates, as `Answerer.rank` does.

        Args:
            videos: N videos, as of `answer`.
            questions: about each video, N lists of any length.
            candidates: answers to choose from, read as they are, in lower case.
            num_first: candidates that come into question, those with the likeliest first tokens.

        Returns:
            The choices about each video, in the order of its questions.

        Raises:
            ValueError: as of `answer`; or there are no candidates, or one that is too long.
        """
        tokens = Candidates.of(candidates, tokenizer=self._tokenizer, model=self._model)

        def choose(memory: Memory) -> list[ChosenAnswer]:
            return choose_answers(self._model, memory, candidates=tokens, num_first=num_first)

        return list(self._of_each(videos, questions, choose))

    def _of_each(
        self,
        videos: Videos,
        questions: Sequence[Sequence[str]],
        act: Callable[[Memory], list[T]],
    ) -> Iterator[list[T]]:
        """Yield for each video what `act` makes of each of its questions."""
        check_lists(questions, videos, what="questions", each="video")
        for place, asked in enumerate(questions):
            yield self._of_video(videos, place, asked, act)

    @torch.inference_mode()
    def _of_video(
        self, videos: Videos, place: int, questions: Sequence[str], act: Callable[[Memory], list[T]]
    ) -> list[T]:
        encoder = self._model.text_encoder
        frames = video_memory(self._model.vision, encoder, frames=frames_of(videos, place))
        answers: list[T] = []
        # One at a time, so that every pass has the same shape.
        for question in questions:
            asked = [question]
            memory = read_questions(self._model, self._tokenizer, asked, image_memory=frames)
            answers += act(memory)
        return answers
