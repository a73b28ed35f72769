"""Images from a shard to model-ready pixels, in batches, decoded one batch ahead of the model."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from capfilt.io.images import SQUASH, Fit, ImageDecoder, Refused
from capfilt.records import Reason

InputT = TypeVar("InputT")

Pixels = npt.NDArray[np.uint8]
"""(S, S, 3) RGB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceImage:
    """An image as it stands in its shard."""

    key: str
    payload: bytes
    sha256: str  # what it had when it was indexed


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedBatch(Generic[InputT]):
    """A batch of inputs and what became of their images, in the same order."""

    inputs: Sequence[InputT]
    pixels: Sequence[Pixels | Refused]

    def readable(self) -> tuple[list[InputT], list[Pixels]]:
        """The inputs whose image was decoded, and those images."""
        pairs = [
            (row, seen)
            for row, seen in zip(self.inputs, self.pixels, strict=True)
            if not isinstance(seen, Refused)
        ]
        return [row for row, _ in pairs], [seen for _, seen in pairs]


def decoded_batches(
    inputs: Sequence[InputT],
    image_of: Callable[[InputT], SourceImage],
    decoder: ImageDecoder,
    *,
    batch_images: int,
    side_px: int,
    fit: Fit = SQUASH,
) -> Iterator[DecodedBatch[InputT]]:
    """Decode images batch by batch; while one batch is in use, the next is being decoded.

    Args:
        inputs: read as they are needed; slices are held, never all.
        image_of: the image of an input.
        decoder: decodes in processes that may be killed.
        batch_images: images per batch; the last batch may be shorter.
        side_px: side of the square they are resized to.
        fit: how they are brought into it.
    """

    def decode(start: int) -> DecodedBatch[InputT]:
        batch = inputs[start : start + batch_images]
        pixels = _decode([image_of(row) for row in batch], decoder, side_px=side_px, fit=fit)
        return DecodedBatch(inputs=batch, pixels=pixels)

    with ThreadPoolExecutor(max_workers=1) as ahead:
        waiting: deque[Future[DecodedBatch[InputT]]] = deque()
        for start in range(0, len(inputs), batch_images):
            waiting.append(ahead.submit(decode, start))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _decode(
    images: Sequence[SourceImage], decoder: ImageDecoder, *, side_px: int, fit: Fit
) -> list[Pixels | Refused]:
    unchanged = [hashlib.sha256(i.payload).hexdigest() == i.sha256 for i in images]
    sound = [image.payload for image, same in zip(images, unchanged, strict=True) if same]
    decoded = iter(decoder.pixels(sound, side_px=side_px, fit=fit))
    changed = Refused(
        reason=Reason.BYTES_CHANGED, detail="the shard no longer holds the image indexed"
    )
    return [next(decoded) if same else changed for same in unchanged]
