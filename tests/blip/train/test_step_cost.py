"""What a step of pre-training costs, in operations counted; see tests/blip/test_cost.py.

ViT-B at 224 px, texts of 13 tokens, as alt texts are. What must be computed for a sample, forwards
and backwards: the image 105 GFLOP and 35 of the slow encoder's; keys and values 17, once; the texts
43. With keys and values computed for each of ITM's three pairs and for LM apart, and texts padded
to 30, it is 307 (arithmetic of the original code's calls).
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from capfilt_blip.blip import Blip
from capfilt_blip.config import BlipConfig
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.optimizer import OptimizerSettings
from capfilt_blip.train.pretraining import pretrain_objective
from capfilt_blip.train.settings import PretrainSettings
from capfilt_blip.train.world import World

NUM_SAMPLES = 4
WORDS = "a b c d e f g h i j k"  # 11 tokens, [CLS] and [SEP] beside them


def giga_flops_per_sample(texts: list[str]) -> float:
    settings = PretrainSettings(optimizer=OptimizerSettings(learning_rate=lambda _: 1e-4))
    with torch.device("meta"):
        model = Blip(BlipConfig.base().at_image_size(224))
        objective = pretrain_objective(
            model, tokenizer=Tokenizer.train([], vocab_size=111), settings=settings, world=World()
        )
        images = torch.zeros(NUM_SAMPLES, 224, 224, 3, dtype=torch.uint8)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            batch = TextImageBatch(images=images, texts=texts)
            [part] = objective.prepare([batch], step=0, num_samples=0)
            objective.begin(step=0)
            part.losses(part.counts).total.backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops()) / NUM_SAMPLES / 1e9


@pytest.mark.slow
def test_a_step_computes_keys_and_values_once_and_no_padding() -> None:
    assert 190 < giga_flops_per_sample([WORDS] * NUM_SAMPLES) <= 200
