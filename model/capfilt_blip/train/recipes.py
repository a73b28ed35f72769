"""BLIP's finetuning recipes as numbers: one for each task, and the optimizer that follows it.

From arXiv:2201.12086, appendix A, and the files of salesforce/BLIP: configs/. All use AdamW with a
weight decay of 0.05 and half a cosine down to 0 without warm-up; the rate changes once an epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from capfilt_blip.train.optimizer import OptimizerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochCosine:
    """Half a cosine down to 0 in stairs: a rate stays as it is for an epoch, as in the original."""

    peak: float
    steps_per_epoch: int
    num_epochs: int

    def __call__(self, step: int) -> float:
        """Give the learning rate of a step; the first epoch has the peak."""
        done = min(step // self.steps_per_epoch, self.num_epochs) / self.num_epochs
        return self.peak * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the paper finetunes a task with."""

    learning_rate: float  # at the start
    batch_size: int  # samples in a step, over all processes
    num_epochs: int
    image_size_px: int = 384
    drop_path: float = 0.0
    """Chance that the last vision layer skips its branches, for `from_blip`."""
    weight_decay: float = 0.05
    min_area: float = 0.5
    """Smallest part of an image that a crop keeps."""

    def optimizer(self, *, num_samples: int) -> OptimizerSettings:
        """Give the optimizer's settings for a training set.

        Args:
            num_samples: of an epoch; what does not fill the last batch is not counted.
        """
        schedule = EpochCosine(
            peak=self.learning_rate,
            steps_per_epoch=max(1, num_samples // self.batch_size),
            num_epochs=self.num_epochs,
        )
        return OptimizerSettings(learning_rate=schedule, weight_decay=self.weight_decay)


CAPTIONER = Recipe(learning_rate=1e-5, batch_size=256, num_epochs=5)
"""COCO captions with the prompt; configs/caption_coco.yaml. ViT-L: 2e-6."""
MATCHER = Recipe(learning_rate=1e-5, batch_size=256, num_epochs=6)
"""COCO and Flickr30k retrieval, the filter of CapFilt; configs/retrieval_coco.yaml. ViT-L: 5e-6."""
VQA = Recipe(learning_rate=2e-5, batch_size=256, num_epochs=10, image_size_px=480, drop_path=0.1)
"""VQAv2's train and val with Visual Genome's questions; configs/vqa.yaml."""
NLVR = Recipe(learning_rate=3e-5, batch_size=256, num_epochs=15, drop_path=0.1)
"""NLVR2; configs/nlvr.yaml."""
GROUNDING = Recipe(
    learning_rate=1.5e-5, batch_size=128, num_epochs=120, weight_decay=0.02, min_area=0.8
)
"""RefCOCO; not in the paper, mmpretrain's configs/blip/blip-base_8xb16_refcoco.py."""
