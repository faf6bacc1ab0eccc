"""What all figures have in common: paper, colours, free text that can be drawn, and the PNG.

Figure objects only, never pyplot: nothing is kept between figures, and no screen is looked for.
"""

import io
from functools import cache

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

DPI = 120
SMALL = 7.0
MEDIUM = 8.5

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C510A",
    "#4D4D4D",
    "#B2ABD2",
    "#A6D854",
)
"""The first seven are told apart by most colour-blind readers (Okabe and Ito)."""

_SIGNS = {"\n": "⏎", "\r": "⏎", "\t": "⇥", " ": "␣", "\u2581": "␣"}
_NO_GLYPH = "□"


def paper(width: float, height: float) -> Figure:
    """An empty figure in inches, white in light and in dark mode."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def grid(figure: Figure, *, rows: int, columns: int, sharex: bool = False) -> list[Axes]:
    """rows x columns axes, row by row; those in one row share their vertical axis."""
    axes = figure.subplots(rows, columns, squeeze=False, sharey="row", sharex=sharex)
    return list(axes.flat)


def calm(axes: Axes) -> None:
    """Less ink: no frame but the two axes, small labels."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=SMALL, length=2)


def head(axes: Axes, text: str) -> None:
    """The title of one panel, as it stands: dollar signs are no formulas."""
    axes.set_title(drawable(text, limit=60), fontsize=MEDIUM, loc="left", parse_math=False)


def to_png(figure: Figure) -> bytes:
    """The figure as PNG. The same values give the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def drawable(text: str, *, limit: int = 24) -> str:
    """Free text as the figures' font can show it, on one line, at most `limit` characters.

    What the font has no glyph for becomes a box.
    """
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(
        char if ord(char) in _glyphs() and char.isprintable() else _NO_GLYPH for char in short
    )


def token_label(text: str) -> str:
    """A token under an axis: spaces and line breaks are seen."""
    return drawable("".join(_SIGNS.get(char, char) for char in text), limit=12)


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())
