"""Batch sizes a run has found for itself: recorded once, then part of its plans as plain numbers.

    <run>/tuning/caption-<key>.json    created exclusively: of two drivers the first one wins

The key stands for what was measured: the model, its number format and the shape of what it is
asked. The device is not in it: a run that goes on elsewhere keeps the size it began with, since
another could change the last bit of a result, and a laptop can decide over what a cluster scored.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from capfilt.batch_size import Budget, Trial, gib
from capfilt.config import CaptionSection, Recipe, ScoreSection
from capfilt.errors import StorageError
from capfilt.io.storage import OccupiedError, Store
from capfilt.lineage import Plan, canonical_json

ROLES = {"caption": "captioner", "score": "filter"}
"""Stages with a batch size to tune, and the role of their model."""

AUTO = "auto"

Setting = str | int | None
"""Of what was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """A batch size that was found by measuring, with what it rests on."""

    stage: str
    settings: Mapping[str, Setting]  # what was measured; its digest is in the file's name
    batch_images: int
    device: str
    budget: Budget
    trials: tuple[Trial, ...]
    ended: str  # why no larger size was tried
    v: Literal[1] = 1  # of this format

    def __post_init__(self) -> None:
        """A size without its trial was not measured."""
        if all(trial.batch_images != self.batch_images for trial in self.trials):
            raise ValueError(f"{self.stage}: no trial of {self.batch_images} images per batch")

    def describe(self) -> str:
        """One line: the size, its speed, and its memory beside the budget."""
        chosen = next(t for t in self.trials if t.batch_images == self.batch_images)
        filled, budget = chosen.memory_bytes or 0, self.budget.worker_bytes
        return (
            f"{self.stage}: {self.batch_images} images per batch (tuned: "
            f"{chosen.images_per_s:.3g} images/s, {gib(filled).removesuffix(' GiB')} of "
            f"{gib(budget)})"
        )


def is_auto(recipe: Recipe, stage: str) -> bool:
    """Whether a stage is to find its batch size by measuring."""
    return stage in ROLES and _section(recipe, stage).batch_images == AUTO


def settings_of(recipe: Recipe, stage: str, *, model: str) -> dict[str, Setting]:
    """What the speed and memory of a batch depend on, the device aside.

    Args:
        recipe: the run's.
        stage: one of `ROLES`.
        model: its digest.
    """
    caption = recipe.caption
    if stage == "score":
        texts = 1 + caption.num_captions  # the web's, and the captioner's
        return {"model": model, "dtype": recipe.score.dtype, "texts": texts}
    return {
        "model": model,
        "dtype": caption.dtype,
        "image_size_px": caption.image_size_px,
        "max_new_tokens": caption.max_new_tokens,
        "num_captions": caption.num_captions,
        "prompt": caption.prompt,
    }


def recorded_sizes(recipe: Recipe, store: Store, models: Mapping[str, str]) -> dict[str, Tuned]:
    """The sizes this run has found, of the stages that ask for it; by stage.

    Args:
        recipe: the run's.
        store: its folder.
        models: digest of the captioner and of the filter, by role.
    """
    found: dict[str, Tuned] = {}
    for stage, role in ROLES.items():
        path = _path(stage, settings_of(recipe, stage, model=models[role]))
        if is_auto(recipe, stage) and store.exists(path):
            found[stage] = _read(store, path)
    return found


def record(store: Store, tuned: Tuned) -> None:
    """Put a size on record; one that is there already stays, whoever wrote it."""
    payload = (canonical_json(asdict(tuned)) + "\n").encode()
    try:
        store.put_new(_path(tuned.stage, tuned.settings), payload)
    except OccupiedError:
        return  # another driver was first, and its size is in use


def with_sizes(recipe: Recipe, tuned: Mapping[str, Tuned]) -> Recipe:
    """The recipe as if the user had written the numbers."""
    numbers = {
        stage: _section(recipe, stage).model_copy(update={"batch_images": found.batch_images})
        for stage, found in tuned.items()
    }
    return recipe.model_copy(update=numbers)


def batch_images_of(plan: Plan) -> int:
    """The batch size a plan fixes, whoever chose it."""
    size = plan.options["batch_images"]
    assert isinstance(size, int), f"{plan.stage}: batch_images is {size!r} after tuning"
    return size


def _section(recipe: Recipe, stage: str) -> CaptionSection | ScoreSection:
    return recipe.caption if stage == "caption" else recipe.score


def _path(stage: str, settings: Mapping[str, Setting]) -> str:
    digest = hashlib.sha256(canonical_json(settings).encode()).hexdigest()
    return f"tuning/{stage}-{digest[:12]}.json"


def _read(store: Store, path: str) -> Tuned:
    try:
        return _adapter().validate_json(store.read(path))
    except ValidationError as error:
        raise StorageError(
            f"{store.url}/{path}: cannot be understood; restore it, or set the batch_images it "
            "held in the recipe"
        ) from error


@functools.cache
def _adapter() -> TypeAdapter[Tuned]:
    return TypeAdapter(Tuned)
