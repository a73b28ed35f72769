"""The models of full size give the same numbers as transformers', which hold the same weights.

Random weights, of a scale at which outputs differ from token to token. Both models hold the very
same tensors, so that nothing goes through a disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capfilt_blip.beam import Beams, generate_beams
from capfilt_blip.blip import BlipCaptioner, BlipMatcher
from capfilt_blip.config import BlipConfig
from capfilt_blip.decode import Limits, generate_greedy
from capfilt_blip.files.hf_names import stored_tensors
from capfilt_blip.losses import lm_loss

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.long

M = TypeVar("M", bound=nn.Module)

PROMPT = [30522, 1037, 3861, 1997]  # [DEC] a picture of
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def lively(model: M) -> M:
    """Random weights, none of them 0.

    Branches are weaker than what they are added to, as in trained models. Else the image would
    drown the text, all orders of the same words would score alike, and rounding would choose.
    """
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            nn.init.normal_(weight, mean=1.0, std=0.1, generator=generator)
        else:
            fan_in = weight[0].numel() if weight.dim() > 1 else 100
            gain = 0.4 if ".out." in name or ".down." in name else 2.0
            nn.init.normal_(weight, std=gain / math.sqrt(fan_in), generator=generator)
    return model.eval()


def twin(ours: BlipCaptioner | BlipMatcher, *, architecture: str) -> Any:
    """Return transformers' model, of the very same tensors."""
    fields = ours.config.to_hf(architecture=architecture)
    with torch.device("meta"):
        model = getattr(transformers, architecture)(transformers.BlipConfig(**fields))
    weights = {name: weight.data for name, weight in stored_tensors(ours).items()}
    found = model.load_state_dict(weights, assign=True, strict=False)
    model.tie_weights()
    assert not found.unexpected_keys
    assert all(".decoder." in key for key in found.missing_keys)  # tied to others
    for module in model.modules():
        if "position_ids" in dict(module.named_buffers(recurse=False)):
            module.position_ids = torch.arange(module.position_ids.shape[1])[None]
    return model.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    captioner: BlipCaptioner
    hf_captioner: Any
    matcher: BlipMatcher
    hf_matcher: Any
    embeds: Tensor
    hf_embeds: Tensor


@pytest.fixture(scope="module", params=["base", "large"])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    config = getattr(BlipConfig, request.param)()
    with torch.device("meta"):
        captioner, matcher = BlipCaptioner(config), BlipMatcher(config)
    lively(captioner)
    # Of the same vision and text weights: the captioner's stack is read as an encoder.
    matcher.vision, matcher.text_encoder = captioner.vision, captioner.text_decoder
    heads = nn.ModuleList([matcher.vision_proj, matcher.text_proj, matcher.itm_head])
    lively(heads)
    hf_captioner = twin(captioner, architecture="BlipForConditionalGeneration")
    hf_matcher = twin(matcher.eval(), architecture="BlipForImageTextRetrieval")
    # Coarse patterns: fine noise looks alike to a random model.
    coarse = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    pixels = coarse.repeat_interleave(64, 2).repeat_interleave(64, 3)
    with torch.no_grad():
        yield Case(
            captioner=captioner,
            hf_captioner=hf_captioner,
            matcher=matcher,
            hf_matcher=hf_matcher,
            embeds=captioner.vision(pixels),
            hf_embeds=hf_captioner.vision_model(pixels).last_hidden_state,
        )


def texts(*, first: int) -> tuple[Tensor, Tensor]:
    """Two texts, the second shorter by four tokens."""
    ids = torch.randint(1000, 30000, (2, 14), generator=torch.Generator().manual_seed(2))
    ids[:, :4] = torch.tensor(PROMPT)
    ids[:, 0] = first
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 10:] = False
    return ids.masked_fill(~mask, 0), mask


