"""What all plots have in common: colours that colour-blind people tell apart, axes, error bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from experiments.intervals import Interval
from experiments.report.markup import plot_text

#: Okabe and Ito's colours for colour-blind readers, less the yellow, which is faint on white.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F6A00", "#7A5195")
SYMBOLS: Final = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down", "pentagon")
DASHES: Final = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
#: From nothing to the most, for heat-maps.
SCALE: Final = ((0.0, "#f3f7fb"), (1.0, "#08306b"))
#: In the order of legends and tables; each keeps its colour in every plot. What is not here comes after, by name.
FAMILIES: Final = (
    "single_task", "shared_bottom", "omoe", "mmoe", "ple", "soft_sharing", "cross_stitch", "progressive", "adversarial",
    "lightgbm",
)  # fmt: skip


def family_order(name: str) -> tuple[int, str]:
    """A key to sort families by."""
    return (FAMILIES.index(name) if name in FAMILIES else len(FAMILIES), name)


def look(position: int, *, lines: bool = True) -> dict[str, Any]:
    """Colour, symbol and dash of the series at this position: never told by the colour alone."""
    colour = COLOURS[position % len(COLOURS)]
    drawn: dict[str, Any] = {
        "marker": {"color": colour, "symbol": SYMBOLS[position % len(SYMBOLS)], "size": 8},
        "mode": "lines+markers" if lines else "markers",
    }
    if lines:
        drawn["line"] = {"color": colour, "dash": DASHES[position % len(DASHES)], "width": 2}
    return drawn


def family_look(name: str, *, lines: bool = True) -> dict[str, Any]:
    """A family's own look."""
    return look(family_order(name)[0], lines=lines)


def axis(title: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401  # plotly's attributes
    """An axis with a title."""
    return {"title": {"text": plot_text(title)}, "gridcolor": "#e6e8eb", "zeroline": False, "automargin": True, **more}


def steps(unit: str, most: int) -> dict[str, Any]:
    """An axis of epochs or rounds: whole numbers, about ten of them."""
    return axis(unit, dtick=max(1, most // 10), tick0=0)


def layout(horizontal: Mapping[str, Any], vertical: Mapping[str, Any], height: int = 420) -> dict[str, Any]:
    """A plot's frame; no title, as the caption is one."""
    return {
        "height": height,
        "xaxis": dict(horizontal),
        "yaxis": dict(vertical),
        "margin": {"l": 70, "r": 20, "t": 30, "b": 60},
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1b1f24"},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
    }


def error_bars(intervals: Sequence[Interval]) -> dict[str, Any]:
    """Bars from each interval's low to its high end; none where one value gave no interval."""
    finite = [math.isfinite(interval.half_width) for interval in intervals]
    return {
        "type": "data",
        "symmetric": False,
        "array": [i.high - i.mean if ok else None for i, ok in zip(intervals, finite, strict=True)],
        "arrayminus": [i.mean - i.low if ok else None for i, ok in zip(intervals, finite, strict=True)],
        "thickness": 1.2,
        "width": 4,
    }


def finite(values: Sequence[float | None]) -> list[float | None]:
    """Values as a plot takes them: a gap where there is none, or no finite one."""
    return [value if value is not None and math.isfinite(value) else None for value in values]
