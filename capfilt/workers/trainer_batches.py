"""Batches for training, read, decoded and augmented beside the model.

One thread reads the images of a batch (several at once: a store may be slow to answer) and has them
decoded in processes that may be killed; others augment what was decoded before. All stay ahead of
the model. Everything drawn is keyed by the sample's position, so a batch is the same
whoever makes it, wherever a training goes on.

    B batch of this process, S image side in pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from capfilt.errors import CapfiltError
from capfilt.io.images import ImageDecoder, Refused
from capfilt.workers.batches import Pixels
from capfilt.workers.trainer_pairs import OrderedPairs, TrainingPair
from capfilt_blip.augment import Augmentation, augment, position_keys
from capfilt_blip.train.batches import TextImageBatch

BATCHES_AHEAD = 5
"""Batches that are ready or being made while the model is at another one: one being decoded, and
those being augmented."""

AUGMENTERS = 4
"""Batches augmented at once: Pillow and torch let other threads run meanwhile. RandAugment takes a
thread about 1 ms a picture of 224 px, and a fast GPU trains on more than 1,000 a second."""

READERS = 8
"""Images read at once: enough to hide some 50 ms of a store's latency from a GPU."""

MAX_SPARES = 16
"""Pairs tried in place of one that cannot be read, before training gives up: with half of all
images broken that happens once in 65,000 of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoded:
    positions: Sequence[int]
    pairs: Sequence[TrainingPair]
    images: Tensor  # (B, S, S, 3) uint8


class BatchLoader:
    """Makes the batches of one phase.

    Args:
        pairs: what there is, and its order.
        decoder: used in the loader's thread only, while batches are taken.
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

    def batches(self, steps: Sequence[Sequence[int]]) -> Generator[TextImageBatch, None, None]:
        """Make a batch per step.

        Args:
            steps: the positions of each batch.

        Raises:
            CapfiltError: image after image cannot be read.
        """
        readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        decoding = ThreadPoolExecutor(1, thread_name_prefix="decode")
        augmenting = ThreadPoolExecutor(AUGMENTERS, thread_name_prefix="augment")
        waiting = deque[Future[TextImageBatch]]()
        try:
            for positions in steps:
                decoded = decoding.submit(self._decoded, readers, positions)
                waiting.append(augmenting.submit(self._finished, decoded))
                if len(waiting) > BATCHES_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for executor in (decoding, augmenting, readers):
                executor.shutdown(cancel_futures=True)

    def _decoded(self, readers: ThreadPoolExecutor, positions: Sequence[int]) -> _Decoded:
        # The order is asked here, not by the readers: it keeps the epoch at hand.
        rows = [self._pairs.order(position) for position in positions]
        pairs = list(readers.map(self._pairs.rows.__getitem__, rows))
        images = self._decode(pairs)
        found = [
            self._readable(position, pair, image)
            for position, pair, image in zip(positions, pairs, images, strict=True)
        ]
        return _Decoded(
            positions=positions,
            pairs=[pair for pair, _ in found],
            images=torch.from_numpy(np.stack([image for _, image in found])),
        )

    def _decode(self, pairs: Sequence[TrainingPair]) -> list[Pixels | Refused]:
        payloads = [pair.image.payload for pair in pairs]
        return self._decoder.pixels(payloads, side_px=self._side_px)

    def _readable(
        self, position: int, pair: TrainingPair, image: Pixels | Refused
    ) -> tuple[TrainingPair, Pixels]:
        """The pair, or another one in its place: all processes' batches must stay of one size."""
        for attempt in range(MAX_SPARES):
            if not isinstance(image, Refused):
                return pair, image
            self._lost.append((f"{pair.image.key}\0{pair.text}", image.reason))
            pair = self._pairs.rows[self._pairs.order.spare(position, attempt=attempt)]
            [image] = self._decode([pair])
        raise CapfiltError(
            f"training cannot go on: {MAX_SPARES} images in a row cannot be used, the last one of "
            f"{pair.image.key}: {_said(image)}"
        )

    def _finished(self, decoded: Future[_Decoded]) -> TextImageBatch:
        batch = decoded.result()
        keys = position_keys(batch.positions, seed=self._seed)
        images = augment(batch.images, keys=keys, augmentation=self._augmentation)
        return TextImageBatch(
            images=images.pin_memory() if self._pinned else images,
            texts=[pair.text for pair in batch.pairs],
            image_ids=[pair.image.key for pair in batch.pairs],
        )


def _said(image: Pixels | Refused) -> str:
    return f"{image.reason} ({image.detail})" if isinstance(image, Refused) else "readable"