def test_image_tokens_are_equal(case: Case) -> None:
    assert case.embeds.std(dim=1).mean() > 0.3  # the tokens of an image differ
    torch.testing.assert_close(case.embeds, case.hf_embeds, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_language_model_logits_and_losses_are_equal(case: Case, label_smoothing: float) -> None:
    ids, mask = texts(first=case.captioner.config.bos_token_id)
    labels = ids.masked_fill(~mask, -100)
    labels[:, :4] = -100
    case.hf_captioner.text_decoder.label_smoothing = label_smoothing
    theirs = case.hf_captioner.text_decoder(
        input_ids=ids,
        attention_mask=mask.long(),
        encoder_hidden_states=case.hf_embeds,
        labels=labels,
        reduction="mean",
    )
    memory = case.captioner.text_decoder.project_memory(case.embeds)
    logits = case.captioner.lm_logits(ids, mask, memory)
    loss = lm_loss(logits, ids, mask, num_prompt_tokens=4, label_smoothing=label_smoothing)
    torch.testing.assert_close(logits[mask], theirs.logits[mask], **CLOSE)
    torch.testing.assert_close(loss, theirs.loss, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("num_beams", [1, 3])
def test_greedy_and_beam_token_ids_are_equal(case: Case, num_beams: int) -> None:
    # A penalty, for random weights repeat one token for ever.
    limits = Limits(min_new_tokens=1, max_new_tokens=8, repetition_penalty=3.0)
    config = case.captioner.config
    expected = case.hf_captioner.text_decoder.generate(
        input_ids=torch.tensor([PROMPT, PROMPT]),
        encoder_hidden_states=case.hf_embeds,
        eos_token_id=config.sep_token_id,
        pad_token_id=config.pad_token_id,
        num_beams=num_beams,
        min_new_tokens=limits.min_new_tokens,
        max_new_tokens=limits.max_new_tokens,
        repetition_penalty=limits.repetition_penalty,
    )[:, len(PROMPT) :]
    # As the captioner reads images: as they are for greedy, by keys and values for beams.
    num_queries = num_beams * (len(PROMPT) + limits.max_new_tokens)
    memory = case.captioner.text_decoder.memory_for(case.embeds, num_queries=num_queries)
    assert isinstance(memory.layers[0], Tensor) == (num_beams == 1)
    if num_beams == 1:
        found = generate_greedy(case.captioner, memory, prompt_ids=PROMPT, limits=limits)
    else:
        beams = Beams(num_beams=num_beams)
        found = generate_beams(
            case.captioner, memory, prompt_ids=PROMPT, limits=limits, beams=beams
        )
    assert found.token_ids.unique().numel() > 6  # no degenerate text
    assert torch.equal(found.token_ids, expected)


@torch.no_grad()
def test_itm_logits_are_equal_with_cls_at_position_0(case: Case) -> None:
    ids, mask = texts(first=case.matcher.config.cls_token_id)
    theirs = case.hf_matcher.text_encoder(
        input_ids=ids, attention_mask=mask.long(), encoder_hidden_states=case.hf_embeds
    ).last_hidden_state[:, 0]
    memory = case.matcher.text_encoder.project_memory(case.embeds)
    ours = case.matcher.itm_logits(ids, mask, memory)
    torch.testing.assert_close(ours, case.hf_matcher.itm_head(theirs), **CLOSE)


@torch.no_grad()
def test_itc_cosines_are_equal(case: Case) -> None:
    ids, mask = texts(first=case.matcher.config.cls_token_id)
    hf_text = case.hf_matcher.text_encoder(input_ids=ids, attention_mask=mask.long())
    hf_vectors = (
        F.normalize(case.hf_matcher.vision_proj(case.hf_embeds[:, 0]), dim=-1),
        F.normalize(case.hf_matcher.text_proj(hf_text.last_hidden_state[:, 0]), dim=-1),
    )
    cosines = case.matcher.image_vectors(case.embeds) @ case.matcher.text_vectors(ids, mask).T
    torch.testing.assert_close(cosines, hf_vectors[0] @ hf_vectors[1].T, **CLOSE)
