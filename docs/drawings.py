"""The drawings of docs/contract.md, as SVG beside it: `python docs/drawings.py`. Equal bytes each time."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

FOLDER = Path(__file__).parent / "drawings"
BLACK, GREY, BLUE, ORANGE, GREEN, VERMILION = "#000000", "#777777", "#0072B2", "#E69F00", "#009E73", "#D55E00"
STYLE = {"font.size": 9, "svg.hashsalt": "ppvae", "svg.fonttype": "path"}


def canvas(width: float, height: float, across: float, down: float) -> tuple[Figure, Axes]:
    """A figure in inches with axes in units of their own, (0, 0) at the lower left."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, across), ylim=(0, down), aspect="equal")
    axes.axis("off")
    return figure, axes


def node(axes: Axes, x: float, y: float, name: str, observed: bool = False) -> None:
    """A site: a circle, grey where it is observed."""
    axes.add_patch(Circle((x, y), 0.36, facecolor="#D9D9D9" if observed else "white", edgecolor=BLACK, zorder=3))
    axes.text(x, y, name, ha="center", va="center", zorder=4, style="italic")


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], amortized: bool = False) -> None:
    """From site to site: drawn out for the model, broken for the guide."""
    bend = "arc3,rad=0.45" if amortized else "arc3"
    look = {"linestyle": "--", "color": BLUE} if amortized else {"linestyle": "-", "color": BLACK}
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, shrinkA=15, shrinkB=15, connectionstyle=bend, zorder=2, **look)
    )


def plate(axes: Axes, x: float, y: float, width: float, height: float, label: str, color: str) -> None:
    """A box with its label in the lower right corner."""
    axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=color, linewidth=1.3))
    axes.text(x + width - 0.1, y + 0.12, label, ha="right", va="bottom", fontsize=7.5, color=color, family="monospace")


def plates() -> Figure:
    """Which site lies in which plate."""
    figure, axes = canvas(7.2, 2.75, 14.4, 5.5)
    for left, title in ((0.2, "one plate"), (4.7, "a plate inside a datum"), (9.7, "a global site")):
        axes.text(left, 5.2, title, fontsize=9, weight="bold", va="center")
    plate(axes, 0.2, 0.3, 3.9, 4.4, '"data", N, dim=-1', BLACK)
    node(axes, 1.5, 3.8, "z")
    node(axes, 1.5, 1.6, "x", observed=True)
    arrow(axes, (1.5, 3.8), (1.5, 1.6))
    arrow(axes, (1.5, 1.6), (1.5, 3.8), amortized=True)
    axes.text(2.3, 2.7, "guide", color=BLUE, fontsize=8, va="center")
    axes.text(1.3, 2.7, "model", fontsize=8, va="center", ha="right")
    plate(axes, 4.7, 0.3, 4.4, 4.4, '"data", N, dim=-1', BLACK)
    plate(axes, 5.0, 1.0, 3.8, 2.0, '"parts", M, dim=-2', ORANGE)
    node(axes, 6.2, 3.9, "z")
    node(axes, 6.2, 2.1, "x", observed=True)
    arrow(axes, (6.2, 3.9), (6.2, 2.1))
    plate(axes, 10.9, 0.3, 3.3, 4.4, '"data", N, dim=-1', BLACK)
    node(axes, 10.1, 2.9, "w")
    node(axes, 12.1, 3.9, "z")
    node(axes, 12.1, 1.9, "x", observed=True)
    arrow(axes, (12.1, 3.9), (12.1, 1.9))
    arrow(axes, (10.1, 2.9), (12.1, 1.9))
    return figure


def cells(axes: Axes, left: float, y: float, parts: list[tuple[str, str]]) -> None:
    """Dimensions side by side, each a name and a colour."""
    for name, color in parts:
        axes.add_patch(Rectangle((left, y - 0.32), 1.0, 0.64, facecolor=color, alpha=0.28, edgecolor="none"))
        axes.add_patch(Rectangle((left, y - 0.32), 1.0, 0.64, fill=False, edgecolor=color, linewidth=1.2))
        axes.text(left + 0.5, y, name, ha="center", va="center", family="monospace")
        left += 1.0


def dimensions() -> Figure:
    """Which dimension of a value is whose."""
    rows = [
        ("z", ["K", "", "N", "Z"]),
        ("x given z", ["K", "", "N", "D"]),
        ("x, an image", ["K", "", "N", "H", "W"]),
        ('x in a plate "parts"', ["K", "M", "N", "D"]),
        ("log p, log q, log weight", ["K", "", "N"]),
    ]
    figure, axes = canvas(7.2, 3.1, 14.4, 6.2)
    heads = (
        (4.4, "particles", "left of all\nothers", BLUE),
        (5.9, "inner\nplates", "dim < -1", ORANGE),
        (7.4, "data", "dim = -1", GREEN),
        (9.4, "event", ".to_event()", VERMILION),
    )
    for x, head, under, color in heads:
        axes.text(x, 5.85, head, ha="center", va="center", fontsize=8.5, weight="bold", color=color)
        axes.text(x, 5.2, under, ha="center", va="center", fontsize=7.5, family="monospace", color=color)
    for line, (name, (particles, inner, data, *event)) in enumerate(rows):
        y = 4.3 - 0.9 * line
        axes.text(3.4, y, name, ha="right", va="center")
        cells(axes, 3.9, y, [(particles, BLUE)])
        if inner:
            cells(axes, 5.4, y, [(inner, ORANGE)])
        cells(axes, 6.9, y, [(data, GREEN)])
        if event:
            cells(axes, 8.4, y, [(size, VERMILION) for size in event])
        batch = f"{inner}, N" if inner else "N"
        told = f"batch_shape ({batch}), event_shape ({', '.join(event)})" if event else "one number a particle and datum"
        axes.text(10.7, y, told, va="center", fontsize=7, color=GREY, family="monospace")
    return figure


def to_event() -> Figure:
    """The commonest fault, and its two sides."""
    rows = [
        ("Bernoulli(logits)", ["N", "D"], [], "refused: D is no plate", VERMILION),
        ("Bernoulli(logits).to_event(1)", ["N"], ["D"], "right", GREEN),
        ("Bernoulli(logits).to_event(2)", [], ["N", "D"], "refused: the event holds the data", VERMILION),
    ]
    figure, axes = canvas(7.2, 1.6, 14.4, 3.2)
    axes.text(5.9, 2.9, "batch_shape", ha="center", va="center", fontsize=8, color=GREEN, weight="bold")
    axes.text(8.4, 2.9, "event_shape", ha="center", va="center", fontsize=8, color=VERMILION, weight="bold")
    for line, (code, batch, event, verdict, color) in enumerate(rows):
        y = 2.2 - 0.85 * line
        axes.text(4.6, y, code, ha="right", va="center", fontsize=7.5, family="monospace")
        cells(axes, 5.9 - len(batch) / 2, y, [(name, GREEN) for name in batch])
        cells(axes, 8.4 - len(event) / 2, y, [(name, VERMILION) for name in event])
        axes.text(9.9, y, verdict, va="center", fontsize=8.5, color=color)
    return figure


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for draw in (plates, dimensions, to_event):
            draw().savefig(FOLDER / f"{draw.__name__}.svg", metadata={"Date": None})
