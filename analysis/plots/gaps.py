"""Where the ELBO is lost: a bar a gap, with both errors."""

from __future__ import annotations

import math
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppvae.analysis.estimate import Estimate
from ppvae.analysis.inference_gaps import InferenceGaps
from ppvae.analysis.plots.style import BLACK, BLUE, GREY, ORANGE, STYLE, UMBER, WIDTH, signed


def gap_decomposition(gaps: InferenceGaps) -> Figure:
    """From L[q] over L[q*] to log p(x): how much of the ELBO the encoder loses and how much the family, means over the data, nats.

    The errors of the gaps are standard errors of the N paired differences. The levels carry none: theirs, between data, is many times
    that of the gaps, and says nothing about them.
    """
    levels = {"log p(x)": gaps.log_px, "L[q*]  best in family": gaps.elbo_optimal, "L[q]  guide": gaps.elbo}
    names = list(levels)
    values = [level.mean().item() for level in levels.values()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.95), layout="constrained")
        axes = figure.subplots()
        axes.use_sticky_edges = False  # else the lowest bar's end is the end of the axis
        for row, value in zip((0, 2, 4), values, strict=True):
            axes.plot([value, value], [row - 0.36, row + 0.36], color=BLACK, linewidth=2, solid_capstyle="butt")
            _number(axes, row, signed(value, 2))
        for row, name, color, ink, left in ((1, "approximation", BLUE, BLUE, values[1]), (3, "amortization", ORANGE, UMBER, values[2])):
            gap = gaps.mean(name)
            axes.barh(row, gap.value, left=left, height=0.72, color=color, label=name)
            axes.errorbar(left + gap.value, row, xerr=_error(gap), color=BLACK, linewidth=0.8, capsize=2)
            _number(axes, row, _with_error(gap), weight="bold", color=ink)
        for value, first, last in ((values[0], 0, 1), (values[1], 1, 3), (values[2], 3, 4)):
            axes.plot([value, value], [first, last], color=GREY, linewidth=0.6, linestyle=":", zorder=0)
        axes.set_yticks(range(5), [names[0], "approximation gap", names[1], "amortization gap", names[2]])
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)
        axes.invert_yaxis()
        axes.margins(x=0.05)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("nats per datum")
        figure.suptitle(f"inference gap {_with_error(gaps.mean('inference'))} nats, N = {len(gaps.elbo):,}", fontsize=8)
    return figure


def _number(axes: Axes, row: float, text: str, **how: Any) -> None:
    """A number in a column of its own, right of the axes, where nothing can lie over it."""
    axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7, **how)


def _error(gap: Estimate) -> float:
    """Both errors of a gap together; that of a lone datum is its Monte Carlo error."""
    return math.hypot(0.0 if math.isnan(gap.data_se) else gap.data_se, gap.mc_se)


def _with_error(gap: Estimate) -> str:
    digits = 2 if _error(gap) >= 0.01 else 3
    return f"{signed(gap.value, digits)} ± {_error(gap):.{digits}f}"
