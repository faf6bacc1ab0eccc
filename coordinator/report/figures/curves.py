"""Learning curves: what workers reported while training, and what was measured on dev text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from coordinator.report.figures import canvas
from coordinator.report.forms import listed
from coordinator.report.values import Column, Figure, Table, row
from coordinator.scoring.outcome import CheckpointFacts, Results
from protocol.specs import Kind
from shared.words import size_words

MAX_COLUMNS = 4
LINES: dict[Kind, Literal[":", "--"]] = {"seed": ":", "dense": "--"}
"""Other kinds have whole lines."""

DEV_SIZE = 4.0
"""Of markers, in typographic points."""
MAX_POINTS = 20
"""Points of one curve in the page's table."""


Size = tuple[int, int]
"""FFN width, and the rank of an adapter; 0: none. What a curve's colour tells."""


@dataclass(frozen=True)
class DevCurve:
    """Dev losses (nats per token) of checkpoints of one training that differ in their steps."""

    domain: str
    label: str
    size: Size
    points: tuple[tuple[int, float], ...]


def curves_figure(results: Results) -> Figure | None:
    """A panel for each domain that was trained on; None if no checkpoint has a curve."""
    panels = curves_by_domain(results)
    dev = dev_curves(results)
    domains = list(dict.fromkeys([*panels, *(curve.domain for curve in dev)]))
    if not domains:
        return None
    columns = min(MAX_COLUMNS, len(domains))
    rows = math.ceil(len(domains) / columns)
    figure = canvas.paper(3.1 * columns, 2.5 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel, domain in zip(axes.flat, domains, strict=False):
        _draw(panel, panels.get(domain, ()), [one for one in dev if one.domain == domain])
        canvas.head(panel, domain)
    for panel in list(axes.flat)[len(domains) :]:
        panel.set_visible(False)
    figure.supxlabel("step", fontsize=canvas.MEDIUM)
    figure.supylabel("nats per token", fontsize=canvas.MEDIUM)
    return Figure(
        name="learning-curves",
        title="Learning curves",
        alt=_alt(domains, panels, dev),
        note="Lines are the smoothed training loss that each checkpoint's own worker reported: it "
        "was not checked, and it lags behind the loss itself. Points are the coordinator's own "
        "measurements on dev text, where several steps of one training were kept; at step 0 stands "
        "the model it started from.",
        png=canvas.to_png(figure),
        tables=tuple(table for table in (_loss_table(panels), _dev_table(dev)) if table.rows),
    )


def curves_by_domain(results: Results) -> Mapping[str, Sequence[CheckpointFacts]]:
    """Checkpoints with a reported curve, by the domain that they were trained on."""
    panels: dict[str, list[CheckpointFacts]] = {}
    for one in results.checkpoints:
        if one.curve:
            panels.setdefault(one.domain, []).append(one)
    return panels


def dev_curves(results: Results) -> tuple[DevCurve, ...]:
    """Measured curves: at least two steps of one training, its parent's measurement included."""
    by_name = {one.name: one for one in results.checkpoints}
    groups: dict[tuple[object, ...], list[CheckpointFacts]] = {}
    for one in results.checkpoints:
        if one.domain in one.dev_perplexity:
            recipe = one.train.model_copy(update={"num_steps": 0})
            key = (one.kind, one.domain, one.parent, one.shape, one.trains, one.lora, recipe)
            groups.setdefault(key, []).append(one)
    curves = []
    for members in groups.values():
        first = members[0]
        points = {one.train.num_steps: one.dev_perplexity[one.domain] for one in members}
        parent = by_name.get(first.parent or "")
        if parent is not None and first.domain in parent.dev_perplexity:
            points.setdefault(0, parent.dev_perplexity[first.domain])
        if len(points) > 1:
            losses = tuple((step, math.log(points[step])) for step in sorted(points))
            curves.append(
                DevCurve(
                    domain=first.domain,
                    label=f"{first.kind}, {size_words(first.shape, first.lora)}, {first.trains}",
                    size=_size(first),
                    points=losses,
                )
            )
    return tuple(curves)


def _size(one: CheckpointFacts) -> Size:
    return one.shape.ffn_width, one.lora_rank or 0


def thinned(count: int, *, limit: int) -> list[int]:
    """Indices of at most `limit` of `count` points, evenly, with the first and the last."""
    if count <= limit:
        return list(range(count))
    return [round(index * (count - 1) / (limit - 1)) for index in range(limit)]


def _draw(axes: Axes, checkpoints: Sequence[CheckpointFacts], dev: Sequence[DevCurve]) -> None:
    sizes = sorted({_size(one) for one in checkpoints} | {one.size for one in dev})
    colours = {
        size: canvas.COLOURS[number % len(canvas.COLOURS)] for number, size in enumerate(sizes)
    }
    for one in checkpoints:
        steps, losses = [point.step for point in one.curve], [point.loss for point in one.curve]
        colour = colours[_size(one)]
        axes.plot(steps, losses, LINES.get(one.kind, "-"), color=colour, linewidth=1.0, alpha=0.8)
        axes.plot(steps[-1:], losses[-1:], color=colour, marker="|", markersize=6)
    for curve in dev:
        steps, losses = [step for step, _ in curve.points], [loss for _, loss in curve.points]
        axes.plot(
            steps,
            losses,
            "o",
            color=colours[curve.size],
            markersize=DEV_SIZE,
            fillstyle="none",
        )
    canvas.calm(axes)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.legend(
        handles=_handles(checkpoints, dev, colours),
        fontsize=canvas.SMALL - 1,
        frameon=False,
        loc="upper right",
    )


def _handles(
    checkpoints: Sequence[CheckpointFacts], dev: Sequence[DevCurve], colours: Mapping[Size, str]
) -> list[Line2D]:
    handles = [
        Line2D([], [], color=colour, label=f"rank {rank}" if rank else f"FFN {width}")
        for (width, rank), colour in colours.items()
    ]
    handles += [
        Line2D([], [], linestyle=line, color="#555555", label=kind)
        for kind, line in LINES.items()
        if any(one.kind == kind for one in checkpoints)
    ]
    if dev:
        handles.append(
            Line2D(
                [],
                [],
                marker="o",
                linestyle="",
                color="#555555",
                markersize=DEV_SIZE,
                fillstyle="none",
                label="dev",
            )
        )
    return handles


def _alt(
    domains: Sequence[str],
    panels: Mapping[str, Sequence[CheckpointFacts]],
    dev: Sequence[DevCurve],
) -> str:
    ends = [(one.curve[0].loss, one.curve[-1].loss) for many in panels.values() for one in many]
    text = f"Learning curves in {len(domains)} panels, one a domain: {listed(tuple(domains))}. "
    if ends:
        firsts, lasts = [first for first, _ in ends], [last for _, last in ends]
        text += (
            f"{len(ends)} reported curves begin between {min(firsts):.2f} and {max(firsts):.2f} "
            f"nats per token and end between {min(lasts):.2f} and {max(lasts):.2f}. "
        )
    return text + f"{len(dev)} curves have points measured on dev text."


def _loss_table(panels: Mapping[str, Sequence[CheckpointFacts]]) -> Table:
    rows = [
        row(domain, one.name, one.worker, one.curve[index].step, one.curve[index].loss)
        for domain, checkpoints in panels.items()
        for one in checkpoints
        for index in thinned(len(one.curve), limit=MAX_POINTS)
    ]
    return Table(
        name="curves",
        title="Reported training loss",
        columns=(
            Column("domain", "Domain"),
            Column("checkpoint", "Checkpoint"),
            Column("worker", "Reported by"),
            Column("step", "Step", "count"),
            Column("loss", "Smoothed loss, nats per token", "loss"),
        ),
        rows=tuple(rows),
        note=f"At most {MAX_POINTS} points of each curve; results.json has all of them.",
        is_folded=True,
    )


def _dev_table(dev: Sequence[DevCurve]) -> Table:
    return Table(
        name="dev-curves",
        title="Measured on dev text",
        columns=(
            Column("domain", "Domain"),
            Column("training", "Training"),
            Column("step", "Step", "count"),
            Column("loss", "Dev loss, nats per token", "loss"),
        ),
        rows=tuple(
            row(curve.domain, curve.label, step, loss)
            for curve in dev
            for step, loss in curve.points
        ),
        is_folded=True,
    )
