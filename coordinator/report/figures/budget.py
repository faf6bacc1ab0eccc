"""Where each scheme's budget went: steps and FLOPs by domain."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from coordinator.report.figures import canvas
from coordinator.report.forms import listed
from coordinator.report.plan_tables import Allotment, allotment_table, allotments
from coordinator.report.study import Study
from coordinator.report.values import Figure
from coordinator.scoring.outcome import CheckpointFacts


def budget_figure(study: Study) -> Figure | None:
    """Two maps of domains x schemes; None if no scheme trained anything."""
    spent = {(one.domain, one.scheme): one for one in allotments(study.base)}
    if not spent:
        return None
    trained = {domain for domain, _ in spent}
    domains = [one.domain for one in study.domains if one.domain in trained]
    domains += sorted(trained - set(domains))
    schemes = list(study.schemes)
    has_lora = any(one.expert.lora is not None for one in spent.values())
    what = "LoRA rank" if has_lora else "FFN width"
    figure = canvas.paper(2.2 + 1.5 * len(schemes), 0.27 * len(domains) + 1.2)
    left, right = canvas.grid(figure, rows=1, columns=2)
    _map(left, spent, domains=domains, schemes=schemes, is_steps=True)
    _map(right, spent, domains=domains, schemes=schemes, is_steps=False)
    canvas.head(left, f"steps (and {what})")
    canvas.head(right, "share of the scheme's FLOPs")
    return Figure(
        name="budget-by-domain",
        title="Budget by domain",
        alt=_alt(spent, schemes),
        note=f"Steps of each domain's expert with its {what}, and its share of the training "
        "FLOPs of all experts of the scheme; darker is more. Columns on the right sum to 100 %.",
        png=canvas.to_png(figure),
        tables=(allotment_table(study),),
    )


def _size(expert: CheckpointFacts) -> int:
    return expert.lora_rank or expert.shape.ffn_width


def _map(
    axes: Axes,
    spent: Mapping[tuple[str, str], Allotment],
    *,
    domains: Sequence[str],
    schemes: Sequence[str],
    is_steps: bool,
) -> None:
    values: NDArray[np.float64] = np.full((len(domains), len(schemes)), np.nan)
    for (domain, scheme), one in spent.items():
        size = one.expert.train.num_steps if is_steps else one.share
        values[domains.index(domain), schemes.index(scheme)] = size
    largest = float(np.nanmax(values)) or 1.0
    axes.imshow(values, cmap="Blues", vmin=0, vmax=2 * largest, aspect="auto")
    for (domain, scheme), one in spent.items():
        text = (
            f"{one.expert.train.num_steps:,} · {_size(one.expert)}"
            if is_steps
            else f"{100 * one.share:.1f} %"
        )
        axes.text(
            schemes.index(scheme),
            domains.index(domain),
            text,
            ha="center",
            va="center",
            fontsize=canvas.SMALL,
        )
    axes.set_xticks(range(len(schemes)), [canvas.drawable(name) for name in schemes])
    axes.set_yticks(range(len(domains)), [canvas.drawable(name, limit=28) for name in domains])
    axes.tick_params(labelsize=canvas.SMALL, length=0)


def _alt(spent: Mapping[tuple[str, str], Allotment], schemes: Sequence[str]) -> str:
    parts = []
    for scheme in schemes:
        own = [one for (_, name), one in spent.items() if name == scheme]
        if own:
            steps = [one.expert.train.num_steps for one in own]
            most = max(own, key=lambda one: (one.share, one.domain))
            parts.append(
                f"{scheme}: {min(steps):,} to {max(steps):,} steps, the largest share "
                f"{100 * most.share:.1f} % on {most.domain}"
            )
    return f"Steps and FLOPs by domain for {listed(tuple(schemes))}. " + "; ".join(parts) + "."
