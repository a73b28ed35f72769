"""Operations of a training step are those that torch counts, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from capfilt_blip.blip import BlipCaptioner
from capfilt_blip.config import BlipConfig
from capfilt_blip.train.cost import captioner_flops, matcher_flops, pretrain_flops


def test_a_captioners_step_is_what_torch_counts():
    config = BlipConfig.tiny(vocab_size=3000, image_size_px=64, width=64, text_depth=2)
    with (
        torch.device("meta"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model = BlipCaptioner(config)
        ids, mask = torch.zeros(1, 12, dtype=torch.int64), torch.ones(1, 12, dtype=torch.bool)
        model(torch.empty(1, 3, 64, 64), ids, mask)[:, :-1].sum().backward()
    counted = counter.get_total_flops()
    # Pixels need no gradient, and the model has logits of the last position, which no loss reads.
    assert captioner_flops(config, num_tokens=12) == pytest.approx(counted, rel=0.03)


def test_blips_pre_training_needs_200_billion_operations_a_pair():
    # Counted apart from this code: 200 for ViT-B and 558 for ViT-L, 224 px and 13 tokens, image
    # keys and values once, momentum vision included (original with padding: 307 and 681).
    base, large = (kind().at_image_size(224) for kind in (BlipConfig.base, BlipConfig.large))
    assert pretrain_flops(base, num_tokens=13) == pytest.approx(200e9, rel=0.02)
    assert pretrain_flops(large, num_tokens=13) == pytest.approx(558e9, rel=0.02)


def test_pre_training_looks_at_the_image_once_for_all_losses():
    config = BlipConfig.base().at_image_size(224)
    apart = matcher_flops(config, num_tokens=13) + captioner_flops(config, num_tokens=13)
    # Spared: ViT-B with 35.1 GFLOP, and keys and values of 197 tokens in 12 layers.
    keys_and_values = 12 * 2 * 2 * 197 * 768 * 768
    assert apart - pretrain_flops(config, num_tokens=13) == pytest.approx(
        3 * (35.1e9 + keys_and_values), rel=0.01
    )
