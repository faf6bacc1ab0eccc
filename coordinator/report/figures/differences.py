"""Perplexity by domain and contestant, as differences to a reference with their intervals."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from coordinator.report.comparison_tables import VERDICTS, effects_table
from coordinator.report.figures import canvas
from coordinator.report.forms import listed, points, slug
from coordinator.report.replicates import Effect
from coordinator.report.study import Study, place_name
from coordinator.report.values import Figure
from coordinator.scoring.outcome import Verdict

MAX_COLUMNS = 6
LOOKS: dict[Verdict, tuple[str, str, str]] = {
    "better": ("#0072B2", "v", "full"),
    "worse": ("#D55E00", "^", "full"),
    "unclear": ("#6E6E6E", "o", "full"),
    "tie": ("#6E6E6E", "D", "none"),
}
"""Colour, marker and fill of each verdict: told apart without colours, too."""

REACH = 2.0
"""An axis ends at so many times the largest difference; longer intervals go on beyond it."""


def differences_figures(study: Study) -> tuple[Figure, ...]:
    """For each reference that anything was compared with: a panel for each contestant."""
    found = []
    for reference, names in study.rivals():
        panels = {name: _effects(study, name, reference) for name in names}
        present = {name: effects for name, effects in panels.items() if effects}
        if present:
            found.append(_figure(study, reference, present))
    return tuple(found)


def _effects(study: Study, name: str, reference: str) -> list[Effect]:
    places = (*(one.domain for one in study.domains), *study.groups)
    found = [study.effects.between(name, reference, place) for place in places]
    return [effect for effect in found if effect is not None]


def _figure(study: Study, reference: str, panels: dict[str, list[Effect]]) -> Figure:
    places = list(dict.fromkeys(one.where for effects in panels.values() for one in effects))
    known = [one.domain for one in study.domains]
    places.sort(key=lambda place: known.index(place) if place in known else len(known))
    columns = min(MAX_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = canvas.paper(1.7 + 1.75 * columns, rows * (0.19 * len(places) + 0.6) + 0.7)
    axes = canvas.grid(figure, rows=rows, columns=columns, sharex=True)
    breaks = _breaks(study, places)
    for panel, (name, effects) in zip(axes, panels.items(), strict=False):
        _draw(panel, effects, places, breaks)
        canvas.head(panel, name)
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    everything = [effect for effects in panels.values() for effect in effects]
    low, high, is_cut = limits_of(everything)
    axes[0].set_xlim(low, high)
    figure.supxlabel(
        f"log-perplexity points against {reference}; left of 0 is better", fontsize=canvas.MEDIUM
    )
    _legend(axes[0], everything, figure_axes=axes)
    name = slug("differences", reference.replace("+", " with "))
    noise = (
        "Intervals are Student's t over replicates, around their mean."
        if len(study.runs) > 1
        else "Intervals are a bootstrap over test documents, without the noise of training."
    )
    cut = "Some go on beyond the axis; the table has their ends. " if is_cut else ""
    return Figure(
        name=name,
        title=f"Perplexity by domain, against {reference}",
        alt=_alt(reference, panels),
        note=f"Bars are 95 % intervals. {noise} {cut}Points are 100 × nats per label, "
        "about percent of perplexity.",
        png=canvas.to_png(figure),
        tables=(
            effects_table(
                study,
                name=name,
                title=f"Differences against {reference}",
                effects=everything,
            ),
        ),
    )


def _draw(
    axes: Axes, effects: Sequence[Effect], places: Sequence[str], breaks: Sequence[float]
) -> None:
    for effect in effects:
        colour, marker, fill = LOOKS[effect.verdict]
        height = places.index(effect.where)
        axes.plot([effect.low, effect.high], [height, height], color=colour, linewidth=1.3)
        axes.plot(
            effect.difference,
            height,
            marker=marker,
            color=colour,
            markersize=4,
            fillstyle="full" if fill == "full" else "none",
        )
    axes.axvline(0, color="#222222", linewidth=0.7)
    for edge in breaks:
        axes.axhline(edge, color="#BBBBBB", linewidth=0.6)
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.set_yticks(
        range(len(places)), [canvas.drawable(place_name(place), limit=28) for place in places]
    )
    axes.grid(axis="y", color="#EEEEEE", linewidth=0.5)
    axes.set_axisbelow(True)
    canvas.calm(axes)


def _breaks(study: Study, places: Sequence[str]) -> list[float]:
    """Where own domains end, and where single domains end."""
    roles = {one.domain: one.role for one in study.domains}
    kinds = [roles.get(place) for place in places]
    return [index - 0.5 for index in range(1, len(kinds)) if kinds[index] != kinds[index - 1]]


def _legend(axes: Axes, effects: Sequence[Effect], *, figure_axes: Sequence[Axes]) -> None:
    handles = []
    for verdict in VERDICTS:
        if any(effect.verdict == verdict for effect in effects):
            colour, marker, fill = LOOKS[verdict]
            handles += axes.plot(
                [],
                [],
                marker,
                color=colour,
                markersize=4,
                fillstyle="full" if fill == "full" else "none",
                label=verdict,
            )
    figure_axes[0].get_figure(root=True).legend(  # type: ignore[union-attr]
        handles=handles,
        loc="outside upper right",
        ncols=len(handles),
        fontsize=canvas.SMALL,
        frameon=False,
    )


def limits_of(effects: Sequence[Effect]) -> tuple[float, float, bool]:
    """Where the axis ends on both sides, and whether that cuts off the end of an interval.

    A few wild intervals must not press all others into a line.
    """
    most = max(*(abs(effect.difference) for effect in effects), 0.5)
    low = min(0.0, *(effect.low for effect in effects))
    high = max(0.0, *(effect.high for effect in effects))
    margin = 0.08 * most
    ends = max(low, -REACH * most) - margin, min(high, REACH * most) + margin
    return *ends, ends[0] > low or ends[1] < high


def _alt(reference: str, panels: dict[str, list[Effect]]) -> str:
    parts = []
    for name, effects in panels.items():
        counts = [
            f"{count} {verdict}"
            for verdict in VERDICTS
            if (count := sum(one.verdict == verdict for one in effects))
        ]
        sizes = [one.difference for one in effects]
        parts.append(
            f"{name}: {listed(tuple(counts))}, from {points(min(sizes))} to {points(max(sizes))} "
            "points"
        )
    return f"Differences to {reference} with 95 % intervals. " + "; ".join(parts) + "."
