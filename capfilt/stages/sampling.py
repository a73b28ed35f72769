"""What the captioner is asked: a recipe's caption section, and what a run adds to it."""

from __future__ import annotations

from dataclasses import fields

from capfilt.config import Recipe
from capfilt.workers.protocols import Sampling


def sampling_of(recipe: Recipe, *, round_number: int, batch_images: int) -> Sampling:
    """How captions of a round are drawn.

    Args:
        recipe: the run's.
        round_number: of the bootstrap.
        batch_images: the batch size: the recipe's, or what was found where that is `auto`.
    """
    asked = {field.name for field in fields(Sampling)} - {"batch_images"}
    return Sampling(
        **recipe.caption.model_dump(include=asked),
        batch_images=batch_images,
        seed=recipe.seed,
        round=round_number,
    )
