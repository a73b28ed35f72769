"""Where the rows are measured and at what size; clocks; and the turns of two rivals."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu_rows.rows import NO_TARGET, Comparison, Target
from benchmarks.peers import CaptionPair, ScorePair, caption_pair, config_of, score_pair
from capfilt_blip.config import BlipConfig
from capfilt_blip.tokenizer import Tokenizer

Work = Callable[[int], object]
"""Does a batch of so many images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured."""

    base: str  # of `peers.config_of`
    large: str
    batch_sizes: Sequence[int]  # images; both sides are tried with all of them
    fixed_batch: int  # images, where a row has one batch size
    gemm_side: int  # of the square matrices whose product is the peak
    copy_bytes: int
    repeats: int  # turns of ours and theirs
    longest_s: float  # a batch that takes longer is the last that is tried
    num_shards: int
    images_per_shard: int
    decode_processes: int


@dataclass(frozen=True)
class Bench:
    """What all rows share. Models are made when the first row asks for them."""

    device: str
    dtype: torch.dtype
    scale: Scale
    folder: Path

    @property
    def on_gpu(self) -> bool:
        """Whether this is measured where it counts."""
        return self.device.startswith("cuda")

    @property
    def dtype_name(self) -> str:
        """Such as bfloat16, as recipes have it."""
        return str(self.dtype).removeprefix("torch.")

    def seconds(self, work: Callable[[], object]) -> float:
        """Wall seconds of a piece of work, from an idle device to an idle device."""
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def config(self, size: str) -> tuple[BlipConfig, Tokenizer]:
        """Sizes and tokenizer of a model."""
        return config_of(size)

    @functools.cache  # noqa: B019  # one bench lives as long as the program
    def captioners(self, size: str, dtype: torch.dtype) -> CaptionPair:
        """A captioner, ours and theirs; its files are in `folder / captioner-SIZE`."""
        torch.manual_seed(0)
        folder = self.folder / f"captioner-{size}"
        return caption_pair(*self.config(size), folder, device=self.device, dtype=dtype)

    @functools.cache  # noqa: B019
    def matchers(self, size: str, dtype: torch.dtype) -> ScorePair:
        """A filter, ours and theirs; its files are in `folder / filter-SIZE`."""
        torch.manual_seed(1)
        folder = self.folder / f"filter-{size}"
        return score_pair(*self.config(size), folder, device=self.device, dtype=dtype)

    @functools.cache  # noqa: B019
    def pixels(self, side_px: int) -> Tensor:
        """Normalised images, as many as the largest batch, on the device, in the dtype."""
        generator = torch.Generator().manual_seed(2)
        shape = (64, 3, side_px, side_px)
        few = torch.randn(shape, generator=generator).to(self.device, self.dtype)
        return few.repeat(-(-max(self.scale.batch_sizes) // 64), 1, 1, 1)

    @functools.cache  # noqa: B019
    def peak_tflops(self) -> float:
        """Rate of a dense square product in the dtype, in 10**12 operations per second."""
        side = self.scale.gemm_side
        # Random: a product of zeros runs faster than one of real numbers.
        left, right = (torch.randn(side, side, device=self.device).to(self.dtype) for _ in "ab")
        times = [self.seconds(lambda: left @ right) for _ in range(13)][3:]
        return 2 * side**3 / statistics.median(times) / 1e12

    def compare(
        self,
        ours: Work,
        theirs: Work,
        *,
        unit: str = "images",
        per_image: int = 1,
        gflops: float | None = None,
        target: Target = NO_TARGET,
    ) -> Comparison:
        """Find the best batch size of each side, then let them take turns.

        Args:
            ours: our way.
            theirs: that of transformers.
            unit: what is counted.
            per_image: units of one image.
            gflops: what our way must compute for one image, in 10**9 operations.
            target: what is hoped for.
        """
        by_batch = {name: self._sweep(work) for name, work in (("ours", ours), ("theirs", theirs))}
        our_best, their_best = (_best(rates) for rates in by_batch.values())
        turns = [
            (
                our_best / self.seconds(lambda: ours(our_best)),
                their_best / self.seconds(lambda: theirs(their_best)),
            )
            for _ in range(self.scale.repeats)
        ]
        rate, their_rate = (statistics.median(side) for side in zip(*turns, strict=True))
        tflops = None if gflops is None else rate * gflops / 1e3
        return Comparison(
            unit=unit,
            ours_per_s=rate * per_image,
            theirs_per_s=their_rate * per_image,
            ours_batch=our_best,
            theirs_batch=their_best,
            ratios=[mine / peer for mine, peer in turns],
            target=target,
            ours_tflops=tflops,
            peak_share=None if tflops is None else tflops / self.peak_tflops(),
            ours_by_batch={size: per_image * r for size, r in by_batch["ours"].items()},
            theirs_by_batch={size: per_image * r for size, r in by_batch["theirs"].items()},
        )

    def _sweep(self, work: Work) -> dict[int, float]:
        """Images per second by batch size, up to one that is too large or too slow."""
        rates: dict[int, float] = {}
        for size in self.scale.batch_sizes:
            seconds = self.seconds_if_it_fits(work, size)
            if seconds is None:
                break
            rates[size] = size / seconds
            if seconds > self.scale.longest_s:
                break
        return rates

    def seconds_if_it_fits(self, work: Work, size: int) -> float | None:
        """The faster of two runs after one that warms up; None where memory does not suffice."""
        try:
            work(size)
            return min(self.seconds(lambda: work(size)) for _ in range(2))
        except torch.OutOfMemoryError:
            pass
        torch.cuda.empty_cache()  # out of the handler: the error holds on to the tensors
        return None


def _best(rates: Mapping[int, float]) -> int:
    return max(rates, key=lambda size: rates[size])
