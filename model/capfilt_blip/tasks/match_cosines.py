"""The ITC half of matching: vectors of images and texts, and their cosines.

A text is read without its image, so texts of any images share a pass.

Letters: B images of a batch, P image tokens, D width of the image tokens, E shared width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from capfilt_blip.blip import BlipMatcher
from capfilt_blip.tasks.match_rows import TEXT_LENGTHS, TextRow, padded, steady_rows


def image_vectors(model: BlipMatcher, embeds: Tensor) -> Tensor:
    """Map the image tokens of a batch, (B, P, D), to unit vectors, (B, E) float32."""
    first = embeds[:, :1]
    missing = -len(first) % 4 if len(first) > 4 else 0  # see `steady_rows`
    vectors = model.image_vectors(F.pad(first, (0, 0, 0, 0, 0, missing)))
    return vectors[: len(first)].float()


def text_cosines(
    model: BlipMatcher, texts: Sequence[Sequence[TextRow]], vectors: Tensor, *, cls_id: int
) -> list[list[float]]:
    """Compare texts with their images.

    Args:
        model: in eval mode.
        texts: of each image; the last images of a batch may have no entry.
        vectors: (B, E) float32, of the images of the batch.
        cls_id: the token that each text begins with.

    Returns:
        For each image the cosines of its texts, in [-1, 1].
    """
    cosines = [[0.0] * len(of_image) for of_image in texts]
    num_rows = steady_rows(len(vectors))
    for length in TEXT_LENGTHS:
        places = [
            (image, place)
            for image, of_image in enumerate(texts)
            for place, row in enumerate(of_image)
            if row.length == length
        ]
        for start in range(0, len(places), num_rows):
            now = places[start : start + num_rows]
            owners = [image for image, _ in now] + [0] * (num_rows - len(now))
            turn = [texts[image][place] for image, place in now]
            found = _cosine_pass(model, turn, vectors[owners], cls_id=cls_id)
            for (image, place), itc_cos in zip(now, found, strict=False):  # then filler
                cosines[image][place] = itc_cos
    return cosines


def _cosine_pass(
    model: BlipMatcher, turn: Sequence[TextRow], vectors: Tensor, *, cls_id: int
) -> list[float]:
    """Compare texts of one length with the vectors, (rows, E), of their images."""
    ids, mask = padded(turn, num_rows=len(vectors), first_id=cls_id)
    texts = model.text_vectors(ids.to(vectors.device), mask.to(vectors.device)).float()
    found: list[float] = (texts * vectors).sum(-1).clamp(-1, 1).tolist()
    return found
