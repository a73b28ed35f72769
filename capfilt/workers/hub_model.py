"""Models of transformers from a local directory: safe, quiet, and with the same pixels everywhere.

Nothing is fetched, no code of a model's author is run, weights are safetensors and complete. Image
processors are those on Pillow and numpy: the ones on torchvision give other pixels, and are not
there on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Protocol

from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedModel
from transformers.utils import logging as transformers_logging

from capfilt.config import DType
from capfilt.errors import CapfiltError, CheckpointError
from capfilt.io.images import Fit, Resampling
from capfilt_blip.tasks.placement import torch_dtype

MAX_ERROR_CHARS = 300
OFFLINE = {"local_files_only": True, "trust_remote_code": False}
"""Options of every `from_pretrained`."""


class AutoClass(Protocol):
    """One of the classes of transformers that find the class of a model."""

    def from_pretrained(
        self, name: str, **options: object
    ) -> tuple[PreTrainedModel, dict[str, list[str]]]:
        """The model, and what its file did not hold."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """What a model sees of a picture."""

    side_px: int
    fit: Fit


@contextmanager
def explained(directory: Path, cannot_be: str) -> Iterator[None]:
    """Say in one line why a model cannot be loaded or used.

    Args:
        directory: of the model.
        cannot_be: such as "loaded".

    Raises:
        CheckpointError: in place of what the block raised.
    """
    transformers_logging.disable_progress_bar()
    try:
        yield
    except CapfiltError:
        raise
    except Exception as err:  # the code of a hundred models raises nearly everything
        said = " ".join(str(err).split())[:MAX_ERROR_CHARS]
        raise CheckpointError(
            f"{directory}: cannot be {cannot_be} with transformers: {type(err).__name__}: {said}"
        ) from err


def load_model(
    auto_class: AutoClass, directory: Path, *, device: str, dtype: DType
) -> PreTrainedModel:
    """Load a model in eval mode.

    Args:
        auto_class: such as `AutoModel`.
        directory: of the model.
        device: where it computes.
        dtype: what it computes in.

    Raises:
        CheckpointError: there is no such model, its weights are not safetensors, or some are not
            there: transformers would go on with random ones.
    """
    assert dtype != "int8", "refused by kinds.check_dtype"
    with explained(directory, "loaded"):
        model, found = auto_class.from_pretrained(
            str(directory),
            dtype=torch_dtype(dtype),
            use_safetensors=True,
            output_loading_info=True,
            **OFFLINE,
        )
        model = model.to(device).eval()
    if absent := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"{directory}: {len(absent)} weights of {type(model).__name__} are not in the file, "
            f"the first {absent[0]!r}; this is a model for something else"
        )
    return model


def load_image_processor(directory: Path) -> tuple[BaseImageProcessor, Square | None]:
    """Load what makes a model's input of pixels.

    Returns:
        The processor, and the square it makes of every picture. Given such a square it only
        normalises. None: it keeps the shapes of pictures.

    Raises:
        CheckpointError: the directory has none that works without torchvision.
    """
    with explained(directory, "loaded"):
        processor = AutoImageProcessor.from_pretrained(str(directory), backend="pil", **OFFLINE)
        square = _own_square(processor)
    if square is not None and square.fit.crop_from_px is not None:
        processor.do_resize = processor.do_center_crop = False  # that is done, see `Fit`
    return processor, square


def _own_square(processor: BaseImageProcessor) -> Square | None:
    resample = getattr(processor, "resample", None)
    resampling = Resampling.BICUBIC if resample is None else Resampling(resample)
    size, crop = _edges(processor, "size"), _edges(processor, "crop_size")
    side = crop.get("height") if getattr(processor, "do_center_crop", False) else None
    shortest = size.get("shortest_edge")
    if side and side == crop.get("width") and shortest and shortest >= side:
        return Square(side_px=side, fit=Fit(crop_from_px=shortest, resampling=resampling))
    side = size.get("height")
    if side and side == size.get("width"):
        return Square(side_px=side, fit=Fit(resampling=resampling))
    # SigLIP 2 takes any shape of so many patches; of squares, this one.
    patches, patch_px = (getattr(processor, n, None) for n in ("max_num_patches", "patch_size"))
    if isinstance(patches, int) and isinstance(patch_px, int):
        return Square(side_px=isqrt(patches) * patch_px, fit=Fit(resampling=resampling))
    return None


def _edges(processor: BaseImageProcessor, name: str) -> dict[str, int | None]:
    """A size with named edges; some versions of transformers have an object, some a mapping."""
    return dict(getattr(processor, name, None) or {})
