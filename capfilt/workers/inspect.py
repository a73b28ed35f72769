"""The index stage's worker: looks at images in processes that may be killed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from capfilt.io.images import ImageDecoder, Inspected, Refused
from capfilt.records import Reason

CHUNK_IMAGES = 64
CHUNK_BYTES = 64 * 2**20
"""Images are read until there are this many, or this many bytes of them; then they are decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What looking at an image showed: its properties, or the reason it is of no use."""

    sha256: str | None = None
    image_format: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    phash: int | None = None
    reason: str | None = None
    detail: str | None = None


class InspectWorker:
    """Decodes each image once and notes what it is.

    Args:
        decoder: the decoding processes; closed with the worker.
    """

    def __init__(self, decoder: ImageDecoder) -> None:
        self._decoder = decoder

    def __call__(self, inputs: Sequence[bytes | None]) -> list[Inspection]:
        """One inspection per image; None stands for a sample without an image."""
        return [seen for chunk in chunks(inputs) for seen in self._inspect(chunk)]

    def close(self) -> None:
        """End the decoding processes."""
        self._decoder.close()

    def _inspect(self, chunk: Sequence[bytes | None]) -> list[Inspection]:
        looked_at = iter(self._decoder.inspect([image for image in chunk if image is not None]))
        return [
            Inspection(reason=Reason.IMAGE_MISSING)
            if image is None
            else _inspection(image, next(looked_at))
            for image in chunk
        ]


def chunks(inputs: Iterable[bytes | None]) -> Iterator[list[bytes | None]]:
    """Cut images into pieces that fit in memory, each image read when its turn comes."""
    chunk: list[bytes | None] = []
    num_bytes = 0
    for image in inputs:
        chunk.append(image)
        num_bytes += len(image or b"")
        if len(chunk) == CHUNK_IMAGES or num_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def _inspection(image: bytes, seen: Inspected | Refused) -> Inspection:
    digest = hashlib.sha256(image).hexdigest()
    if isinstance(seen, Refused):
        return Inspection(sha256=digest, reason=seen.reason, detail=seen.detail)
    return Inspection(
        sha256=digest,
        image_format=seen.image_format,
        width_px=seen.width_px,
        height_px=seen.height_px,
        phash=seen.phash,
    )
