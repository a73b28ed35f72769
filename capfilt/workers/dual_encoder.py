"""A CLIP or SigLIP of transformers as the filter.

Image and text are encoded apart and compared by the cosine of their vectors. SigLIP's makes a
probability of it; CLIP's is a cosine and no more.

Letters: B images, T texts in a pass, L tokens of a text, E width of the vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from capfilt.config import DType
from capfilt.errors import CheckpointError
from capfilt.io.images import Fit
from capfilt.workers.hub_model import (
    OFFLINE,
    Square,
    explained,
    load_image_processor,
    load_model,
)
from capfilt.workers.kinds import gives_match_probability
from capfilt.workers.protocols import Asked, ImageArray, TextScores
from capfilt_blip.transforms import fixed_batches

NumberT = TypeVar("NumberT")

_TEXTS_PER_IMAGE = 2
"""Places for texts in a pass, per image: a web text and a synthetic text. More texts take more
passes, so that the shape of a pass, and with it each result, is the same for all."""


class DualEncoder:
    """Scores with two encoders. A score depends on its text and image, not on the batch.

    Args:
        model: in eval mode.
        image_processor: makes its input of pixels.
        tokenizer: makes its input of texts.
        square: what the model is shown of a picture.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        square: Square,
    ) -> None:
        self._square = square
        self._model = model
        self._image_processor = image_processor
        self._tokenizer = tokenizer
        self._gives_probability = gives_match_probability(model.config.model_type)
        positions: int = model.config.text_config.max_position_embeddings
        self._max_text_tokens = min(positions, tokenizer.model_max_length)

    @classmethod
    def from_directory(cls, directory: Path, *, device: str, dtype: DType) -> DualEncoder:
        """Load a filter, and let it score a text about nothing.

        A model that cannot be run would otherwise fail row by row.

        Raises:
            CheckpointError: it cannot be loaded, or does not score.
        """
        model = load_model(AutoModel, directory, device=device, dtype=dtype)
        image_processor, square = load_image_processor(directory)
        if square is None:
            raise CheckpointError(
                f"{directory}: a filter sees squares of one size, and its preprocessor_config.json "
                f"names none: size is {dict(image_processor.size)}"
            )
        with explained(directory, "loaded"):
            tokenizer = AutoTokenizer.from_pretrained(str(directory), **OFFLINE)
        scorer = cls(model, image_processor, tokenizer, square)
        side = scorer.image_size_px
        with explained(directory, "used"):
            scorer.score(np.full((1, side, side, 3), 128, np.uint8), [["a"]], batch_size=2)
        return scorer

    @property
    def image_size_px(self) -> int:
        """Side of the squares it takes."""
        return self._square.side_px

    @property
    def fit(self) -> Fit:
        """How a picture is brought into such a square."""
        return self._square.fit

    def score(
        self, images: ImageArray, texts: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[TextScores]:
        """Score texts against their images; see `protocols.TextScorer`."""
        scores: list[TextScores] = []
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        for batch in fixed_batches(pixels, batch_size=batch_size):
            scores += self._score_batch(batch, texts[len(scores) : len(scores) + len(batch)])
        return scores

    def begin(self, *, batch_size: int) -> DualEncoderScoring:
        """Begin to score; see `protocols.TextScorer`."""
        return DualEncoderScoring(self, batch_size=batch_size)

    def best_order(self, texts: Sequence[Sequence[str]]) -> Sequence[int]:
        """As they come: all texts are padded to one length."""
        return range(len(texts))

    def flops(self, scores: Sequence[TextScores]) -> None:
        """Not counted: each architecture has its own count."""

    @torch.inference_mode()
    def _score_batch(self, pixels: Tensor, texts: Sequence[Sequence[str]]) -> list[TextScores]:
        """Score a batch whose last images may be filler, that is without an entry in `texts`."""
        image_vectors = self._image_vectors(pixels)[: len(texts)]
        counts = [len(of_image) for of_image in texts]
        together = list(chain.from_iterable(texts))
        cosines = torch.zeros(0)
        if together:
            text_vectors = self._text_vectors(together, num_places=_TEXTS_PER_IMAGE * len(pixels))
            owners = image_vectors.repeat_interleave(torch.tensor(counts), dim=0)
            cosines = (owners * text_vectors).sum(-1).clamp(-1, 1)
        numbers = zip(
            image_vectors.tolist(),
            _shared_out(self._probabilities(cosines), counts),
            _shared_out(cosines.tolist(), counts),
            _shared_out(self._num_tokens(together), counts),
            strict=True,
        )
        return [
            TextScores(itm_prob=itm, itc_cos=itc, num_tokens=lengths, image_vector=vector)
            for vector, itm, itc, lengths in numbers
        ]

    def _image_vectors(self, pixels: Tensor) -> Tensor:
        """(B, E) float32 unit vectors, on the CPU."""
        images = [Image.fromarray(image) for image in pixels.numpy()]
        inputs = self._image_processor(images, return_tensors="pt")
        inputs = inputs.to(self._model.device, self._model.dtype)
        return _unit(self._model.get_image_features(**inputs))

    def _text_vectors(self, texts: Sequence[str], *, num_places: int) -> Tensor:
        """(number of texts, E) float32 unit vectors, on the CPU; passes of T = num_places."""
        vectors = []
        for start in range(0, len(texts), num_places):
            now = list(texts[start : start + num_places])
            inputs = self._tokenizer(
                now + [""] * (num_places - len(now)),
                padding="max_length",  # what SigLIP was trained with; CLIP does not mind
                truncation=True,
                max_length=self._max_text_tokens,
                return_tensors="pt",
            ).to(self._model.device)
            vectors.append(_unit(self._model.get_text_features(**inputs))[: len(now)])
        return torch.cat(vectors)

    def _probabilities(self, cosines: Tensor) -> Sequence[float | None]:
        """Of each pair, the probability that it belongs together (arXiv:2303.15343, sec. 3.2)."""
        if not self._gives_probability:
            return [None] * len(cosines)
        scale = self._model.logit_scale.float().cpu().exp()
        probabilities: list[float] = (
            (cosines * scale + self._model.logit_bias.float().cpu()).sigmoid().tolist()
        )
        return probabilities

    def _num_tokens(self, texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        whole = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return [len(ids) for ids in whole["input_ids"]]


class DualEncoderScoring:
    """Scoring under way: each batch is done when it is there.

    Args:
        scorer: the model.
        batch_size: images in one pass.
    """

    def __init__(self, scorer: DualEncoder, *, batch_size: int) -> None:
        self._scorer = scorer
        self._batch_size = batch_size

    def add(
        self,
        images: ImageArray,
        texts: Sequence[Sequence[str]],
        *,
        asked: Asked | None = None,  # a probability costs nothing
    ) -> list[TextScores]:
        """Score a batch; see `protocols.Scoring`."""
        return self._scorer.score(images, texts, batch_size=self._batch_size)

    def finish(self) -> None:
        """Nothing was put off."""


def _unit(features: Tensor | BaseModelOutputWithPooling) -> Tensor:
    """Unit vectors in float32, on the CPU; some versions of transformers give more than vectors."""
    vectors = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(vectors.float().cpu(), dim=-1)


def _shared_out(numbers: Sequence[NumberT], counts: Sequence[int]) -> Iterator[Sequence[NumberT]]:
    """The numbers of all texts, cut into those of each image."""
    end = 0
    for count in counts:
        start, end = end, end + count
        yield numbers[start:end]
