"""The report's charts, as inline SVG.

Colours and type come from the page's style sheet, so charts follow light and dark mode; geometry is
in attributes, for the page's policy forbids `style`. Text that is not ours goes through `escape`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from capfilt.records import TextSource, TrainStep
from capfilt.stages.report_scores import BINS, DROPPED, KEPT, UNJUDGED, Counts, Yardstick

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 22, 26  # room around the plot, for labels
PLOT_WIDTH = WIDTH - LEFT - RIGHT
PLOT_HEIGHT = HEIGHT - TOP - BOTTOM
BAR_UNITS = 1000
MIN_SEGMENT = 3  # of BAR_UNITS: one row of a million is still seen
DROP_SHADES = 6  # classes d0 to d5 of the style sheet
MAX_POINTS = 200  # of a curve; more are averaged

OUTCOMES = {KEPT: "kept", DROPPED: "dropped", UNJUDGED: "not judged"}
LOSSES = {"itc_loss": "ITC", "itm_loss": "ITM", "lm_loss": "LM"}


def funnel_bar(kept: int, dropped: Sequence[tuple[str, int]], *, full: int) -> str:
    """One stage as a bar: what was kept, then what was dropped, a shade per reason.

    Args:
        kept: rows.
        dropped: reasons and rows, in the order they are listed beside the bar.
        full: rows that a bar of full width stands for.
    """
    parts = [("kept", kept), *dropped]
    bar, start = "", 0.0
    for number, (name, count) in enumerate(parts):
        if count:
            width = max(MIN_SEGMENT, BAR_UNITS * count / max(full, 1))
            shade = "kept" if number == 0 else drop_shade(number - 1)
            bar += (
                f'<rect class="{shade}" x="{start:.2f}" y="0" width="{width:.2f}" height="10">'
                f"<title>{escape(name)}: {count:,}</title></rect>"
            )
            start += width
    return (
        f'<svg class="bar" viewBox="0 0 {max(BAR_UNITS, start):.2f} 10" '
        f'preserveAspectRatio="none" aria-hidden="true">{bar}</svg>'
    )


def drop_shade(number: int) -> str:
    """The class of the n-th reason of a stage."""
    return f"d{number % DROP_SHADES}"


def score_bar(fit: float, *, yardstick: Yardstick, source: TextSource) -> str:
    """A score as a small bar, with the threshold of its source as a tick, if there is one."""
    threshold = yardstick.thresholds[source]
    tick = "" if threshold is None else _tick(yardstick.share(threshold))
    return (
        '<svg class="score" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="rail" x="0" y="2" width="100" height="4"/>'
        f'<rect class="level" x="0" y="2" width="{yardstick.share(fit) * 100:.2f}" height="4"/>'
        f"{tick}</svg>"
    )


def _tick(share: float) -> str:
    return f'<rect class="tick" x="{share * 100 - 0.5:.2f}" y="0" width="1" height="8"/>'


def histogram(counts: Counts, *, yardstick: Yardstick, source: TextSource) -> str:
    """Texts of one source by their scores, kept and dropped ones stacked.

    The vertical axis shows square roots: a good filter is sure of most texts, and on a linear axis
    the doubtful ones between would vanish.

    Args:
        counts: (3 outcomes, BINS) texts.
        yardstick: what the horizontal axis shows, and where the dashed line is.
        source: of the texts; the colour's class.
    """
    most = int(counts.sum(axis=0).max(initial=0))
    edges = [_along(yardstick, i / BINS) for i in range(BINS + 1)]
    bars = "".join(
        _stack(i, edges[i : i + 2], [(o, int(counts[o, i])) for o in OUTCOMES], most=most)
        for i in range(BINS)
    )
    marks = "".join(
        _x_label(LEFT + x * PLOT_WIDTH, _along(yardstick, x)) for x in (0, 0.25, 0.5, 0.75, 1)
    )
    marks += "".join(_y_line(_root_share(n, most), f"{n:,}") for n in _root_ticks(most))
    return _chart(
        f"{source} texts by {yardstick.words}",
        f'{marks}<g class="{source}">{bars}</g>{_threshold_line(yardstick, source)}',
    )


def _along(yardstick: Yardstick, share: float) -> str:
    """The number at a place of the scale."""
    return f"{round(yardstick.low + share * (yardstick.high - yardstick.low), 6):.3g}"


def _stack(
    position: int, edges: Sequence[str], parts: Sequence[tuple[int, int]], *, most: int
) -> str:
    """One bin: its whole height is the root of all its texts, shared out in proportion."""
    total = sum(count for _, count in parts)
    if not total:
        return ""
    step = PLOT_WIDTH / BINS
    height = max(1.5, _root_share(total, most) * PLOT_HEIGHT)
    said = ", ".join(f"{count:,} {OUTCOMES[outcome]}" for outcome, count in parts if count)
    title = f"{edges[0]} to {edges[1]}: {said}"
    stack, bottom = "", float(TOP + PLOT_HEIGHT)
    for outcome, count in parts:
        if count:
            part = height * count / total
            bottom -= part
            stack += (
                f'<rect class="o{outcome}" x="{LEFT + position * step + 0.4:.2f}" '
                f'y="{bottom:.2f}" width="{step - 0.8:.2f}" height="{part:.2f}"/>'
            )
    return f"<g><title>{title}</title>{stack}</g>"


def _threshold_line(yardstick: Yardstick, source: TextSource) -> str:
    threshold = yardstick.thresholds[source]
    if threshold is None:
        return ""
    share = yardstick.share(threshold)
    x = LEFT + share * PLOT_WIDTH
    anchor = "end" if share > 0.8 else "start"
    offset = -4 if share > 0.8 else 4
    return (
        f'<line class="threshold" x1="{x:.2f}" y1="{TOP - 10}" x2="{x:.2f}" '
        f'y2="{TOP + PLOT_HEIGHT}"/>'
        f'<text class="threshold" x="{x + offset:.2f}" y="{TOP - 5}" text-anchor="{anchor}">'
        f"kept from {threshold:g}</text>"
    )


def loss_curves(steps: Sequence[TrainStep], *, phase: str) -> str:
    """The losses of one phase of training over its steps, with their last values.

    Args:
        steps: of the phase, in order.
        phase: its name, for readers who cannot see the chart.
    """
    curves = {
        loss: points
        for loss in LOSSES
        if (points := averaged([(s.step, _loss(s, loss)) for s in steps]))
    }
    last_step = max((step.step for step in steps), default=0)
    top = max((y for points in curves.values() for _, y in points), default=0.0)
    ticks = _even_ticks(top)
    top = max(top, ticks[-1])
    marks = "".join(_y_line(tick / top, f"{tick:g}") for tick in ticks)
    marks += _x_label(LEFT, "0") + _x_label(LEFT + PLOT_WIDTH, f"step {last_step:,}", "end")
    lines = "".join(_curve(loss, points, last_step, top) for loss, points in curves.items())
    return _chart(f"{phase}: losses by step", marks + lines)


def last_losses(steps: Sequence[TrainStep]) -> dict[str, float]:
    """The last value of each loss a phase has, by the loss's name in the chart's classes."""
    last: dict[str, float] = {}
    for step in steps:
        for loss in LOSSES:
            value = _loss(step, loss)
            if value is not None:
                last[loss] = value
    return last


def averaged(points: Sequence[tuple[int, float | None]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points, each the mean of its neighbours; missing values are left out."""
    finite = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    size = max(1, math.ceil(len(finite) / MAX_POINTS))
    pieces = [finite[i : i + size] for i in range(0, len(finite), size)]
    return [
        (sum(x for x, _ in piece) / len(piece), sum(y for _, y in piece) / len(piece))
        for piece in pieces
    ]


