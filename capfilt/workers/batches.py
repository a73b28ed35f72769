"""Images from a shard to model-ready pixels, in batches, made beside the model.

One thread drives the decoding processes and lays their answers out as the model takes them. It
stays two batches ahead of the model. Once it has begun the last batch of a shard it goes on to the
next one, if that is known by then, so that the model does not wait where a shard ends.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch

from capfilt.io.images import SQUASH, Fit, ImageDecoder, Refused
from capfilt.meter import Meter
from capfilt.records import Reason
from capfilt.workers.protocols import ImageArray

InputT = TypeVar("InputT")

Pixels = npt.NDArray[np.uint8]
"""(S, S, 3) RGB."""

BATCHES_AHEAD = 2
"""Batches decoded or being decoded while the model is at another one."""


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
    images: ImageArray  # (N, S, S, 3): the decoded ones, N of them; `pixels` are its rows

    def readable(self) -> tuple[list[InputT], ImageArray]:
        """The inputs whose image was decoded, and those images."""
        pairs = zip(self.inputs, self.pixels, strict=True)
        return [row for row, seen in pairs if not isinstance(seen, Refused)], self.images


@dataclass(eq=False, slots=True, kw_only=True)
class _Pass(Generic[InputT]):
    """One way through a shard's inputs: what is not begun, and batches not taken yet."""

    inputs: Sequence[InputT]
    start: int = 0
    waiting: deque[Future[DecodedBatch[InputT]]] = field(default_factory=deque)

    @property
    def goes_on(self) -> bool:
        return self.start < len(self.inputs)


class PreparedInputs(Sequence[InputT]):
    """A shard's inputs, the first batches of which are being decoded already.

    Args:
        inputs: the same rows.
        begun: what was begun for them.
    """

    def __init__(self, inputs: Sequence[InputT], begun: _Pass[InputT]) -> None:
        self._inputs = inputs
        self._begun: _Pass[InputT] | None = begun

    def __len__(self) -> int:
        return len(self._inputs)

    @overload
    def __getitem__(self, index: int) -> InputT: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[InputT]: ...
    def __getitem__(self, index: int | slice) -> InputT | Sequence[InputT]:
        return self._inputs[index]

    def take(self) -> _Pass[InputT] | None:
        """What was begun, the first time; a shard that is tried again begins anew."""
        begun, self._begun = self._begun, None
        return begun


