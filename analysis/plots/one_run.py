"""The curves of one training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppvae.analysis.plots.style import BLUE, GREEN, GREY, STYLE, VERMILION, WIDTH, Array, signed


def training_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """ELBO of training and validation rows by epoch, and below it rate and distortion; nats per datum.

    Args:
        history: The rows of ``Run.history``. The band around the validation ELBO is its standard error; the ring marks the best epoch.
    """
    epochs = _column(history, "epoch")
    measured = bool(np.isfinite(_column(history, "rate")).any())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9 if measured else 2.0), layout="constrained")
        panels = figure.subplots(2 if measured else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 2] if measured else [1])[:, 0]
        _elbo_panel(panels[0], epochs, history)
        if measured:
            for name, color, style in (("distortion", GREEN, "-"), ("rate", VERMILION, "--")):
                panels[1].plot(epochs, _column(history, name), color=color, linestyle=style, label=name)
            panels[1].set_ylim(bottom=0)
            panels[1].set_ylabel("nats per datum")
            panels[1].legend(loc="best", ncols=2)
        panels[-1].set_xlabel("epoch")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.align_ylabels()
    return figure


def _elbo_panel(axes: Axes, epochs: Array, history: Sequence[Mapping[str, Any]]) -> None:
    axes.plot(epochs, _column(history, "train_elbo"), color=GREY, label="training")
    axes.set_ylabel("ELBO, nats per datum")
    if "validation_elbo" in history[0]:
        validation, se = _column(history, "validation_elbo"), np.nan_to_num(_column(history, "validation_elbo_se"))
        axes.plot(epochs, validation, color=BLUE, label="validation")
        axes.fill_between(epochs, validation - se, validation + se, color=BLUE, alpha=0.2, linewidth=0)
        best = int(np.nanargmax(validation))
        label = f"best: {signed(validation[best], 2)}, epoch {epochs[best]:.0f}"
        axes.plot(epochs[best], validation[best], "o", color=BLUE, fillstyle="none", markersize=5, linestyle="none", label=label)
    axes.legend(loc="lower right")


def _column(history: Sequence[Mapping[str, Any]], name: str) -> Array:
    return np.array([row.get(name, math.nan) for row in history], dtype=float)
