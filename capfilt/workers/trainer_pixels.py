"""What training does to a picture inside the decoding processes: the orders they get, carried out.

Both ends of an order are here. The children import this file too, and they have no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

from PIL import Image

from capfilt.io.squares import Box, Size
from capfilt_blip.augment import Augmentation, draw_plan, finish


def write_orders(keys: Sequence[str], augmentation: Augmentation) -> list[bytes]:
    """Write an order per image.

    Args:
        keys: of the images, which everything is drawn from.
        augmentation: how much they are changed.
    """
    fields = asdict(augmentation)
    return [json.dumps([key, fields]).encode() for key in keys]


def draw(order: bytes, size: Size) -> tuple[Box, Callable[[Image.Image], Image.Image]]:
    """Read an order, and draw what is to happen.

    Args:
        order: of `write_orders`.
        size: of the image as its file has it, before it is turned upright: neither area nor aspect
            ratio of a crop prefers a direction, so it may be cut out before.

    Returns:
        The part to make a square of, and what changes the square.
    """
    key, fields = json.loads(order)
    width_px, height_px = size
    augmentation = Augmentation(**fields)
    plan = draw_plan(key, augmentation=augmentation, width_px=width_px, height_px=height_px)
    box = (0, 0, width_px, height_px) if plan.window is None else plan.window.edges
    return box, partial(finish, plan)
