"""The round reports side by side: the same rows for the command line and the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from capfilt.stages.diversity import Share
from capfilt.stages.round_report import RoundReport

MAX_SHOWN_CHARS = 40
"""Of a caption or a warning: columns stand side by side."""
NOT_SHOWN = (
    *("step", "num_samples", "learning_rate", "grad_norm", "temperature"),
    *("itc_loss", "itm_loss", "lm_loss"),
)
"""Numbers of training that do not say how good a round was, or that `loss` is the sum of."""


def round_rows(reports: Sequence[RoundReport]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What was measured of some rounds: a name, and a cell per round."""
    columns = [dict(_figures(report)) for report in reports]
    for name in dict.fromkeys(name for column in columns for name in column):
        yield name, tuple(column.get(name, "-") for column in columns)


def _figures(report: RoundReport) -> Iterator[tuple[str, str]]:
    captions = report.captions
    yield from _share("captions rejected (noise)", report.noise_ratio)
    yield from _share("web texts kept", report.web.kept)
    yield from _share("captions kept", report.synthetic.kept)
    yield "images with a kept text", f"{report.images_kept:,}"
    yield "texts per such image", _number(report.texts_per_kept_image)
    yield "images published", f"{report.images_published:,}"
    yield "mean ITM, web texts", _number(report.web.mean_itm_prob)
    yield "mean ITM, captions", _number(report.synthetic.mean_itm_prob)
    yield "mean ITC, web texts", _number(report.web.mean_itc_cos)
    yield "mean ITC, captions", _number(report.synthetic.mean_itc_cos)
    yield "distinct captions", _percent(captions.distinct_captions)
    yield "commonest caption", _cut(captions.commonest or "-")
    yield from _share("  its share", captions.commonest_caption)
    yield "vocabulary, words", f"{captions.vocabulary:,}"
    yield "words per caption", _number(captions.words_per_caption)
    yield "distinct-1", _number(captions.distinct_1)
    yield "distinct-2", _number(captions.distinct_2)
    if report.audit_disagreement is not None:
        yield from _share("cascade: ITM disagrees", report.audit_disagreement)
    for phase in report.training:
        if phase.warnings:
            yield f"{phase.phase}: warnings", "; ".join(map(_cut, phase.warnings))
        for name, value in phase.values.items():
            if name not in NOT_SHOWN:
                yield f"{phase.phase}: {name.replace('_', ' ')}", f"{value:,.4g}"


def _share(name: str, share: Share) -> Iterator[tuple[str, str]]:
    yield name, _percent(share)
    yield "  95 % interval of " + name.strip(), f"{share.low:.1%} to {share.high:.1%}"


def _percent(share: Share) -> str:
    if share.share is None:
        return "-"
    return f"{share.share:.1%} ({share.count:,} of {share.total:,})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."
