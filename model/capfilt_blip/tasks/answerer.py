"""The answerer (VQA): images and questions in, answers out, written or chosen from a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

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
    score_answers,
    write_answers,
)
from capfilt_blip.tasks.asked import check_lists
from capfilt_blip.tasks.placement import Device, Dtype, torch_device, torch_dtype
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import Images, fixed_batches, normalise, to_uint8
from capfilt_blip.vqa import BlipVqa

T = TypeVar("T")


class Answerer:
    """Answers questions. An answer depends on its image and question, not on what is around them.

    Questions are cleaned as in training (`texts.clean_question`) and cut to 35 tokens.

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
        self._device = torch.device(device)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        tokenizer: str | Path | None = None,
        device: Device = "cpu",
        dtype: Dtype = "float32",
    ) -> Answerer:
        """Load a VQA model; source and tokenizer are those of `load_vqa`.

        Raises:
            CheckpointError: the source cannot be read, or is no VQA model.
        """
        model, loaded = load_vqa(source, tokenizer=tokenizer, dtype=torch_dtype(dtype))
        return cls(model, loaded, device=device, dtype=dtype)

    @property
    def image_size_px(self) -> int:
        """Side of the square images that arrays and tensors must hold."""
        return self._model.config.vision.image_size_px

    def answer(
        self,
        images: Images,
        questions: Sequence[Sequence[str]],
        *,
        limits: Limits = ORIGINAL_LIMITS,
        beams: Beams = ORIGINAL_BEAMS,
        batch_size: int = 8,
    ) -> list[list[Answer]]:
        """Write the answers that a beam search finds; the questions share one pass over the image.

        Args:
            images: N images: (N, S, S, 3) uint8 with S = `image_size_px`, or PIL images.
            questions: about each image, N lists of any length.
            limits: on the answers; the default is BLIP's.
            beams: the search; the default is BLIP's. One beam takes the likeliest token always.
            batch_size: images in one pass; memory grows with it. Fewer images are padded to it.

        Returns:
            The answers about each image, in the order of its questions.

        Raises:
            ValueError: there are not as many lists of questions as images.
        """

        def write(memory: Memory) -> list[Answer]:
            return write_answers(self._model, self._tokenizer, memory, limits=limits, beams=beams)

        return self._of_each(images, questions, write, batch_size=batch_size)

    def rank(
        self,
        images: Images,
        questions: Sequence[Sequence[str]],
        *,
        candidates: Sequence[str],
        num_first: int = ORIGINAL_NUM_FIRST,
        batch_size: int = 8,
    ) -> list[list[ChosenAnswer]]:
        """Choose the answers that are likeliest among candidates.

        A candidate must be among the `num_first` with the likeliest first tokens. Of equal ones the
        earlier in the list is chosen.

        Args:
            images: N images, as of `answer`.
            questions: about each image, N lists of any length.
            candidates: answers to choose from, read as they are, in lower case.
            num_first: candidates that come into question.
            batch_size: images in one pass, each with one question and 16 candidates at a time.

        Returns:
            The choices about each image, in the order of its questions.

        Raises:
            ValueError: there are not as many lists of questions as images, or no candidates, or one
                that is longer than the model can read.
        """
        listed = Candidates.of(candidates, tokenizer=self._tokenizer, model=self._model)

        def choose(memory: Memory) -> list[ChosenAnswer]:
            return choose_answers(self._model, memory, candidates=listed, num_first=num_first)

        return self._of_each(images, questions, choose, batch_size=batch_size)

    def rankings(
        self,
        images: Images,
        questions: Sequence[Sequence[str]],
        *,
        candidates: Sequence[str],
        num_first: int = ORIGINAL_NUM_FIRST,
        batch_size: int = 8,
    ) -> list[list[list[ChosenAnswer]]]:
        """Score all of the candidates that `rank` chooses from, with its arguments.

        Returns:
            For each image and question the `num_first` candidates, or all if there are fewer, best
            first.
        """
        listed = Candidates.of(candidates, tokenizer=self._tokenizer, model=self._model)

        def score(memory: Memory) -> list[list[ChosenAnswer]]:
            return score_answers(self._model, memory, candidates=listed, num_first=num_first)

        return self._of_each(images, questions, score, batch_size=batch_size)

    @torch.inference_mode()
    def _of_each(
        self,
        images: Images,
        questions: Sequence[Sequence[str]],
        act: Callable[[Memory], list[T]],
        *,
        batch_size: int,
    ) -> list[list[T]]:
        """Do for each question what `act` does for a batch of them, each with its own image."""
        pixels = to_uint8(images, side_px=self.image_size_px)
        check_lists(questions, pixels, what="questions", each="image")
        done: list[list[T]] = []
        for batch in fixed_batches(pixels, batch_size=batch_size):
            now = questions[len(done) : len(done) + len(batch)]
            done += self._of_batch(batch, now, act)
        return done

    def _of_batch(
        self, pixels: Tensor, questions: Sequence[Sequence[str]], act: Callable[[Memory], list[T]]
    ) -> list[list[T]]:
        """Handle a batch whose last images may be filler, that is without an entry in questions."""
        found: list[list[T]] = [[] for _ in questions]
        image_embeds = self._model.vision(normalise(pixels.to(self._device)))
        image_memory = self._model.text_encoder.project_memory(image_embeds)
        # One question about each image at a time: so every pass has the same shape.
        for number in range(max(map(len, questions))):
            now = [row[number] if number < len(row) else "" for row in questions]
            now += [""] * (len(pixels) - len(now))
            memory = read_questions(self._model, self._tokenizer, now, image_memory=image_memory)
            results = act(memory)
            for row, results_of_image in enumerate(found):
                if number < len(questions[row]):
                    results_of_image.append(results[row])
        return found
