"""The plots of the page, as SVG: a row for each arm, a dot for each seed, a bar at their mean."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import TypeVar

Name = TypeVar("Name", bound=str)

_WIDTH, _PANEL_WIDTH, _PANELS_PER_LINE = 760, 280, 2
_LEFT, _TOP, _ROW = 160, 26, 18
_STYLE = "font-family: sans-serif; font-size: 11px"
_INK, _GREY, _BLUE, _RAIL = "#222", "#666", "#1f6feb", "#ddd"


def dots(panels: Mapping[str, Mapping[Name, Sequence[float]]]) -> str:
    """Draw panels of two to a line.

    Args:
        panels: by title, the values of each arm over the seeds. All panels have the same arms, and
            each has a scale of its own, from 0 to its highest value.
    """
    arms = list(next(iter(panels.values())))
    height = _TOP + _ROW * len(arms) + 24
    num_lines = -(-len(panels) // _PANELS_PER_LINE)
    parts = [
        _panel(
            title,
            values,
            x=_LEFT + (place % _PANELS_PER_LINE) * (_PANEL_WIDTH + 20),
            y=height * (place // _PANELS_PER_LINE),
        )
        for place, (title, values) in enumerate(panels.items())
    ]
    names = [
        _text(_LEFT - 12, height * line + _middle(row), arm, anchor="end")
        for line in range(num_lines)
        for row, arm in enumerate(arms)
    ]
    return _document("".join(names + parts), height=height * num_lines)


def _panel(title: str, values: Mapping[Name, Sequence[float]], *, x: float, y: float) -> str:
    top = max((value for seeds in values.values() for value in seeds), default=0.0) or 1.0
    rows = "".join(
        _row(seeds, top=top, x=x, y=y + _middle(row)) for row, seeds in enumerate(values.values())
    )
    bottom = y + _TOP + _ROW * len(values) + 10
    scale = _text(x, bottom, "0", colour=_GREY) + _text(
        x + _PANEL_WIDTH - 20, bottom, f"{top:.2f}", anchor="end", colour=_GREY
    )
    return f"<g>{_text(x, y + 14, title)}{rows}{scale}</g>"


def _row(seeds: Sequence[float], *, top: float, x: float, y: float) -> str:
    full = _PANEL_WIDTH - 20
    rail = f'<line x1="{x}" y1="{y}" x2="{x + full}" y2="{y}" stroke="{_RAIL}"/>'
    if not seeds:
        return rail + _text(x, y + 4, "not measured", colour=_GREY)
    mean = x + full * statistics.fmean(seeds) / top
    bar = (
        f'<line x1="{mean:.1f}" y1="{y - 6}" x2="{mean:.1f}" y2="{y + 6}" '
        f'stroke="{_INK}" stroke-width="2"/>'
    )
    dots = "".join(
        f'<circle cx="{x + full * value / top:.1f}" cy="{y}" r="3.5" fill="{_BLUE}" '
        f'fill-opacity="0.6"><title>{value:.3f}</title></circle>'
        for value in seeds
    )
    return rail + dots + bar


def _middle(row: int) -> float:
    return _TOP + _ROW * (row + 0.5)


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = _INK) -> str:
    return f'<text x="{x}" y="{y + 4}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _document(content: str, *, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'style="{_STYLE}"><rect width="{_WIDTH}" height="{height}" fill="white"/>{content}</svg>\n'
    )
