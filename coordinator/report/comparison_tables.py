"""Tables of comparisons: by domain, over replicates, and how often who is better. Pure."""

from collections import Counter
from collections.abc import Sequence

from coordinator.report.replicates import Effect
from coordinator.report.study import ROLES, Study, place_name
from coordinator.report.values import Cell, Column, Row, Table, cells, row
from coordinator.scoring.outcome import DENSE_COLUMN, WITH_SEED, Role, Verdict

VERDICTS: tuple[Verdict, ...] = ("better", "worse", "unclear", "tie")

_PAIR = (Column("a", "Column"), Column("b", "Against"))
_INTERVAL = (
    Column("difference", "Difference", "points"),
    Column("low", "95 % from", "points"),
    Column("high", "to", "points"),
    Column("verdict", "Verdict"),
)


def count_verdicts(study: Study, *, a: str, b: str, role: Role) -> Counter[Verdict] | None:
    """How often `a` is better than `b` and so on, over domains of a role; None: never compared."""
    found = [study.effects.between(a, b, domain) for domain in study.of_role(role)]
    present = [effect.verdict for effect in found if effect is not None]
    return Counter(present) if present else None


def opponents(study: Study, *, with_seed: bool) -> dict[str, tuple[str, ...]]:
    """For the summary: the first scheme and dense, and the columns to hold against each.

    With the seed as a further member of all of them, or of none: like with like.
    """
    ending = WITH_SEED if with_seed else ""
    first, *others = (name + ending for name in study.schemes)
    return {first: tuple(others), DENSE_COLUMN + ending: (first, *others)}


def counts_table(study: Study, *, with_seed: bool) -> Table:
    """Better, worse, unclear and tie on own and on held-out domains, with the group's mean."""
    rows = []
    rivals = opponents(study, with_seed=with_seed)
    for a, b in [(name, other) for other, names in rivals.items() for name in names]:
        for role in ROLES:
            counts = count_verdicts(study, a=a, b=b, role=role)
            if counts is None:
                continue
            group = study.group_of(role)
            mean = study.effects.between(a, b, group) if group else None
            interval = (mean.difference, mean.low, mean.high) if mean else (None, None, None)
            verdict = mean.verdict if mean else None
            rows.append(
                Row(
                    (
                        *cells(a, b, ROLES[role], sum(counts.values())),
                        *(Cell(counts[one]) for one in VERDICTS),
                        *cells(*interval),
                        Cell(verdict, (verdict,) if verdict else ()),
                    )
                )
            )
    return Table(
        name="verdicts-with-seed" if with_seed else "verdicts",
        title="Who is better, and on how many domains"
        + (", with the seed as a further member" if with_seed else ""),
        columns=(
            *_PAIR,
            Column("group", "Group"),
            Column("domains", "Domains", "count"),
            *(Column(verdict, verdict, "count") for verdict in VERDICTS),
            Column("mean_difference", "Mean difference", "points"),
            *_INTERVAL[1:],
        ),
        rows=tuple(rows),
        note="Each verdict is that of a 95 % interval: better or worse where it excludes 0, "
        "unclear where it contains 0, tie where both columns rest on the same expert. Differences "
        "are log-perplexity points, 100 × nats per label, about percent of perplexity; negative is "
        "better for the column.",
        is_folded=with_seed,
    )


def effects_table(study: Study, *, name: str, title: str, effects: Sequence[Effect]) -> Table:
    """The numbers behind a figure of differences."""
    rows = [
        Row(
            (*_cells(effect), Cell(effect.verdict, (effect.verdict,))), effect.where in study.groups
        )
        for effect in effects
    ]
    return Table(
        name=name,
        title=title,
        columns=(*_PAIR, Column("where", "Where"), *_INTERVAL),
        rows=tuple(rows),
        note="Log-perplexity points: 100 × nats per label, negative where the column is better. "
        + ("Mean over replicates, interval by Student's t." if len(study.runs) > 1 else ""),
        is_folded=True,
    )


def replicates_table(study: Study) -> Table:
    """Every comparison over replicates, beside each run's own bootstrap interval."""
    rows = []
    for effect in study.effects.all:
        own = [value for one in effect.each for value in (one.difference, one.low, one.high)]
        rows.append(
            Row(
                (
                    *_cells(effect),
                    Cell(effect.verdict, (effect.verdict,)),
                    Cell(effect.spread),
                    *cells(*own),
                ),
                effect.where in study.groups,
            )
        )
    runs: list[Column] = []
    for run in study.runs:
        key, title = f"{run.rng_seed}", f"rng_seed {run.rng_seed}"
        runs += [
            Column(f"difference_{key}", title, "points"),
            Column(f"low_{key}", "bootstrap from", "points"),
            Column(f"high_{key}", "to", "points"),
        ]
    return Table(
        name="replicates",
        title="Every comparison over replicates",
        columns=(
            *_PAIR,
            Column("where", "Where"),
            *_INTERVAL,
            Column("spread", "Standard deviation", "points"),
            *runs,
        ),
        rows=tuple(rows),
        note="The mean of the replicates' differences, with a 95 % interval by Student's t over "
        "replicates: it holds the noise of training. Beside it each replicate's own difference and "
        "bootstrap interval over test documents, which does not.",
        is_folded=True,
    )


def runs_table(study: Study) -> Table:
    """Which runs are in this report."""
    return Table(
        name="runs",
        title="Replicates",
        columns=(
            Column("run", "Run"),
            Column("rng_seed", "rng_seed"),
            Column("seed", "Seed model"),
        ),
        rows=tuple(row(run.run, run.rng_seed, run.seed) for run in study.runs),
    )


def _cells(effect: Effect) -> tuple[Cell, ...]:
    where = place_name(effect.where)
    return cells(effect.a, effect.b, where, effect.difference, effect.low, effect.high)
