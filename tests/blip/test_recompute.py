from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from capfilt_blip.blip import Blip, BlipCaptioner
from capfilt_blip.config import BlipConfig
from capfilt_blip.losses import itm_loss, lm_loss
from capfilt_blip.nlvr import BlipNlvr
from capfilt_blip.recompute import recompute_activations
from capfilt_blip.vqa import BlipVqa


@pytest.fixture
def config(config: BlipConfig) -> BlipConfig:
    """Four layers of each stack, with dropout and dropped paths."""
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, depth=4, drop_path=0.3),
        text=dataclasses.replace(config.text, depth=4, dropout=0.2),
    )


def texts(num_texts: int = 4) -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, 60, (num_texts, 7))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 4:] = False
    return ids, mask


def captioner_loss(model: BlipCaptioner) -> Tensor:
    ids, mask = texts()
    return lm_loss(model(torch.randn(2, 3, 32, 32), ids, mask), ids, mask)


def blip_loss(model: Blip) -> Tensor:
    """All of pre-training but the queue: three passes through shared parameters."""
    ids, mask = texts()
    embeds = model.vision(torch.randn(2, 3, 32, 32))
    memory = model.text_encoder.project_memory(embeds)
    captioning, matching = model.captioning(), model.matching()
    itc = matching.image_vectors(embeds) @ matching.text_vectors(ids, mask).T / model.temp
    itm = itm_loss(matching.itm_logits(ids, mask, memory), torch.tensor([True, False] * 2))
    return (
        lm_loss(captioning.lm_logits(ids, mask, memory), ids, mask) + itm + itc.logsumexp(1).sum()
    )


def vqa_loss(model: BlipVqa) -> Tensor:
    (ids, mask), (answers, answer_mask) = texts(), texts()
    images = model.text_encoder.project_memory(model.vision(torch.randn(2, 3, 32, 32)))
    logits = model.lm_logits(answers, answer_mask, model.read_questions(ids, mask, images))
    return lm_loss(logits, answers, answer_mask)


def nlvr_loss(model: BlipNlvr) -> Tensor:
    left, right = torch.randn(2, 4, 3, 32, 32)
    return itm_loss(model(left, right, *texts()), torch.tensor([True, False] * 2))


LOSSES = {
    BlipCaptioner: captioner_loss,
    Blip: blip_loss,
    BlipVqa: vqa_loss,
    BlipNlvr: nlvr_loss,
}


def losses_and_gradients(model: nn.Module) -> tuple[list[Tensor], int]:
    """The loss and all gradients, and how many numbers the forward pass kept for the backward."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    model.zero_grad()
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = LOSSES[type(model)](model)  # type: ignore[operator]
    num_kept = sum(kept.values())
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [loss.detach(), *gradients], num_kept


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_and_gradients_are_the_same_to_the_bit(kind: type, config: BlipConfig) -> None:
    model = kind(config).train()
    plain, _ = losses_and_gradients(model)
    for num_layers in (1, 4):
        recompute_activations(model, num_layers=num_layers)
        found, _ = losses_and_gradients(model)
        assert len(found) == len(plain) > 50
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize("kind", LOSSES)
def test_fewer_activations_are_kept_the_more_layers_are_recomputed(
    kind: type, config: BlipConfig
) -> None:
    model = kind(config).train()
    kept = []
    for num_layers in (0, 2, 4):
        recompute_activations(model, num_layers=num_layers)
        kept.append(losses_and_gradients(model)[1])
    assert kept[0] > kept[1] > kept[2]


def test_dropout_is_on(config: BlipConfig) -> None:
    model = BlipNlvr(config).train()
    recompute_activations(model, num_layers=4)
    left, right = torch.randn(2, 4, 3, 32, 32)
    ids, mask = texts()
    assert not torch.equal(model(left, right, ids, mask), model(left, right, ids, mask))


def test_nothing_is_recomputed_when_there_is_no_training(config: BlipConfig) -> None:
    model = BlipNlvr(config).eval()
    calls = count_calls(model.text_encoder.layers[0])
    for num_layers in (0, 4):
        recompute_activations(model, num_layers=num_layers)
        nlvr_loss(model).backward()
    assert len(calls) == 2


def test_only_the_last_layers_run_twice(config: BlipConfig) -> None:
    model = BlipNlvr(config).train()
    recompute_activations(model, num_layers=1)
    calls = [count_calls(layer) for layer in (*model.vision.layers, *model.text_encoder.layers)]
    nlvr_loss(model).backward()
    assert [len(of_layer) for of_layer in calls] == [1, 1, 1, 2] * 2


def count_calls(layer: nn.Module) -> list[None]:
    calls: list[None] = []
    layer.register_forward_pre_hook(lambda *_: calls.append(None))
    return calls
