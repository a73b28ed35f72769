from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from capfilt_blip.blip import BlipCaptioner
from capfilt_blip.decode import Limits, generate_sampled
from capfilt_blip.sampling import Sampling, row_key
from capfilt_blip.tasks.captioner import PROMPT, Captioner
from capfilt_blip.tasks.presets import (
    NOCAPS_BEAM,
    ORIGINAL_BEAM,
    ORIGINAL_BEAM_LONG,
    ORIGINAL_NUCLEUS,
    ORIGINAL_NUCLEUS_LONG,
)
from capfilt_blip.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

NUM_DRAWS = 4000


def flat_captioner(captioner: BlipCaptioner, tokenizer: Tokenizer) -> BlipCaptioner:
    """So flat that top-k cuts before top-p does; [SEP] and a word of the prompt are likely."""
    head = captioner.lm_head
    for parameter in (head.norm.weight, head.norm.bias, head.bias):
        parameter.data /= 6
    head.bias.data[tokenizer.prompt_ids(PROMPT)[2]] = 3.5
    head.bias.data[tokenizer.sep_id] = 4
    return captioner


@torch.no_grad()
def test_the_nucleus_is_what_transformers_processors_give_in_the_original_order(
    captioner: BlipCaptioner, tokenizer: Tokenizer
) -> None:
    model, prompt = flat_captioner(captioner, tokenizer), tokenizer.prompt_ids(PROMPT)
    memory = model.text_decoder.project_memory(torch.randn(1, 17, 64))
    ids = torch.tensor([prompt])
    logits = model.lm_logits(ids, torch.ones_like(ids, dtype=torch.bool), memory)[:, -1]
    # What generate() of transformers 4.15 makes of the demo's arguments; lengths with the prompt.
    processors = transformers.LogitsProcessorList(
        [
            transformers.RepetitionPenaltyLogitsProcessor(1.1),
            transformers.MinLengthLogitsProcessor(5, tokenizer.sep_id),
            transformers.TemperatureLogitsWarper(1.0),
            transformers.TopKLogitsWarper(50),
            transformers.TopPLogitsWarper(0.9),
        ]
    )
    expected = processors(ids, logits).softmax(-1)[0]
    options = ORIGINAL_NUCLEUS
    found = generate_sampled(
        model,
        memory,
        prompt_ids=prompt,
        row_keys=[row_key(seed=0, round_=0, key="a", caption_index=i) for i in range(NUM_DRAWS)],
        limits=Limits(
            min_new_tokens=options["min_new_tokens"],
            max_new_tokens=2,
            repetition_penalty=options["repetition_penalty"],
        ),
        sampling=Sampling(
            top_p=options["top_p"], top_k=options["top_k"], temperature=options["temperature"]
        ),
    )
    shares = torch.bincount(found.token_ids[:, 0], minlength=len(expected)) / NUM_DRAWS
    assert 30 < (expected > 0).sum() < 50  # top-k and top-p both cut
    assert expected[prompt[2]] > 0.1
    assert not shares[expected == 0].any()
    deviations = (expected * (1 - expected) / NUM_DRAWS).sqrt()
    assert ((shares - expected).abs() <= 4 * deviations).all()


@pytest.mark.parametrize(
    ("preset", "max_length", "min_length"),
    [
        (ORIGINAL_NUCLEUS, 20, 5),
        (ORIGINAL_NUCLEUS_LONG, 30, 10),
        (ORIGINAL_BEAM, 20, 5),
        (ORIGINAL_BEAM_LONG, 30, 10),
        (NOCAPS_BEAM, 20, 5),
    ],
)
def test_the_lengths_are_the_originals_without_the_four_prompt_ids(
    preset: dict[str, float], max_length: int, min_length: int
) -> None:
    assert preset["max_new_tokens"] == max_length - 4
    assert preset["min_new_tokens"] == min_length - 4


def test_a_preset_unpacks_into_its_method(
    captioner: BlipCaptioner, tokenizer: Tokenizer, images: NDArray[np.uint8]
) -> None:
    captioner.lm_head.bias.data[tokenizer.sep_id] = -1e4
    writer = Captioner(captioner, tokenizer)
    [[sampled], *_] = writer.caption(images[:2], **ORIGINAL_NUCLEUS)
    [searched, _] = writer.beam(images[:2], **ORIGINAL_BEAM)
    assert sampled.num_tokens == searched.num_tokens == 16
    assert writer.beam(images, **NOCAPS_BEAM) != writer.beam(images, **ORIGINAL_BEAM)


def test_true_nucleus_sampling_stays_the_default(
    captioner: BlipCaptioner, tokenizer: Tokenizer, images: NDArray[np.uint8]
) -> None:
    writer = Captioner(captioner, tokenizer)
    plain = writer.caption(images)
    assert plain == writer.caption(images, top_p=0.9, top_k=0, repetition_penalty=1.0)
    assert plain != writer.caption(images, **ORIGINAL_NUCLEUS)
