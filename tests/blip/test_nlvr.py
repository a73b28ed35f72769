from __future__ import annotations

import torch
from torch import Tensor

from capfilt_blip.attention import MultiHead, SelfHeads
from capfilt_blip.blip import Blip
from capfilt_blip.config import BlipConfig
from capfilt_blip.nlvr import BlipNlvr, TwinTextStack


def slow_heads(heads: MultiHead | SelfHeads, tokens: Tensor, memory: Tensor) -> Tensor:
    """One head after the other, of one text: tokens (L, D), memory (M, Dm)."""
    size = heads.out.in_features // heads.num_heads
    if isinstance(heads, MultiHead):
        query, key, value = heads.query(tokens), heads.key(memory), heads.value(memory)
    else:
        query, key, value = heads.qkv(tokens).chunk(3, -1)
    parts = []
    for head in range(heads.num_heads):
        part = slice(head * size, (head + 1) * size)
        parts.append((query[:, part] @ key[:, part].T / size**0.5).softmax(-1) @ value[:, part])
    return heads.out(torch.cat(parts, -1))


def slow_fuse(stack: TwinTextStack, ids: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """One text without padding, (L,), and its two images, (P, D)."""
    hidden = stack.embeddings(ids[None])[0]
    for layer in stack.layers:
        own, cross = layer.self_attention, layer.cross_attention
        hidden = own.norm(hidden + slow_heads(own.heads, hidden, hidden))
        of_left, of_right = (
            slow_heads(cross.left, hidden, left),
            slow_heads(cross.right, hidden, right),
        )
        if cross.merge is None:
            joined = (of_left + of_right) / 2
        else:
            for_left, for_right = cross.merge.weight.split(64, dim=1)
            joined = of_left @ for_left.T + of_right @ for_right.T + cross.merge.bias
        hidden = layer.feed_forward(cross.norm(hidden + joined))
    return hidden


def texts(config: BlipConfig, lengths: list[int]) -> tuple[Tensor, Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 60, mask.shape)
    ids[:, 0] = config.enc_token_id
    return ids.masked_fill(~mask, 0), mask


@torch.no_grad()
def test_logits_are_those_of_a_slow_version(nlvr: BlipNlvr) -> None:
    assert [layer.cross_attention.merge is None for layer in nlvr.text_encoder.layers] == [
        True,
        False,
    ]
    left, right = torch.randn(2, 3, 3, 32, 32)
    ids, mask = texts(nlvr.config, [7, 3, 5])
    found = nlvr(left, right, ids, mask)
    for b in range(3):
        images = nlvr.vision(left[b, None])[0], nlvr.vision(right[b, None])[0]
        first = slow_fuse(nlvr.text_encoder, ids[b][mask[b]], *images)[0]
        hidden = (nlvr.classifier.hidden(first)).clamp(min=0)
        torch.testing.assert_close(found[b], nlvr.classifier.out(hidden), atol=1e-3, rtol=1e-3)


def test_the_upper_half_of_the_layers_merges() -> None:
    with torch.device("meta"):
        model = BlipNlvr(BlipConfig.base())
    merges = [layer.cross_attention.merge is not None for layer in model.text_encoder.layers]
    assert merges == [False] * 6 + [True] * 6


def test_the_base_model_has_the_size_of_the_original() -> None:
    with torch.device("meta"):
        model = BlipNlvr(BlipConfig.base())
    # mmpretrain's count for the original's checkpoint (configs/blip/metafile.yml).
    assert sum(p.numel() for p in model.parameters()) == 259_372_034


@torch.no_grad()
def test_padding_changes_no_judgement(nlvr: BlipNlvr) -> None:
    left, right = torch.randn(2, 1, 3, 32, 32)
    ids, mask = texts(nlvr.config, [5])
    padded = torch.cat([ids, torch.randint(5, 60, (1, 20))], 1)
    found = nlvr(left, right, padded, torch.arange(25)[None] < 5)
    torch.testing.assert_close(found, nlvr(left, right, ids, mask), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_left_and_right_are_told_apart(nlvr: BlipNlvr) -> None:
    left, right = torch.randn(2, 1, 3, 32, 32)
    ids, mask = texts(nlvr.config, [5])
    assert not torch.allclose(nlvr(left, right, ids, mask), nlvr(right, left, ids, mask), atol=0.01)


@torch.no_grad()
def test_a_start_gives_both_twins_the_attention_of_pre_training(blip: Blip) -> None:
    model = BlipNlvr.from_blip(blip, image_size_px=32)
    source = dict(blip.text_encoder.named_parameters())
    new = {"layers.1.cross_attention.merge.weight", "layers.1.cross_attention.merge.bias"}
    for name, parameter in model.text_encoder.named_parameters():
        name_there = name.replace(".left.", ".heads.").replace(".right.", ".heads.")
        assert name in new or torch.equal(parameter, source[name_there]), name
    for name, parameter in model.vision.named_parameters():
        assert torch.equal(parameter, blip.vision.get_parameter(name))
    assert not {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in blip.parameters()
    }
    assert len({p.data_ptr() for p in model.parameters()}) == len(
        list(BlipNlvr(blip.config).parameters())
    )


def test_a_start_draws_merging_maps_and_classifier_anew(blip: Blip) -> None:
    model = BlipNlvr.from_blip(blip, image_size_px=32)
    merge = model.text_encoder.layers[1].cross_attention.merge
    for linear in (merge, model.classifier.hidden, model.classifier.out):
        assert 0.01 < linear.weight.std() < 0.03  # BERT's first weights
        assert not linear.bias.any()


@torch.no_grad()
def test_an_untrained_start_sees_in_two_equal_images_what_pre_training_saw(blip: Blip) -> None:
    # Where the mean joins, two equal images are one: the lower layers are those of pre-training.
    model = BlipNlvr.from_blip(blip.eval(), image_size_px=32)
    model.text_encoder.layers, blip.text_encoder.layers = (
        stack.layers[:1] for stack in (model.text_encoder, blip.text_encoder)
    )
    embeds = torch.randn(1, 17, 64)
    ids, mask = texts(blip.config, [5])
    twins = model.text_encoder.fuse(ids, mask, *model.text_encoder.project_memories(embeds, embeds))
    alone = blip.text_encoder.fuse(ids, mask, blip.text_encoder.project_memory(embeds))
    torch.testing.assert_close(twins, alone, atol=1e-5, rtol=1e-5)


def test_a_start_from_pre_training_takes_larger_images_and_drops_paths(blip: Blip) -> None:
    model = BlipNlvr.from_blip(blip, image_size_px=48, drop_path=0.2)
    assert model.vision(torch.randn(1, 3, 48, 48)).shape == (1, 37, 64)
    assert [layer.drop_path for layer in model.vision.layers] == [0, 0.2]
    assert BlipNlvr.from_blip(blip).config.vision.image_size_px == 384
    assert blip.config.vision.image_size_px == 32
