"""Tables of what was measured: contestants, ensemble modes, baselines. Pure."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from coordinator.report.study import ROLES, Study, mean_measure
from coordinator.report.values import Cell, Column, Form, Mark, Row, Table, row
from coordinator.scoring.outcome import (
    DENSE_COLUMN,
    SEED_COLUMN,
    WITH_SEED,
    DomainScores,
    Measure,
    Role,
)

Quantity = Literal["perplexity", "bits_per_byte"]
Measured = Callable[[str], Measure | None]
Marks = Callable[[str], tuple[Mark, ...]]

QUANTITIES: dict[Quantity, tuple[str, Form]] = {
    "perplexity": ("Perplexity", "perplexity"),
    "bits_per_byte": ("Bits per byte", "bits"),
}

_HEAD = (Column("domain", "Domain"), Column("group", "Group"))


def contestants(study: Study, *, with_seed: bool) -> tuple[str, ...]:
    """Columns of one table: what are ensembles in it all have the seed as a member, or none has.

    The untouched seed stands in both.
    """
    return tuple(
        name
        for name in study.columns
        if name == SEED_COLUMN or name.endswith(WITH_SEED) == with_seed
    )


def contestants_table(study: Study, *, with_seed: bool, quantity: Quantity) -> Table:
    """Domains x contestants, with the means over each group. Marked by intervals alone."""
    names = contestants(study, with_seed=with_seed)
    title, form = QUANTITIES[quantity]
    reference = study.schemes[0] + (WITH_SEED if with_seed else "")
    return Table(
        name=quantity + ("-with-seed" if with_seed else ""),
        title=title + (", with the seed as a further member" if with_seed else ""),
        columns=(*_HEAD, *(Column(name, name, form) for name in names)),
        rows=_rows(
            study,
            quantity,
            [partial(study.measure, column=name) for name in names],
            [
                partial(marks_of, study, name=name, names=names, reference=reference)
                for name in names
            ],
        ),
        note=f"Test text; lower is better. ▼ better and ▲ worse than {reference}, where the 95 % "
        "interval excludes 0; = the same expert by construction; ★ better than every other column "
        "of the row, each interval excluding 0. No sign: not told apart.",
        is_folded=quantity != "perplexity",
    )


def marks_of(
    study: Study, where: str, *, name: str, names: Sequence[str], reference: str
) -> tuple[Mark, ...]:
    """What is known of column `name` on a domain or on a group of domains.

    Its verdict against `reference`; and best where it is better than every other of `names` that it
    does not tie with by construction.
    """
    marks: list[Mark] = []
    if is_best(study, where, name=name, names=names):
        marks.append("best")
    effect = study.effects.between(name, reference, where)
    if effect is not None and effect.verdict != "unclear":
        marks.append(effect.verdict)
    elif name != reference and study.is_tied(where, name, reference):
        marks.append("tie")
    return tuple(marks)


def is_best(study: Study, where: str, *, name: str, names: Sequence[str]) -> bool:
    """Whether intervals show `name` to be better than every other column that is no tie with it."""
    verdicts = []
    for other in names:
        if other == name or study.is_tied(where, name, other):
            continue
        effect = study.effects.between(name, other, where)
        if effect is None:
            return False
        verdicts.append(effect.verdict)
    return "better" in verdicts and set(verdicts) <= {"better", "tie"}


def each_run_table(study: Study) -> Table:
    """Perplexities of every run by itself: what the means over replicates are means of."""
    rows = []
    for run in study.runs:
        for scores in Study(runs=(run,)).domains:
            found = [scores.columns.get(name) for name in study.columns]
            values = (_value(one, "perplexity") for one in found)
            rows.append(row(run.rng_seed, scores.domain, ROLES[scores.role], *values))
    return Table(
        name="perplexity-of-each-run",
        title="Perplexity of every replicate",
        columns=(
            Column("rng_seed", "rng_seed"),
            *_HEAD,
            *(Column(name, name, "perplexity") for name in study.columns),
        ),
        rows=tuple(rows),
        is_folded=True,
    )


def modes_table(study: Study, *, quantity: Quantity) -> Table:
    """Domain x mode, a column a scheme: every way to turn a scheme's experts into one model."""
    title, form = QUANTITIES[quantity]
    rows = []
    for scores in study.domains:
        modes = dict.fromkeys(mode for one in scores.schemes.values() for mode in one.modes)
        for mode in modes:
            found = [study.mode(scores.domain, scheme, mode) for scheme in study.schemes]
            rows.append(
                Row(
                    (
                        Cell(scores.domain),
                        Cell(ROLES[scores.role]),
                        Cell(mode),
                        *(Cell(_value(one, quantity)) for one in found),
                    )
                )
            )
    return Table(
        name=f"modes-{quantity}",
        title=f"{title} of every ensemble mode",
        columns=(
            *_HEAD,
            Column("mode", "Mode"),
            *(Column(scheme, scheme, form) for scheme in study.schemes),
        ),
        rows=tuple(rows),
        note="Test text; lower is better. A mode is one way to turn a scheme's experts into one "
        "model; no intervals here, so no cell is marked.",
        is_folded=True,
    )


