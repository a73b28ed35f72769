"""Same key, same caption: what repeats, batch mates and another batch shape change."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import capfilt
from benchmarks.gpu_rows.bench import Bench
from benchmarks.gpu_rows.rows import Figures, Job
from capfilt.miniature.pairs import write_human_shard
from capfilt_blip.checkpoint import load_captioner
from capfilt_blip.tasks.captioner import Captioner
from capfilt_blip.tasks.placement import Dtype

Images = npt.NDArray[np.uint8]

TINY_WEIGHTS = Path(capfilt.__file__).parent / "miniature" / "weights" / "captioner"
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")


def jobs(bench: Bench) -> Iterator[Job]:
    """A row per model and dtype."""
    for dtype in DTYPES:
        yield Job(
            group="sameness",
            name=f"same captions, random weights, {dtype}",
            run=functools.partial(random_weights, bench, dtype),
        )
        yield Job(
            group="sameness",
            name=f"same captions, shipped tiny weights, {dtype}",
            run=functools.partial(tiny_weights, bench, dtype),
        )


def random_weights(bench: Bench, dtype: Dtype) -> Figures:
    """Drawn captions of noise by a model of full size, which nothing has taught to be sure."""
    bench.captioners(bench.scale.base, bench.dtype)
    side = bench.config(bench.scale.base)[0].vision.image_size_px
    shape = (2 * bench.scale.fixed_batch, side, side, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return shares(bench, bench.folder / f"captioner-{bench.scale.base}", images, dtype)


def tiny_weights(bench: Bench, dtype: Dtype) -> Figures:
    """Drawn captions of scenes by the trained model of the miniature web."""
    captioner, _ = load_captioner(TINY_WEIGHTS)
    side = captioner.config.vision.image_size_px
    pairs = write_human_shard("sameness", 2 * bench.scale.fixed_batch, side_px=side)
    images = np.stack([np.asarray(Image.open(io.BytesIO(jpeg))) for _, jpeg, _ in pairs])
    return shares(bench, TINY_WEIGHTS, images, dtype)


def shares(bench: Bench, model: Path, images: Images, dtype: Dtype) -> Figures:
    """Caption the images in several ways, and count the captions that are the same text."""
    captioner = Captioner.from_pretrained(model, device=bench.device, dtype=dtype)
    batch, order = bench.scale.fixed_batch, np.random.default_rng(1).permutation(len(images))
    first = texts(captioner, images, range(len(images)), batch)
    ways = {
        "again": texts(captioner, images, range(len(images)), batch),
        "other batch mates, same shape": texts(captioner, images, order.tolist(), batch),
        "another batch size": texts(captioner, images, range(len(images)), batch // 2),
    }
    counts = {name: sum(map(str.__eq__, first, found)) for name, found in ways.items()}
    return {name: f"{count} of {len(first)} captions same" for name, count in counts.items()}


def texts(captioner: Captioner, images: Images, order: Sequence[int], batch_size: int) -> list[str]:
    """One caption of each image, in the images' order, whatever order they were shown in."""
    keys = [str(i) for i in order]
    found = captioner.caption(images[list(order)], keys=keys, prompt="", batch_size=batch_size)
    by_key = dict(zip(keys, (captions[0].text for captions in found), strict=True))
    return [by_key[str(i)] for i in range(len(images))]
