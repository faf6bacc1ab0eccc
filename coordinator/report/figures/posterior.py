"""How the posterior over a scheme's experts moves over a stretch of text."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from coordinator.report.figures import canvas
from coordinator.report.forms import slug
from coordinator.report.values import Cell, Column, Figure, Row, Table
from coordinator.scoring.outcome import PosteriorTrace

LINE = 64
"""Tokens in one line of the figure."""

SHOWN = 9
"""Members with a colour of their own; the others are one area."""


def posterior_figure(trace: PosteriorTrace, *, number: int) -> Figure:
    """Stacked areas of the members' weights, over the tokens of the text, in lines of 64."""
    weights = np.array(trace.weights, dtype=np.float64)
    names, areas = _areas(trace.members, weights)
    lines = math.ceil(len(trace.tokens) / LINE)
    width = min(LINE, len(trace.tokens))
    figure = canvas.paper(max(4.5, 0.16 * width + 0.8), 1.35 * lines + 0.5)
    axes = figure.subplots(lines, 1, squeeze=False)
    for line, panel in enumerate(axes.flat):
        part = slice(line * LINE, (line + 1) * LINE)
        _draw(panel, areas[:, part], trace.tokens[part], width=width)
    handles = [
        axes.flat[0].fill_between([], [], color=_colour(index, names), label=name)
        for index, name in enumerate(names)
    ]
    legend = figure.legend(
        handles,
        [canvas.drawable(name, limit=40) for name in names],
        loc="outside upper left",
        ncols=3 if width > 30 else 2,
        fontsize=canvas.SMALL,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return Figure(
        name=slug("posterior", number, trace.scheme, trace.domain),
        title=f"Posterior of {trace.scheme} over a text of {trace.domain}",
        alt=_alt(trace, weights),
        note="The weight of each member before it sees the token below it, given the text so far. "
        f"Lines hold {LINE} tokens; ␣ is a space.",
        png=canvas.to_png(figure),
        tables=(_table(trace, number),),
    )


def _areas(
    members: Sequence[str], weights: NDArray[np.float64]
) -> tuple[list[str], NDArray[np.float64]]:
    """The members with most weight first; those beyond SHOWN together as one."""
    order = sorted(range(len(members)), key=lambda index: (-weights[index].sum(), index))
    top, rest = order[:SHOWN], order[SHOWN:]
    names, rows = [members[index] for index in top], [weights[index] for index in top]
    if rest:
        names.append(f"{len(rest)} others")
        rows.append(weights[rest].sum(axis=0))
    return names, np.stack(rows)


def _draw(axes: Axes, areas: NDArray[np.float64], tokens: Sequence[str], *, width: int) -> None:
    edges = np.arange(len(tokens) + 1) - 0.5
    stacked = np.vstack([np.zeros(len(tokens)), np.cumsum(areas, axis=0)])
    for index in range(len(areas)):
        axes.fill_between(
            edges,
            np.append(stacked[index], stacked[index][-1:]),
            np.append(stacked[index + 1], stacked[index + 1][-1:]),
            step="post",
            color=_colour(index, areas),
            linewidth=0,
        )
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(0, 1)
    axes.set_xticks(
        range(len(tokens)),
        [canvas.token_label(token) for token in tokens],
        rotation=90,
        fontsize=canvas.SMALL - 1,
        parse_math=False,
    )
    axes.set_yticks([0, 0.5, 1])
    canvas.calm(axes)
    axes.tick_params(axis="x", labelsize=canvas.SMALL - 1)


def _colour(index: int, names: Sequence[object] | NDArray[np.float64]) -> str:
    is_rest = index == SHOWN and len(names) > SHOWN
    return "#C8C8C8" if is_rest else canvas.COLOURS[index % len(canvas.COLOURS)]


def _alt(trace: PosteriorTrace, weights: NDArray[np.float64]) -> str:
    order = np.argsort(-weights.mean(axis=1), kind="stable")[:3]
    parts = [
        f"{trace.members[index]} has {100 * weights[index].mean():.0f} % of the weight on average "
        f"and {100 * weights[index, -1]:.0f} % at the end"
        for index in order
    ]
    return (
        f"Stacked areas of the posterior weights of {len(trace.members)} members over "
        f"{len(trace.tokens)} tokens of {trace.domain}. " + "; ".join(parts) + "."
    )


def _table(trace: PosteriorTrace, number: int) -> Table:
    rows = [
        Row(
            (
                Cell(index),
                Cell(token),
                *(Cell(weights[index]) for weights in trace.weights),
            )
        )
        for index, token in enumerate(trace.tokens)
    ]
    return Table(
        name=f"posterior-{number}",
        title=f"Posterior weights, {trace.scheme}, {trace.domain}",
        columns=(
            Column("index", "Number", "count"),
            Column("token", "Token"),
            *(
                Column(f"weight_{index}", member, "share")
                for index, member in enumerate(trace.members)
            ),
        ),
        rows=tuple(rows),
        is_folded=True,
    )
