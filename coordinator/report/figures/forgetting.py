"""What experts still know of earlier domains, after each round of their lineage."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from coordinator.report.figures import canvas
from coordinator.report.forms import points, slug
from coordinator.report.values import Column, Figure, Table, row
from coordinator.scoring.outcome import Remembered


def forgetting_figures(remembered: Sequence[Remembered]) -> tuple[Figure, ...]:
    """For each scheme, two maps of experts after each round x domains trained on until then."""
    schemes: dict[str, list[Remembered]] = {}
    for one in remembered:
        schemes.setdefault(one.scheme, []).append(one)
    return tuple(
        _figure(scheme, found, name=slug("forgetting", number, scheme))
        for number, (scheme, found) in enumerate(schemes.items(), start=1)
    )


def against_seed(one: Remembered) -> float:
    """Log-perplexity points against the seed; negative: better than it."""
    return 100 * math.log(one.perplexity / one.seed)


def since_trained(one: Remembered, fresh: Mapping[tuple[str, str], Remembered]) -> float | None:
    """Points against the expert that had just been trained on the domain; positive: forgotten."""
    base = fresh.get((one.scheme, one.domain))
    return None if base is None else 100 * math.log(one.perplexity / base.perplexity)


def just_trained(remembered: Sequence[Remembered]) -> dict[tuple[str, str], Remembered]:
    """By scheme and domain: the measurement right after the round that trained on it."""
    return {
        (one.scheme, one.domain): one for one in remembered if one.after_round == one.trained_in
    }


def _figure(scheme: str, remembered: Sequence[Remembered], *, name: str) -> Figure:
    fresh = just_trained(remembered)
    experts = _experts(remembered)
    domains = _domains(remembered, experts)
    figure = canvas.paper(3.2 + 0.95 * len(domains), 0.26 * len(experts) + 1.7)
    left, right = canvas.grid(figure, rows=1, columns=2)
    cells = [
        (experts.index((one.after_round, one.expert)), domains.index(one.domain), one)
        for one in remembered
    ]
    shape = (len(experts), len(domains))
    _map(left, [(y, x, against_seed(one)) for y, x, one in cells], shape)
    _map(
        right,
        [(y, x, value) for y, x, one in cells if (value := since_trained(one, fresh)) is not None],
        shape,
    )
    for axes, text in ((left, "against the seed"), (right, "since it was trained")):
        canvas.head(axes, text)
        axes.set_xticks(
            range(len(domains)),
            [canvas.drawable(name) for name in domains],
            rotation=50,
            ha="right",
            rotation_mode="anchor",
        )
    labels = [
        f"after round {number}: {canvas.drawable(name, limit=34)}" for number, name in experts
    ]
    left.set_yticks(range(len(experts)), labels, parse_math=False)
    return Figure(
        name=name,
        title=f"Forgetting along the lineages of {scheme}",
        alt=_alt(scheme, remembered, fresh),
        note="Log-perplexity points on test text; negative (purple) is better. Left: against the "
        "untouched seed. Right: against the moment when the lineage had just been trained on the "
        "domain; positive (orange) is forgotten.",
        png=canvas.to_png(figure),
        tables=(_table(scheme, remembered, fresh, name=name),),
    )


def _experts(remembered: Sequence[Remembered]) -> list[tuple[int, str]]:
    """(round, expert), lineage by lineage: by the first domain that it was trained on."""
    origins: dict[tuple[int, str], tuple[int, str]] = {}
    for one in remembered:
        key = (one.after_round, one.expert)
        origins[key] = min(
            origins.get(key, (one.trained_in, one.domain)), (one.trained_in, one.domain)
        )
    return sorted(origins, key=lambda key: (origins[key], key))


def _domains(remembered: Sequence[Remembered], experts: Sequence[tuple[int, str]]) -> list[str]:
    """In the order in which the experts, as they are listed, come to know them."""
    order = {key: number for number, key in enumerate(experts)}
    first: dict[str, tuple[int, int]] = {}
    for one in remembered:
        place = (order[one.after_round, one.expert], one.trained_in)
        first[one.domain] = min(first.get(one.domain, place), place)
    return sorted(first, key=lambda domain: (first[domain], domain))


def _map(axes: Axes, cells: Sequence[tuple[int, int, float]], shape: tuple[int, int]) -> None:
    values: NDArray[np.float64] = np.full(shape, np.nan)
    for y, x, value in cells:
        values[y, x] = value
    reach = max((abs(value) for _, _, value in cells), default=0.0) or 1.0
    axes.imshow(values, cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto")
    for y, x, value in cells:
        axes.text(
            x,
            y,
            points(value) if abs(value) < 9.95 else f"{value:+.0f}".replace("-", "−"),
            ha="center",
            va="center",
            fontsize=canvas.SMALL - 1,
            color="white" if abs(value) > 0.75 * reach else "black",
        )
    axes.tick_params(labelsize=canvas.SMALL, length=0)


def _alt(
    scheme: str,
    remembered: Sequence[Remembered],
    fresh: Mapping[tuple[str, str], Remembered],
) -> str:
    later = [one for one in remembered if one.after_round > one.trained_in]
    lost = [value for one in later if (value := since_trained(one, fresh)) is not None]
    text = f"Heat maps of {scheme}: {len(remembered)} measurements along its lineages."
    if not lost:
        return f"{text} None is later than its domain's own round: nothing can be forgotten yet."
    return (
        f"{text} On domains of earlier rounds, perplexity moved by {points(min(lost))} to "
        f"{points(max(lost))} points since they were trained on, on average by "
        f"{points(sum(lost) / len(lost))}; positive is forgotten."
    )


def _table(
    scheme: str,
    remembered: Sequence[Remembered],
    fresh: Mapping[tuple[str, str], Remembered],
    *,
    name: str,
) -> Table:
    return Table(
        name=name,
        title=f"Forgetting, {scheme}",
        columns=(
            Column("after_round", "After round", "count"),
            Column("expert", "Expert"),
            Column("domain", "Domain"),
            Column("trained_in", "Trained in round", "count"),
            Column("perplexity", "Perplexity", "perplexity"),
            Column("seed", "Seed's perplexity", "perplexity"),
            Column("against_seed", "Against the seed", "points"),
            Column("since_trained", "Since it was trained", "points"),
        ),
        rows=tuple(
            row(
                one.after_round,
                one.expert,
                one.domain,
                one.trained_in,
                one.perplexity,
                one.seed,
                against_seed(one),
                since_trained(one, fresh),
            )
            for one in remembered
        ),
        is_folded=True,
    )
