"""The settings with which the original writes captions, ready to be handed to a `Captioner`.

    captioner.caption(images, **ORIGINAL_NUCLEUS)
    captioner.beam(images, **ORIGINAL_BEAM)

The original's lengths count the four ids of its prompt, [DEC] a picture of; those here count new
tokens, so max_length=20, min_length=5 is 16 and 1. Its sampling is more than the nucleus of 0.9
that it asks for: `BLIP_Decoder.generate` adds a repetition penalty of 1.1, which sees the prompt,
and transformers 4.15 a top-k of 50. (salesforce/BLIP: models/blip.py, demo.ipynb, eval_nocaps.py,
configs/caption_coco.yaml and nocaps.yaml.)
"""

from __future__ import annotations

from typing import TypedDict


class CaptionOptions(TypedDict):
    """Arguments of `Captioner.caption`, which says what they mean."""

    top_p: float
    top_k: int
    temperature: float
    repetition_penalty: float
    min_new_tokens: int
    max_new_tokens: int


class BeamOptions(TypedDict):
    """Arguments of `Captioner.beam`, which says what they mean."""

    num_beams: int
    length_penalty: float
    repetition_penalty: float
    min_new_tokens: int
    max_new_tokens: int


ORIGINAL_NUCLEUS: CaptionOptions = {
    "top_p": 0.9,
    "top_k": 50,
    "temperature": 1.0,
    "repetition_penalty": 1.1,
    "min_new_tokens": 1,
    "max_new_tokens": 16,
}
"""Nucleus sampling as the demo does it: generate(sample=True, max_length=20, min_length=5)."""

ORIGINAL_NUCLEUS_LONG: CaptionOptions = {
    **ORIGINAL_NUCLEUS,
    "min_new_tokens": 6,
    "max_new_tokens": 26,
}
"""Nucleus sampling with generate()'s own lengths: max_length=30, min_length=10."""

ORIGINAL_BEAM: BeamOptions = {
    "num_beams": 3,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "min_new_tokens": 1,
    "max_new_tokens": 16,
}
"""Beam search as in the evaluation on COCO: max_length=20, min_length=5."""

ORIGINAL_BEAM_LONG: BeamOptions = {**ORIGINAL_BEAM, "min_new_tokens": 6, "max_new_tokens": 26}
"""Beam search with generate()'s own lengths: max_length=30, min_length=10."""

NOCAPS_BEAM: BeamOptions = {**ORIGINAL_BEAM, "repetition_penalty": 1.1}
"""Beam search as in the evaluation on NoCaps."""