def _loss(step: TrainStep, name: str) -> float | None:
    values: Mapping[str, float | None] = {
        "itc_loss": step.itc_loss,
        "itm_loss": step.itm_loss,
        "lm_loss": step.lm_loss,
    }
    return values[name]


def _curve(loss: str, points: Sequence[tuple[float, float]], last_step: int, top: float) -> str:
    places = [
        (LEFT + PLOT_WIDTH * x / max(last_step, 1), TOP + PLOT_HEIGHT * (1 - y / top))
        for x, y in points
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    x, y = places[-1]
    return (
        f'<polyline class="{loss}" points="{line}"/>'
        f'<circle class="{loss}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
    )


def _chart(label: str, content: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{content}</svg>'
    )


def _x_label(x: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="{anchor}">{text}</text>'


def _y_line(share: float, text: str) -> str:
    y = TOP + PLOT_HEIGHT * (1 - share)
    return (
        f'<line class="grid" x1="{LEFT}" y1="{y:.2f}" x2="{WIDTH - RIGHT}" y2="{y:.2f}"/>'
        f'<text x="{LEFT - 5}" y="{y + 3.5:.2f}" text-anchor="end">{text}</text>'
    )


def _root_ticks(most: int) -> list[int]:
    """Counts to label on an axis of square roots: 0, the largest round one, and one between."""
    if most < 1:
        return [0]
    top = _round_down(most)
    middle = _round_down(top / 4)
    return [0, *([middle] if 1 <= middle < top else []), top]


def _even_ticks(top: float) -> list[float]:
    """0 and a few round numbers up to the top, never none."""
    if top <= 0:
        return [0.0, 1.0]
    step = _round_down_float(top / 2)
    return [step * i for i in range(int(top / step + 1e-9) + 1)]


def _round_down(value: float) -> int:
    return int(_round_down_float(value)) if value >= 1 else 0


def _round_down_float(value: float) -> float:
    """The largest of 1, 2, 5, 10, 20 ... (and 0.5, 0.2 ...) that is not above the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(digit * power for digit in (5, 2, 1, 0.5) if digit * power <= value)


def _root_share(count: int, most: int) -> float:
    return math.sqrt(count / most) if most else 0.0
