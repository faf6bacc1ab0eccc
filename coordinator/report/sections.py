"""Which tables and figures a report has, and in which order."""

from collections.abc import Sequence
from itertools import islice

from coordinator.report.comparison_tables import counts_table, replicates_table, runs_table
from coordinator.report.figures.budget import budget_figure
from coordinator.report.figures.curves import curves_figure
from coordinator.report.figures.differences import differences_figures
from coordinator.report.figures.forgetting import forgetting_figures
from coordinator.report.figures.posterior import posterior_figure
from coordinator.report.own_tables import own_section
from coordinator.report.plan_tables import (
    budget_table,
    checkpoints_table,
    difficulty_table,
    provenance_table,
    search_table,
)
from coordinator.report.score_tables import (
    baselines_table,
    chosen_table,
    contestants,
    contestants_table,
    each_run_table,
    modes_table,
)
from coordinator.report.study import Study
from coordinator.report.summary import noise_words, summary_of
from coordinator.report.values import Figure, Report, Section
from coordinator.scoring.outcome import WITH_SEED

MAX_TRACES = 16
"""Posteriors that are drawn."""


def report_of(study: Study, *, commands: Sequence[str], software: str) -> Report:
    """The whole report of a study; `commands` are what somebody types to make it all again."""
    run = study.base
    count = len(study.runs)
    seeds = ", ".join(str(one.rng_seed) for one in study.runs)
    what = f"{count} replicates, rng_seed {seeds}" if count > 1 else f"one run, rng_seed {seeds}"
    return Report(
        title=f"Report of run {run.run}",
        subtitle=f"{what}; {len(study.domains)} domains, {len(study.schemes)} schemes, "
        f"{len(run.checkpoints)} checkpoints.",
        summary=summary_of(study),
        summary_tables=tuple(
            table
            for table in (counts_table(study, with_seed=False), counts_table(study, with_seed=True))
            if table.rows
        ),
        sections=tuple(
            section
            for section in (
                _perplexity(study),
                _differences(study),
                _replicates(study),
                _baselines(study),
                _plan(study),
                _curves(study),
                _posterior(study),
                _forgetting(study),
                _modes(study),
                own_section(study),
                _provenance(study),
            )
            if section is not None
        ),
        commands=tuple(commands),
        software=software,
    )


def _perplexity(study: Study) -> Section:
    tables = [
        contestants_table(study, with_seed=with_seed, quantity=quantity)
        for quantity in ("perplexity", "bits_per_byte")
        for with_seed in (False, True)
        if any(name.endswith(WITH_SEED) for name in contestants(study, with_seed=with_seed))
        or not with_seed
    ]
    paragraphs = [
        "A scheme's column is the ensemble of its experts, mixed token by token by their posterior "
        "from a uniform prior. Own domains are those that experts were trained on; nobody trained "
        "on the held-out ones. Some text is easier to predict than other: compare within a row."
    ]
    if len(study.runs) > 1:
        paragraphs.append("Each number is the mean over replicates, of nats.")
    return Section(
        name="perplexity",
        title="Perplexity by domain",
        paragraphs=tuple(paragraphs),
        tables=tuple(tables),
    )


def _differences(study: Study) -> Section | None:
    figures = differences_figures(study)
    if not figures:
        return None
    return Section(
        name="differences",
        title="Differences and their intervals",
        paragraphs=(
            "An ensemble that has the seed as a further member is compared only with others that "
            "have it, too. Blue triangles down are better, orange triangles up are worse, grey "
            "dots are not told apart, and hollow diamonds tie by construction. Of many intervals "
            f"at 95 %, about one in twenty excludes 0 by chance: {len(study.effects.all)} "
            "comparisons were made here, and none is corrected for that.",
        ),
        figures=figures,
    )


def _replicates(study: Study) -> Section:
    is_one = len(study.runs) == 1
    return Section(
        name="replicates",
        title="Noise of training",
        paragraphs=(noise_words(study),),
        tables=()
        if is_one
        else (runs_table(study), replicates_table(study), each_run_table(study)),
    )


def _baselines(study: Study) -> Section:
    return Section(
        name="baselines",
        title="Baselines",
        tables=(baselines_table(study), chosen_table(study)),
    )


def _plan(study: Study) -> Section:
    figure = budget_figure(study)
    return Section(
        name="plan",
        title="Difficulty and budget",
        paragraphs=_of_the_first(study) if figure else (),
        figures=(figure,) if figure else (),
        tables=(
            budget_table(study),
            *((search_table(study),) if study.base.search else ()),
            difficulty_table(study),
        ),
    )


def _curves(study: Study) -> Section | None:
    figure = curves_figure(study.base)
    if figure is None:
        return None
    return Section(
        name="curves",
        title="Learning curves",
        paragraphs=_of_the_first(study),
        figures=(figure,),
    )


def _posterior(study: Study) -> Section | None:
    traces = study.base.traces
    if not traces:
        return None
    figures: tuple[Figure, ...] = tuple(
        posterior_figure(trace, number=number)
        for number, trace in islice(enumerate(traces, start=1), MAX_TRACES)
    )
    left = len(traces) - len(figures)
    more = (f"{left} more are in results.json.",) if left else ()
    return Section(
        name="posterior",
        title="The posterior over a text",
        paragraphs=(*_of_the_first(study), *more),
        figures=figures,
    )


def _forgetting(study: Study) -> Section | None:
    figures = forgetting_figures(study.base.remembered)
    if not figures:
        return None
    return Section(
        name="forgetting",
        title="Forgetting",
        paragraphs=(
            *_of_the_first(study),
            "Along a lineage, the expert of a round goes on from that of the round before. What it "
            "still knows of earlier domains is measured after every round.",
        ),
        figures=figures,
    )


def _modes(study: Study) -> Section:
    return Section(
        name="modes",
        title="All ensemble modes",
        tables=(
            modes_table(study, quantity="perplexity"),
            modes_table(study, quantity="bits_per_byte"),
        ),
    )


def _provenance(study: Study) -> Section:
    return Section(
        name="provenance",
        title="Seeds, digests, versions and checkpoints",
        tables=(provenance_table(study), checkpoints_table(study)),
    )


def _of_the_first(study: Study) -> tuple[str, ...]:
    if len(study.runs) == 1:
        return ()
    return (
        f"Figures here are of the replicate with rng_seed {study.base.rng_seed}; the others have "
        "reports of their own.",
    )
