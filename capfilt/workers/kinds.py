"""Which code runs a model: decided by the `model_type` of its config.json, and by nothing else.

A model of type `blip` runs on capfilt's own package. Any other captioner runs on transformers; a
filter may also be one of the dual encoders below. What is decided here needs no torch, so that a
recipe is refused before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

from capfilt.config import DType
from capfilt.errors import CheckpointError

BLIP = "blip"

DUAL_ENCODERS: Mapping[str, bool] = {
    "clip": False,
    "metaclip_2": False,
    "siglip": True,
    "siglip2": True,
}
"""Dual encoders of transformers that can be the filter, and whether they give a pair of image and
text a probability. SigLIP's loss asks of each pair whether it belongs together (arXiv:2303.15343,
sec. 3.2); CLIP's only compares texts with each other, so its number means nothing by itself."""


def is_blip(model_type: str | None) -> bool:
    """Whether a model runs on capfilt_blip.

    Args:
        model_type: as recorded; None by a run of a version that knew BLIP alone.
    """
    return model_type in (BLIP, None)


def gives_match_probability(model_type: str | None) -> bool:
    """Whether a filter's scores hold `itm_prob`; if not, it is null in every row."""
    return is_blip(model_type) or DUAL_ENCODERS.get(model_type or "", True)


def check_filter(name: str, model_type: str | None) -> None:
    """Refuse a model that cannot be the filter.

    Raises:
        CheckpointError: says which can.
    """
    if not is_blip(model_type) and model_type not in DUAL_ENCODERS:
        raise CheckpointError(
            f"{name}: a model of type {model_type!r} cannot be the filter; "
            f"types that can: {', '.join([BLIP, *DUAL_ENCODERS])}"
        )


CAPTIONER = "BlipForConditionalGeneration"
FILTER = "BlipForImageTextRetrieval"
"""The architectures of a BLIP that was finetuned to be one or the other, as transformers calls
them. One that was only pre-trained can be both."""


def check_role(name: str, role: str, architecture: str | None) -> None:
    """Refuse a captioner that stands where the filter should, and the other way round.

    Args:
        name: of the model, for the message.
        role: `captioner` or `filter`.
        architecture: as its config.json has it.

    Raises:
        CheckpointError: the model was finetuned for the other role.
    """
    made_for = {CAPTIONER: "captioner", FILTER: "filter"}.get(architecture or "", role)
    if made_for != role:
        field = {"captioner": "caption.model", "filter": "score.model"}[role]
        raise CheckpointError(
            f"{name}: is a {made_for} ({architecture}), and {field} names it as the {role}; "
            "caption.model takes the captioner, score.model the filter"
        )


def check_dtype(name: str, model_type: str | None, dtype: DType) -> None:
    """Refuse a number format that a model cannot compute in, before anything is loaded.

    Raises:
        CheckpointError: it is int8, whose effect is known for BLIP alone.
    """
    if dtype == "int8" and not is_blip(model_type):
        raise CheckpointError(
            f"{name}: a model of type {model_type!r} cannot compute in int8, which is for BLIP; "
            "set its dtype: float32"
        )


IMAGE_ONLY = ("vision-encoder-decoder",)
"""Captioners whose input is the image alone."""


def takes_prompt(model_type: str | None) -> bool:
    """Whether a captioner reads a prompt."""
    return model_type not in IMAGE_ONLY
