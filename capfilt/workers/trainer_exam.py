"""What a model can do with pairs that nothing was learnt from, as columns of `models`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from capfilt.errors import CapfiltError
from capfilt.io.images import ImageDecoder, Refused
from capfilt.records import HeldOutCaption, Phase, TrainStep
from capfilt.workers.trainer_pairs import TrainingPair
from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.evaluate.heldout import HeldOut, HeldOutPairs, Measuring, measure_held_out
from capfilt_blip.tasks.captioner import PROMPT
from capfilt_blip.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseExam:
    """Measures the model of a phase, as often as is asked; nothing of the training changes."""

    pairs: HeldOutPairs
    tokenizer: Tokenizer
    measuring: Measuring

    def measure(self, model: Blip | BlipCaptioner | BlipMatcher) -> HeldOut:
        """Measure what a model can do; it is left as it is, its mode too."""
        return measure_held_out(
            model, self.pairs, tokenizer=self.tokenizer, measuring=self.measuring
        )


class Exam:
    """Prepares the same pairs for every phase.

    Args:
        pairs: held out; without any, nothing is measured.
        decoder: of their images; used by `of` alone, and not by anything else meanwhile.
        tokenizer: the models'.
    """

    def __init__(
        self, pairs: Sequence[TrainingPair], decoder: ImageDecoder, tokenizer: Tokenizer
    ) -> None:
        self._pairs = pairs
        self._decoder = decoder
        self._tokenizer = tokenizer

    def of(self, phase: Phase, *, side_px: int) -> PhaseExam | None:
        """Decode all images, before training needs the decoder; None if no pair is held out.

        Args:
            phase: the phase.
            side_px: of an image, as its model sees it. 1,000 images of 224 px are 150 MB.

        Raises:
            CapfiltError: fewer than two of the images can be read.
        """
        if not self._pairs:
            return None
        # Pre-training knows no prompt: its captions begin with the first word.
        measuring = Measuring(prompt="" if phase == "pretrain" else PROMPT)
        pairs = self._read(side_px=side_px)
        return PhaseExam(pairs=pairs, tokenizer=self._tokenizer, measuring=measuring)

    def _read(self, *, side_px: int) -> HeldOutPairs:
        """Decode every image once, and keep the pairs whose image can be read."""
        images, places = list[torch.Tensor](), dict[str, int | None]()
        texts, image_of_text = list[str](), list[int]()
        for i in range(len(self._pairs)):
            pair = self._pairs[i]
            if pair.image.sha256 not in places:
                [seen] = self._decoder.pixels([pair.image.payload], side_px=side_px)
                readable = not isinstance(seen, Refused)
                places[pair.image.sha256] = len(images) if readable else None
                if not isinstance(seen, Refused):
                    images.append(torch.from_numpy(np.array(seen)))
            place = places[pair.image.sha256]
            if place is not None:
                texts.append(pair.text)
                image_of_text.append(place)
        if len(images) < 2:
            raise CapfiltError(
                f"train.held_out_pairs: {len(images)} of the images set aside can be read, and at "
                "least 2 are needed to find one among others; set it higher, or to 0"
            )
        return HeldOutPairs(images=torch.stack(images), texts=texts, image_of_text=image_of_text)


def captions_of(phase: Phase, found: HeldOut) -> tuple[HeldOutCaption, ...]:
    """The captions that were written, as rows of `held_out`."""
    return tuple(
        HeldOutCaption(phase=phase, caption=sample.text, human_texts=sample.references)
        for sample in found.captions
    )


def with_measures(row: TrainStep, found: HeldOut) -> TrainStep:
    """A row of `models` with what was measured after its step."""
    row = replace(row, cider_d=found.cider_d)
    if found.itm is None:
        return row
    (text_1, text_5, text_10), (image_1, image_5, image_10) = found.itm.texts, found.itm.images
    return replace(
        row,
        text_recall_at_1=text_1,
        text_recall_at_5=text_5,
        text_recall_at_10=text_10,
        image_recall_at_1=image_1,
        image_recall_at_5=image_5,
        image_recall_at_10=image_10,
    )
