"""Batches for training, read, decoded and augmented beside the model.

Threads read images (a store may be slow to answer); processes that may be killed decode, crop and
change them, and write into the batch's memory. Both stay ahead of the model. Everything drawn is
keyed by the sample's position, so a batch is the same whoever makes it, wherever a training goes
on.

    B batch of this process, S image side in pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from capfilt.errors import CapfiltError
from capfilt.io.decode_program import ChildPart
from capfilt.io.images import ImageDecoder
from capfilt.workers.trainer_pairs import OrderedPairs, TrainingPair
from capfilt.workers.trainer_pixels import write_orders
from capfilt_blip.augment import Augmentation, position_keys
from capfilt_blip.train.batches import TextImageBatch

TRAINING_PIXELS = ChildPart(
    module="capfilt.workers.trainer_pixels", name="draw", package="capfilt_blip"
)
"""What the children of a loader's decoder run."""

IMAGES_AT_ONCE = 256
"""Images given to the children together, of as many batches as it takes: while the last of them are
decoded some children have nothing to do."""

GROUPS_AHEAD = 2
"""Such groups that are ready or being made while the model is at another one."""

READERS = 64
"""Images read at once: 50 ms of a store's latency are hidden from a GPU that trains on 1,100 a
second."""

MAX_SPARES = 16
"""Pairs tried in place of one that cannot be read, before training gives up: with half of all
images broken that happens once in 65,000 of them."""

Steps = Sequence[Sequence[int]]
"""The positions of each batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Batches made together, and their pairs, which are being read."""

    steps: Steps
    pairs: list[Future[TrainingPair]]


class BatchLoader:
    """Makes the batches of one phase.

    Args:
        pairs: what there is, and its order.
        decoder: its children have TRAINING_PIXELS; used in the loader's thread only, while batches
            are taken.
        side_px: S.
        augmentation: how images are changed.
        seed: of the changes.
        device: of the model.
    """

    def __init__(
        self,
        pairs: OrderedPairs,
        decoder: ImageDecoder,
        *,
        side_px: int,
        augmentation: Augmentation,
        seed: int,
        device: str,
    ) -> None:
        self._pairs = pairs
        self._decoder = decoder
        self._side_px = side_px
        self._augmentation = augmentation
        self._seed = seed
        self._pinned = torch.device(device).type == "cuda" and torch.cuda.is_available()
        self._lost = deque[tuple[str, str]]()

    def take_lost(self) -> dict[str, str]:
        """Reasons by pair, of the pairs that could not be read since this was asked last."""
        return dict(self._lost.popleft() for _ in range(len(self._lost)))

    def batches(self, steps: Steps) -> Generator[TextImageBatch, None, None]:
        """Make a batch per step.

        Args:
            steps: the positions of each batch.

        Raises:
            CapfiltError: image after image cannot be read.
        """
        readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        # One thread, which alone asks the order: that keeps the epoch at hand.
        making = ThreadPoolExecutor(1, thread_name_prefix="decode")
        reading = deque[Future[_Group]]()
        made = deque[Future[list[TextImageBatch]]]()
        try:
            for group in _grouped(steps):
                reading.append(making.submit(self._begin, readers, group))
                if len(reading) > 1:  # the next group is being read while this one is decoded
                    made.append(making.submit(self._finish, reading.popleft()))
                if len(made) > GROUPS_AHEAD:
                    yield from made.popleft().result()
            made += [making.submit(self._finish, group) for group in reading]
            while made:
                yield from made.popleft().result()
        finally:
            for executor in (making, readers):
                executor.shutdown(cancel_futures=True)

    def _begin(self, readers: ThreadPoolExecutor, steps: Steps) -> _Group:
        rows = [self._pairs.order(position) for positions in steps for position in positions]
        pairs = [readers.submit(self._pairs.rows.__getitem__, row) for row in rows]
        return _Group(steps=steps, pairs=pairs)

    def _finish(self, begun: Future[_Group]) -> list[TextImageBatch]:
        group = begun.result()
        positions = [position for step in group.steps for position in step]
        pairs = [pair.result() for pair in group.pairs]
        shape = (len(pairs), self._side_px, self._side_px, 3)
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned)
        self._fill(images, pairs, positions)
        together = TextImageBatch(
            images=images,
            texts=[pair.text for pair in pairs],
            image_ids=[pair.image.sha256 for pair in pairs],
        )
        stops = list(accumulate(len(step) for step in group.steps))
        return [together.rows(slice(*edges)) for edges in pairwise([0, *stops])]

    def _fill(self, images: Tensor, pairs: list[TrainingPair], positions: Sequence[int]) -> None:
        """Make the images. A pair that cannot be read gives way to another one of its epoch.

        Nothing is left out: the batches of all processes must stay of one size.
        """
        keys = position_keys(positions, seed=self._seed)
        orders = write_orders(keys, self._augmentation)
        places, rows = list(images.numpy()), list(range(len(pairs)))
        for attempt in range(MAX_SPARES):
            answers = self._decoder.fill(
                [places[row] for row in rows],
                [pairs[row].image.payload for row in rows],
                [orders[row] for row in rows],
            )
            refused = {row: no for row, no in zip(rows, answers, strict=True) if no is not None}
            if not refused:
                return
            for row, why in refused.items():
                lost = pairs[row]
                self._lost.append((f"{lost.image.key}\0{lost.text}", why.reason))
                spare = self._pairs.order.spare(positions[row], attempt=attempt)
                pairs[row] = self._pairs.rows[spare]
            rows = list(refused)
        raise CapfiltError(
            f"training cannot go on: {MAX_SPARES} images in a row cannot be used, the last one of "
            f"{lost.image.key}: {why.reason} ({why.detail})"
        )


def _grouped(steps: Steps) -> Iterator[Steps]:
    """Neighbouring steps, of IMAGES_AT_ONCE images or one step each."""
    group = list[Sequence[int]]()
    for step in steps:
        if group and sum(map(len, group)) + len(step) > IMAGES_AT_ONCE:
            yield group
            group = []
        group.append(step)
    if group:
        yield group
