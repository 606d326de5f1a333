"""What pictures are drawn on: a figure of matplotlib in the house's style, with axes that people can read."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bigvocab.reports.page.shown import Html, plain_name
from bigvocab.reports.page.svg import GRID, INK, MUTED, PAPER, SERIES, inline

WIDTH, HEIGHT = 400, 250  # units of the picture; its text is 11 of them high, and can be read on a phone
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bigvocab",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "hatch.color": PAPER,
}


@contextmanager
def style() -> Iterator[None]:
    """Our style alone, whatever the user's matplotlibrc says."""
    import matplotlib
    from cycler import cycler

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE | {"axes.prop_cycle": cycler(color=SERIES)})
        yield


class Canvas:
    """A figure that is being drawn, with one row of axes per height in `rows`; margins are in units."""

    def __init__(
        self,
        height: float = HEIGHT,
        *,
        rows: Sequence[float] = (1,),
        left: float = 58,
        top: float = 14,
        bottom: float = 42,
    ) -> None:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=(WIDTH / 72, height / 72))
        FigureCanvasSVG(self._figure)
        margins = {
            "left": left / WIDTH,
            "right": 1 - 24 / WIDTH,  # half of the widest label of the last tick
            "bottom": bottom / height,
            "top": 1 - top / height,
            "hspace": 0.12,
        }
        axes = self._figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=rows, gridspec_kw=margins)
        self.panels: list[Any] = [row[0] for row in axes]
        self.axes = self.panels[0]
        self._texts: dict[str, str] = {}

    def placeholder(self, name: str, most: int) -> str:
        """What to draw in place of a name from data."""
        shown = plain_name(name, most)
        mark = f"name-{len(self._texts)}-".ljust(len(shown), "n")  # as wide, for what is laid out around it
        self._texts[mark] = shown
        return mark

    def svg(self, key: str, title: str, description: str) -> Html:
        """What was drawn."""
        text = io.StringIO()
        self._figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        return inline(text.getvalue(), key, title, description, self._texts)


def drawable(value: float | None) -> bool:
    """Whether a number has a place on paper."""
    return value is not None and math.isfinite(value) and abs(value) < 1e100


def short(value: float, _: Any = None) -> str:
    """A number at an axis.

    >>> short(0), short(0.25), short(1500), short(20000), short(3e6), short(1e-5)
    ('0', '0.25', '1,500', '20k', '3M', '1e-5')
    """
    size = abs(value)
    if size >= 1e12 or 0 < size < 1e-3:
        power = math.floor(math.log10(size) + 1e-9)
        return f"{value / 10.0**power:.3g}e{power}"
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= least:
            return f"{value / unit:.4g}{letter}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def linear_ticks(axis: Any, show: Callable[..., str] = short, *, most: int = 6, whole: bool = False) -> None:
    """At most so many round steps."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(most, integer=whole, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(show))


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Powers of ten; where there are few, also 2 and 5 times these."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, math.ceil((last - first) / 6))
    factors = (1,) if last - first > 2 else (1, 2, 5)
    places = [f * 10.0**p for p in range(first, last + 1, step) for f in factors]
    axis.set_major_locator(FixedLocator([place for place in places if low * 0.999 <= place <= high * 1.001]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(short))
    axis.set_minor_formatter(NullFormatter())


def share_ticks(axis: Any) -> None:
    """From 0% to 100%."""
    from matplotlib.ticker import FixedLocator, FuncFormatter

    axis.set_major_locator(FixedLocator([0, 0.2, 0.4, 0.6, 0.8, 1]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))


def log_scale(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic y axis around these values, which are above 0."""
    low, high = min(values), max(values)
    low, high = (low / 1.5, high * 1.5) if high / low > 1.01 else (low / 3, high * 3)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    log_ticks(axes.yaxis, low, high)
