"""The one style of all figures: one column of a paper wide, nats on the axes, colours that colour-blind readers tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ppvae.errors import ArgumentError

WIDTH = 3.4  # inches, one column
# Okabe, Ito (2008), Color universal design.
BLACK, ORANGE, GREEN, BLUE, VERMILION = "#000000", "#E69F00", "#009E73", "#0072B2", "#D55E00"
SKY, PURPLE = "#56B4E9", "#CC79A7"
GREY, UMBER = "#7F7F7F", "#A87400"  # for what stands back; for words about what is orange
# Petroff (2021), Accessible color sequences for data visualization: ten, for labels.
TEN = ("#3F90DA", "#FFA90E", "#BD1F01", "#94A4A2", "#832DB6", "#A96B59", "#E76300", "#B9AC70", "#717581", "#92DADD")
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "image.interpolation": "none",
    "savefig.dpi": 200,
    "svg.hashsalt": "ppvae",  # with Date=None the same figure is the same bytes
    "svg.fonttype": "none",
}
FORMATS = (".png", ".svg", ".pdf")

Array = np.ndarray[Any, Any]


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure, in the form that the suffix names: .png at 200 dots per inch, .svg or .pdf.

    Raises:
        ArgumentError: Another suffix.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ArgumentError(f"a figure is written as one of {', '.join(FORMATS)}, got '{path.name}'", mend=f"{path.stem}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, Any] = {} if path.suffix == ".png" else {"Date" if path.suffix == ".svg" else "CreationDate": None}
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, metadata=metadata)
    return path


def array(x: Any) -> Array:
    """A NumPy array of a tensor or an array."""
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, dtype=float)


def signed(value: float, digits: int) -> str:
    """A number with the minus sign that the axes have, not a hyphen."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")