def baselines_table(study: Study) -> Table:
    """What an ensemble has to beat, and what it cannot: single experts and the oracle."""
    columns: list[Column] = []
    measured: list[Measured] = []
    marks: list[Marks] = []
    for name in (SEED_COLUMN, DENSE_COLUMN, DENSE_COLUMN + WITH_SEED):
        if name in study.columns:
            columns.append(Column(name, name, "perplexity"))
            measured.append(partial(study.measure, column=name))
            marks.append(_unmarked)
    for which, title in (("best_single", "best single"), ("oracle", "oracle (a bound)")):
        for scheme in study.schemes:
            columns.append(Column(f"{which} {scheme}", f"{scheme}: {title}", "perplexity"))
            measured.append(partial(study.member, scheme=scheme, which=which))
            marks.append(_bound if which == "oracle" else _unmarked)
    return Table(
        name="baselines",
        title="Baselines",
        columns=(*_HEAD, *columns),
        rows=_rows(study, "perplexity", measured, marks),
        note="Perplexity on test text. best single: the member of the scheme's final ensemble "
        "with the lowest perplexity on the domain's dev text. oracle: the expert, also of earlier "
        "rounds, with the lowest on the test text itself, which nobody can know beforehand: no "
        "method, but a bound on what choosing one expert can give.",
    )


def chosen_table(study: Study) -> Table:
    """Which experts `best single` and the oracle are, in every run."""
    rows = [
        Row(
            (
                Cell(run.rng_seed),
                Cell(scores.domain),
                Cell(scheme),
                Cell(chosen.best_single),
                Cell(scores.models[chosen.best_single].perplexity),
                Cell(chosen.oracle),
                Cell(scores.models[chosen.oracle].perplexity, ("bound",)),
            )
        )
        for run in study.runs
        for scores in run.domains
        for scheme, chosen in scores.schemes.items()
    ]
    return Table(
        name="chosen-experts",
        title="Best single expert and oracle by domain and scheme",
        columns=(
            Column("rng_seed", "rng_seed"),
            Column("domain", "Domain"),
            Column("scheme", "Scheme"),
            Column("best_single", "Best single, by dev text"),
            Column("best_single_perplexity", "Perplexity", "perplexity"),
            Column("oracle", "Oracle, by test text"),
            Column("oracle_perplexity", "Perplexity (a bound)", "perplexity"),
        ),
        rows=tuple(rows),
        is_folded=True,
    )


def _rows(
    study: Study, quantity: Quantity, measured: Sequence[Measured], marks: Sequence[Marks]
) -> tuple[Row, ...]:
    """Each group's domains, then its means."""
    rows: list[Row] = []
    for role in ROLES:
        domains = [one for one in study.domains if one.role == role]
        rows += [_domain_row(one, quantity, measured, marks) for one in domains]
        if domains:
            rows.append(_mean_row(study, role, quantity, measured, marks))
    return tuple(rows)


def _domain_row(
    scores: DomainScores,
    quantity: Quantity,
    measured: Sequence[Measured],
    marks: Sequence[Marks],
) -> Row:
    domain = scores.domain
    cells = [
        Cell(_value(one(domain), quantity), mark(domain))
        for one, mark in zip(measured, marks, strict=True)
    ]
    return Row((Cell(domain), Cell(ROLES[scores.role]), *cells))


def _mean_row(
    study: Study,
    role: Role,
    quantity: Quantity,
    measured: Sequence[Measured],
    marks: Sequence[Marks],
) -> Row:
    domains = study.of_role(role)
    where = study.group_of(role)
    cells = []
    for one, mark in zip(measured, marks, strict=True):
        found = [one(domain) for domain in domains]
        present = [measure for measure in found if measure is not None]
        mean = mean_measure(present) if len(present) == len(found) else None
        cells.append(Cell(_value(mean, quantity), mark(where) if where else ()))
    what = "geometric mean" if quantity == "perplexity" else "mean"
    return Row((Cell(f"{what}, {ROLES[role]}"), Cell(ROLES[role]), *cells), is_group=True)


def _value(measure: Measure | None, quantity: Quantity) -> float | None:
    if measure is None:
        return None
    return measure.perplexity if quantity == "perplexity" else measure.bits_per_byte


def _unmarked(_domain: str) -> tuple[Mark, ...]:
    return ()


def _bound(_domain: str) -> tuple[Mark, ...]:
    return ("bound",)
