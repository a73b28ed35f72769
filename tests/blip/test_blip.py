from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.config import BlipConfig
from capfilt_blip.grounding import BlipGrounding
from capfilt_blip.text import TextStack
from capfilt_blip.vqa import BlipVqa

# Numbers of parameters that the original code has, ViT-B and ViT-L at 384 px, VQA at 480 px; those
# of mmpretrain's metafiles are the same, and that of grounding is from there.
COUNTS = [
    (BlipCaptioner, BlipConfig.base(), 223_971_644),
    (BlipMatcher, BlipConfig.base(), 223_744_258),
    (BlipCaptioner, BlipConfig.large(), 446_290_492),
    (BlipMatcher, BlipConfig.large(), 446_128_642),
    (BlipVqa, BlipConfig.base().at_image_size(480), 361_478_972),
    (BlipGrounding, BlipConfig.base(), 498_488_636),
]


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def batch(config: BlipConfig, *, first: int) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(5, 60, (4, 6))
    ids[:, 0] = first
    return torch.randn(2, 3, 32, 32), ids, torch.ones_like(ids, dtype=torch.bool)


@pytest.mark.parametrize(("kind", "config", "count"), COUNTS)
def test_the_sizes_are_those_of_the_paper(kind: type, config: BlipConfig, count: int) -> None:
    with torch.device("meta"):
        assert num_parameters(kind(config)) == count


def test_pre_training_shares_all_but_self_attention() -> None:
    config = BlipConfig.base().at_image_size(224)
    with torch.device("meta"):
        shared = num_parameters(Blip(config))
        captioner = num_parameters(BlipCaptioner(config))
    self_attention = 12 * (4 * (768 * 768 + 768) + 2 * 768)
    heads = 2 * (768 * 256 + 256) + (768 * 2 + 2) + 1  # projections, ITM head, temperature
    assert shared == captioner + self_attention + heads
    assert round(shared / 1e6) == 252  # table 3: all but self-attention


def test_the_other_ways_of_sharing_would_have_the_sizes_of_the_paper() -> None:
    config = BlipConfig.base().at_image_size(224)
    with torch.device("meta"):
        all_shared = num_parameters(BlipCaptioner(config))
        second_stack = num_parameters(TextStack(config.text))
    # Table 3. (All but cross-attention has the size of ours: the two attentions are of one shape.)
    assert round(all_shared / 1e6) == 224
    assert round((all_shared + second_stack) / 1e6) == 361


def test_two_tiny_models_in_half_precision_are_below_eight_megabytes() -> None:
    with torch.device("meta"):
        config = BlipConfig.tiny(vocab_size=1000)
        assert num_parameters(BlipCaptioner(config)) < 2_000_000
        assert num_parameters(BlipMatcher(config)) < 2_000_000


def test_gradients_of_encoder_and_decoder_add_up_in_the_shared_weights(blip: Blip) -> None:
    pixels, ids, mask = batch(blip.config, first=blip.config.bos_token_id)
    shared = blip.text_decoder.layers[0].feed_forward.up.weight
    captioning, matching = blip.captioning(), blip.matching()
    lm = captioning(pixels, ids, mask).square().mean()
    kv = blip.text_encoder.project_memory(blip.vision(pixels))
    itm = matching.itm_logits(ids, mask, kv).square().mean()
    apart = [torch.autograd.grad(loss, shared, retain_graph=True)[0] for loss in (lm, itm)]
    (lm + itm).backward()
    torch.testing.assert_close(shared.grad, apart[0] + apart[1])


def test_a_gradient_reaches_every_weight(blip: Blip) -> None:
    pixels, ids, mask = batch(blip.config, first=blip.config.bos_token_id)
    captioning, matching = blip.captioning(), blip.matching()
    embeds = blip.vision(pixels)
    kv = blip.text_encoder.project_memory(embeds)
    itc = matching.image_vectors(embeds) @ matching.text_vectors(ids, mask).T / blip.temp
    losses = (
        captioning.lm_logits(ids, mask, kv).sin(),
        matching.itm_logits(ids, mask, kv).sin(),
        itc,
    )
    torch.stack([loss.sum() for loss in losses]).sum().backward()
    assert [name for name, p in blip.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_finetuned_model_is_a_copy_and_a_view_is_not(blip: Blip) -> None:
    assert blip.captioning().vision is blip.vision
    copied = blip.matcher()
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in blip.parameters()}
    pixels, ids, mask = batch(blip.config, first=blip.config.enc_token_id)
    with torch.no_grad():
        view = blip.matching()
        expected = view.itm_logits(ids, mask, view.text_encoder.project_memory(view.vision(pixels)))
        kv = copied.text_encoder.project_memory(copied.vision(pixels))
        assert torch.equal(copied.itm_logits(ids, mask, kv), expected)


def test_finetuning_may_take_larger_images(blip: Blip) -> None:
    captioner = blip.captioner(image_size_px=48)
    assert captioner.vision(torch.randn(1, 3, 48, 48)).shape == (1, 37, 64)
    assert captioner.config.vision.image_size_px == 48
    assert blip.config.vision.image_size_px == 32


def test_vectors_have_length_one(matcher: BlipMatcher) -> None:
    _, ids, mask = batch(matcher.config, first=matcher.config.cls_token_id)
    vectors = matcher.image_vectors(torch.randn(3, 17, 64)), matcher.text_vectors(ids, mask)
    for vector in vectors:
        torch.testing.assert_close(vector.norm(dim=-1), torch.ones(len(vector)))