class BatchFeeder(Generic[InputT]):
    """Decodes images batch by batch, ahead of whoever takes the batches.

    Batches may be taken in one thread while another one prepares what comes next.

    Args:
        image_of: the image of an input.
        decoder: decodes in processes that may be killed; used in the feeder's thread only.
        batch_images: images per batch; the last batch of a shard may be shorter.
        side_px: side of the square they are resized to.
        fit: how they are brought into it.
        device: of the model.
        meter: shows reading and decoding in the worker's trace.
    """

    def __init__(  # noqa: PLR0913  # what, how, and the meter that watches
        self,
        image_of: Callable[[InputT], SourceImage],
        decoder: ImageDecoder,
        *,
        batch_images: int,
        side_px: int,
        fit: Fit = SQUASH,
        device: str = "cpu",
        meter: Meter | None = None,
    ) -> None:
        self._meter = meter or Meter()
        self._image_of = image_of
        self._decoder = decoder
        self._batch_images = batch_images
        self._side_px = side_px
        self._fit = fit
        # A GPU fetches by itself, while it computes, from memory that cannot be swapped out.
        self._pinned = torch.device(device).type == "cuda" and torch.cuda.is_available()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")
        self._lock = Lock()
        self._passes: list[_Pass[InputT]] = []  # in the order in which they were begun

    def prepare(self, inputs: Sequence[InputT]) -> PreparedInputs[InputT]:
        """Begin with a shard that comes next, as soon as the one at hand leaves room for it.

        Args:
            inputs: read as they are needed; slices are held, never all.

        Returns:
            The same rows, for `batches`.
        """
        return PreparedInputs(inputs, self._begin(inputs))

    def batches(self, inputs: Sequence[InputT]) -> Generator[DecodedBatch[InputT], None, None]:
        """Decode a shard, or go on with one that was prepared.

        Yields:
            The batches in order. Whatever reading or decoding raises is raised here.
        """
        begun = inputs.take() if isinstance(inputs, PreparedInputs) else None
        current = begun or self._begin(inputs)
        try:
            while (batch := self._next(current)) is not None:
                yield batch.result()
        finally:
            self._end(current)

    def close(self) -> None:
        """Forget what was begun, and wait for the batch at hand. The decoder is left open."""
        with self._lock:
            self._passes.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _begin(self, inputs: Sequence[InputT]) -> _Pass[InputT]:
        begun = _Pass(inputs=inputs)
        with self._lock:
            self._passes.append(begun)
            self._fill_up()
        return begun

    def _next(self, current: _Pass[InputT]) -> Future[DecodedBatch[InputT]] | None:
        with self._lock:
            self._hand_on(current, up_to=1)
            if not current.waiting:
                return None
            batch = current.waiting.popleft()
            # Its own next ones come first: a shard that was prepared may hold all places if the
            # one at hand is tried again.
            self._hand_on(current, up_to=BATCHES_AHEAD)
            self._fill_up()
        return batch

    def _end(self, current: _Pass[InputT]) -> None:
        with self._lock:
            for batch in current.waiting:
                batch.cancel()
            if current in self._passes:
                self._passes.remove(current)
            self._fill_up()

    def _fill_up(self) -> None:
        for begun in self._passes:
            elsewhere = sum(len(other.waiting) for other in self._passes if other is not begun)
            self._hand_on(begun, up_to=BATCHES_AHEAD - elsewhere)

    def _hand_on(self, begun: _Pass[InputT], *, up_to: int) -> None:
        while begun.goes_on and len(begun.waiting) < up_to:
            begun.waiting.append(self._thread.submit(self._decode, begun.inputs, begun.start))
            begun.start += self._batch_images

    def _decode(self, inputs: Sequence[InputT], start: int) -> DecodedBatch[InputT]:
        with self._meter.span("read"):
            rows = inputs[start : start + self._batch_images]
            images = [self._image_of(row) for row in rows]
        with self._meter.span("decode", images=len(images)):
            answers = _decoded(images, self._decoder, side_px=self._side_px, fit=self._fit)
            return _laid_out(rows, answers, side_px=self._side_px, pinned=self._pinned)


def decoded_batches(
    inputs: Sequence[InputT],
    image_of: Callable[[InputT], SourceImage],
    decoder: ImageDecoder,
    *,
    batch_images: int,
    side_px: int,
    fit: Fit = SQUASH,
) -> Iterator[DecodedBatch[InputT]]:
    """Decode one list of inputs batch by batch; the arguments are those of `BatchFeeder`."""
    feeder = BatchFeeder(image_of, decoder, batch_images=batch_images, side_px=side_px, fit=fit)
    try:
        yield from feeder.batches(inputs)
    finally:
        feeder.close()


def _decoded(
    images: Sequence[SourceImage], decoder: ImageDecoder, *, side_px: int, fit: Fit
) -> list[Pixels | Refused]:
    unchanged = [hashlib.sha256(i.payload).hexdigest() == i.sha256 for i in images]
    sound = [image.payload for image, same in zip(images, unchanged, strict=True) if same]
    decoded = iter(decoder.pixels(sound, side_px=side_px, fit=fit))
    changed = Refused(
        reason=Reason.BYTES_CHANGED, detail="the shard no longer holds the image indexed"
    )
    return [next(decoded) if same else changed for same in unchanged]


def _laid_out(
    rows: Sequence[InputT], answers: Sequence[Pixels | Refused], *, side_px: int, pinned: bool
) -> DecodedBatch[InputT]:
    """Copy a batch's images into one array."""
    found = [answer for answer in answers if not isinstance(answer, Refused)]
    shape = (len(found), side_px, side_px, 3)
    images: ImageArray = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned).numpy()
    for place, image in zip(images, found, strict=True):
        place[:] = image
    places = iter(images)
    return DecodedBatch(
        inputs=rows,
        pixels=[seen if isinstance(seen, Refused) else next(places) for seen in answers],
        images=images,
    )
