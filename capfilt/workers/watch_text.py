"""Lines that show how a training goes. Pure: numbers in, text out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from capfilt_blip.evaluate.heldout import CaptionSample, HeldOut
from capfilt_blip.tasks.recall import Recalls

SAMPLES_SHOWN = 4
"""Captions in the terminal; the journals have all."""

PARTS = (("itc", "itc_loss"), ("itm", "itm_loss"), ("lm", "lm_loss"))


def place_text(phase: str, step: int, *, num_steps: int | None) -> str:
    """Say where a training stands.

    Args:
        phase: pretrain, captioner ...
        step: from 0; shown from 1, so that a phase ends at n/n.
        num_steps: of the whole phase; None if it is not known.
    """
    total = "" if num_steps is None else f"/{num_steps:,}"
    return f"{phase} step {step + 1:>{len(f'{num_steps or 0:,}')},}{total}"


def step_line(place: str, *, values: Mapping[str, float]) -> str:
    """Say what was measured in some steps; what was not is left out.

    Args:
        place: of `place_text`.
        values: by the names of `Watcher`.
    """
    parts = [place, _losses(values)]
    for name, shown in _FORMS:
        if name in values:
            parts.append(shown(values[name]))
    return "  ".join(parts)


def _losses(values: Mapping[str, float]) -> str:
    parts = [f"{short} {values[name]:.3f}" for short, name in PARTS if name in values]
    line = f"loss {values['loss']:6.3f}"
    return f"{line} ({' '.join(parts)})" if len(parts) > 1 else line


_FORMS: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("itm_accuracy", lambda share: f"itm right {share:4.0%}"),
    ("learning_rate", lambda rate: f"lr {short_power(rate)}"),
    ("temperature", lambda value: f"T {value:.3f}"),
    ("grad_norm", lambda norm: f"grad {norm:5.2f}"),
    ("samples_per_s", lambda rate: f"{rate_text(rate)} pairs/s"),
    ("mfu", lambda share: f"MFU {share:.1%}"),
    ("eta_s", lambda seconds: f"eta {time_text(seconds)}"),
)
"""After the losses, in this order."""


def short_power(value: float) -> str:
    """Write a small number with two digits: `2.9e-4`."""
    digits, power = f"{value:.1e}".split("e")
    return f"{digits}e{int(power)}"


def rate_text(per_s: float) -> str:
    """Write a rate with three digits at least: `812`, `3.25`."""
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:#.3g}"


def time_text(seconds: float) -> str:
    """Write a time to go with its two largest units: `2 h 10 min`, `3 d 4 h`, `45 s`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if hours else f"{minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def held_out_lines(place: str, *, found: HeldOut) -> Iterator[str]:
    """Say what was measured on held-out pairs, and show some captions."""
    for name, recalls in (("ITM", found.itm), ("ITC", found.itc)):
        if recalls is not None:
            yield f"{place}  held out: {_recalls(name, recalls)}"
    if found.cider_d is not None:
        yield f"{place}  held out: CIDEr-D {found.cider_d:.3f}"
    for sample in found.captions[:SAMPLES_SHOWN]:
        yield f"  {sample_line(sample)}"


def _recalls(name: str, found: Recalls) -> str:
    texts, images = (
        "/".join(f"{100 * share:.1f}" for share in shares) for shares in (found.texts, found.images)
    )
    return f"{name} recall at 1/5/10 of texts {texts} %, of images {images} %"


def sample_line(sample: CaptionSample) -> str:
    """Write a caption and the first reference, control characters spelled out."""
    if not sample.references:
        return repr(sample.text)
    return f"{sample.text!r} where a person wrote {sample.references[0]!r}"
