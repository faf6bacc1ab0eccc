"""The results as tables: what REST, `score` and the log show. Pure."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coordinator.scoring.outcome import (
    ALL,
    DENSE_COLUMN,
    HELD_OUT,
    OWN,
    SEED_COLUMN,
    WITH_SEED,
    Comparison,
    DomainScores,
    Measure,
    Results,
)
from protocol.views import ResultTable, TableRow

BEST_COLUMN = "best single"
ORACLE_COLUMN = "oracle"
MAX_WIDTH = 100
"""A wider table is cut into baselines, schemes, and both with the seed as a member."""

_COMPARISON_WORDS = (
    "Differences over groups of domains, in hundredths of a nat a token (about percent of",
    "perplexity): negative where the first is better. In brackets the 95 % interval over test",
    "documents, in which the noise of training is not contained.",
)
_BASELINES = (SEED_COLUMN, DENSE_COLUMN, BEST_COLUMN, ORACLE_COLUMN)


def result_table(results: Results) -> ResultTable:
    """The table that people see: uniform-prior posteriors beside the baselines.

    `best single` is the expert of any scheme with the lowest perplexity on the domain's dev text,
    `oracle` the one with the lowest on the test text itself.
    """
    dense = () if results.dense is None else (DENSE_COLUMN,)
    contestants = (*dense, *results.schemes)
    columns = (SEED_COLUMN, *dense, BEST_COLUMN, ORACLE_COLUMN, *results.schemes)
    on_dev = {one.name: one.dev_perplexity for one in results.checkpoints}
    return ResultTable(
        columns=(*columns, *(column + WITH_SEED for column in contestants)),
        rows=tuple(_table_row(domain, on_dev) for domain in results.domains),
    )


def _table_row(scores: DomainScores, on_dev: Mapping[str, Mapping[str, float]]) -> TableRow:
    singles = {one.best_single for one in scores.schemes.values()}
    best = min(singles, key=lambda name: (on_dev[name][scores.domain], name))
    oracles = {one.oracle for one in scores.schemes.values()}
    oracle = min(oracles, key=lambda name: (scores.models[name].perplexity, name))
    cells: dict[str, Measure] = {
        **scores.columns,
        BEST_COLUMN: scores.models[best],
        ORACLE_COLUMN: scores.models[oracle],
    }
    return TableRow(
        domain=scores.domain,
        perplexity={column: cell.perplexity for column, cell in cells.items()},
        bits_per_byte={column: cell.bits_per_byte for column, cell in cells.items()},
        best_single=best,
        tied=scores.tied,
        held_out=scores.role == "held-out",
    )


def results_json(results: Results) -> bytes:
    """The contents of results.json: the table and all else, every figure in full precision."""
    contents = {
        "table": result_table(results).model_dump(mode="json"),
        **results.model_dump(mode="json"),
    }
    text = json.dumps(contents, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


def render_results(results: Results) -> str:
    """The table, and who is better over groups of domains."""
    return f"{render_table(result_table(results))}\n{render_comparisons(results.comparisons)}"


def render_contents(contents: Mapping[str, Any]) -> str:
    """The same from what results.json holds; earlier versions compared nothing.

    Raises pydantic's ValidationError for anything else.
    """
    text = render_table(ResultTable.model_validate(contents["table"]))
    comparisons = [Comparison.model_validate(one) for one in contents.get("comparisons", ())]
    return f"{text}\n{render_comparisons(comparisons)}" if comparisons else text


def render_table(table: ResultTable) -> str:
    """Plain text for a terminal: perplexity, then bits per byte, with what the reader must know."""
    lines = ["Perplexity on test text, for each token; lower is better."]
    lines += _blocks(table, lambda row: row.perplexity, digits=2)
    lines += ["", "Bits per byte on test text; lower is better."]
    lines += _blocks(table, lambda row: row.bits_per_byte, digits=4)
    lines += [""]
    if any(row.best_single for row in table.rows):
        lines.append(
            f"{BEST_COLUMN}: the expert with the lowest perplexity on the domain's dev text:"
        )
        lines += [f"  {row.domain}: {row.best_single}" for row in table.rows]
    if ORACLE_COLUMN in table.columns:
        lines.append(
            f"{ORACLE_COLUMN}: the lowest perplexity of any expert on the test text itself: a "
            "bound, no method."
        )
    if any(row.tied for row in table.rows):
        lines.append(
            "=: these schemes trained the same expert on this domain, so that they tie there by "
            "construction."
        )
    return "\n".join(lines).rstrip() + "\n"


def render_comparisons(comparisons: Sequence[Comparison]) -> str:
    """Who is better over groups of domains: a line for each pair, a column or block for each."""
    found = {(one.a, one.b, one.where): one for one in comparisons}
    groups = [group for group in (OWN, HELD_OUT, ALL) if any(group == key[2] for key in found)]
    pairs = dict.fromkeys((one.a, one.b) for one in comparisons)

    def lines_of(some: Sequence[str]) -> list[str]:
        rows = [
            [f"{a} against {b}", *(_verdict(found[a, b, group]) for group in some)]
            for a, b in pairs
        ]
        return _aligned(["", *some], rows)

    lines = lines_of(groups)
    if max(map(len, lines)) > MAX_WIDTH:
        lines = [line for group in groups for line in lines_of([group])]
    return "\n".join([*_COMPARISON_WORDS, *lines]) + "\n"


def _verdict(one: Comparison) -> str:
    numbers = f"{one.difference:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"
    return f"{numbers} {one.verdict}"


def _blocks(
    table: ResultTable, cells_of: Callable[[TableRow], Mapping[str, float]], *, digits: int
) -> list[str]:
    whole = _block(table, table.columns, cells_of, digits=digits)
    if max(map(len, whole)) <= MAX_WIDTH:
        return whole
    lines: list[str] = []
    for title, columns in _cut(table.columns).items():
        lines += [title, *_block(table, columns, cells_of, digits=digits), ""]
    return lines[:-1]


def _cut(columns: Sequence[str]) -> dict[str, list[str]]:
    """Baselines, schemes, and what has the seed as a member, by title; the seed itself in each."""
    seed = [column for column in columns if column == SEED_COLUMN]
    with_seed = [column for column in columns if column.endswith(WITH_SEED)]
    baselines = [column for column in columns if column in _BASELINES]
    schemes = [column for column in columns if column not in (*with_seed, *baselines)]
    return {
        "Baselines:": baselines,
        "Ensembles of each scheme's experts:": [*seed, *schemes],
        f"With the seed as a further member ({WITH_SEED}):": [*seed, *with_seed],
    }


def _block(
    table: ResultTable,
    columns: Sequence[str],
    cells_of: Callable[[TableRow], Mapping[str, float]],
    *,
    digits: int,
) -> list[str]:
    rows = [
        [row.domain]
        + [
            f"{cells_of(row)[column]:.{digits}f}{'=' if _is_tied(row, column) else ' '}"
            for column in columns
        ]
        for row in table.rows
    ]
    for name, some in _groups(table):
        means = [_geometric_mean([cells_of(row)[column] for row in some]) for column in columns]
        rows.append([name, *(f"{mean:.{digits}f} " for mean in means)])
    is_whole = len(columns) == len(table.columns)
    titles = columns if is_whole else [column.removesuffix(WITH_SEED) for column in columns]
    return _aligned(["domain", *(f"{title} " for title in titles)], rows)


def _groups(table: ResultTable) -> list[tuple[str, Sequence[TableRow]]]:
    own = [row for row in table.rows if not row.held_out]
    held_out = [row for row in table.rows if row.held_out]
    if not own or not held_out:
        return [("geometric mean", table.rows)]
    return [
        (f"mean, {OWN}", own),
        (f"mean, {HELD_OUT}", held_out),
        (f"mean, {ALL}", table.rows),
    ]


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of equal columns: the first to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    return [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in lines
    ]


def _is_tied(row: TableRow, column: str) -> bool:
    return any(column in group for group in row.tied)


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))
