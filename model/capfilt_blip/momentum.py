"""Slow copies of the encoders and a queue of their vectors: more, and steadier, ITC candidates.

The contrast of a batch is poor in negatives. MoCo's answer (arXiv:1911.05722), which BLIP takes
from ALBEF: encode also with a moving average of the weights, keep these vectors, and contrast
with the last tens of thousands of them.

    B batch, Q queue, E shared width, S image side in pixels, L text tokens.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from capfilt_blip.blip import BlipMatcher
from capfilt_blip.vision import VisionTransformer


class MomentumEncoder:
    """A moving average of a matcher's encoders.

    Args:
        matcher: the model that learns; its image and text encoder and projections are copied.
        momentum: share of the old average kept at each update, in [0, 1); BLIP's is 0.995.
    """

    def __init__(self, matcher: BlipMatcher, *, momentum: float = 0.995) -> None:
        self._online = matcher
        # In training mode: the original leaves dropout on in the slow copies.
        self._average = copy.deepcopy(matcher).requires_grad_(False).train()
        self._move = get_ema_multi_avg_fn(momentum)  # type: ignore[no-untyped-call]

    @property
    def vision(self) -> VisionTransformer:
        """The slow image encoder."""
        return self._average.vision

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Give the slow weights by name."""
        return dict(self._average.named_parameters())

    def update(self) -> None:
        """Move the average a step towards the learning weights."""
        slow, fast = list(self._average.parameters()), list(self._online.parameters())
        self._move(slow, fast, None)

    def encode(self, pixels: Tensor, token_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images and texts on their own.

        Args:
            pixels: (B, 3, S, S) float, normalised.
            token_ids: (B, L) int64, [CLS] first.
            mask: (B, L) bool.

        Returns:
            (B, E) image vectors and (B, E) text vectors, of length 1, without gradient.
        """
        with torch.no_grad():
            images = self._average.image_vectors(self._average.vision(pixels))
            return images, self._average.text_vectors(token_ids, mask)


class VectorQueue(nn.Module):
    """The last Q image and text vectors, each pair with the ids of its image and its text.

    With many processes, push what all of them gathered: the queues then stay equal.

    Args:
        size: Q; 0 is a queue that keeps nothing.
        width: E.
    """

    image_vectors: Tensor
    text_vectors: Tensor
    image_ids: Tensor
    text_ids: Tensor

    def __init__(self, *, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        # It starts empty, not with noise as in the original: noise would be easy negatives.
        self.register_buffer("image_vectors", torch.empty(0, width))
        self.register_buffer("text_vectors", torch.empty(0, width))
        self.register_buffer("image_ids", torch.empty(0, dtype=torch.int64))
        self.register_buffer("text_ids", torch.empty(0, dtype=torch.int64))

    def push(
        self, *, image_vectors: Tensor, text_vectors: Tensor, image_ids: Tensor, text_ids: Tensor
    ) -> None:
        """Add a batch of any size; the oldest pairs beyond Q fall out.

        Args:
            image_vectors: (B, E), detached.
            text_vectors: (B, E), detached.
            image_ids: (B,) int64, equal for equal images.
            text_ids: (B,) int64, equal for equal texts.
        """
        self.image_vectors = self._joined(self.image_vectors, image_vectors)
        self.text_vectors = self._joined(self.text_vectors, text_vectors)
        self.image_ids = self._joined(self.image_ids, image_ids)
        self.text_ids = self._joined(self.text_ids, text_ids)

    def _joined(self, old: Tensor, new: Tensor) -> Tensor:
        joined = torch.cat([old, new.detach()])
        return joined[max(0, len(joined) - self.size) :]
