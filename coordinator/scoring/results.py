"""Pure: log-likelihoods of test text to perplexities, ensembles and the table. Sums are in fp64.

An ensemble is arithmetic on the log-likelihoods of its members' labels: the probability average,
and the posterior over members given the text so far, with a uniform prior as in the paper (arXiv
2502.19385) or with one learned on dev text, which is never the text that is reported.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.ids import DomainId
from protocol.messages import ResultTable, TableRow
from protocol.values import Count, Number, Positive, Value
from shared.ensemble import (
    bits_per_byte,
    cached_prior,
    perplexity,
    posterior_ensemble,
    probability_average,
)

SEED_COLUMN = "seed M"
BEST_COLUMN = "best single"
WITH_SEED = "+seed"

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class ShardScores:
    """One shard under every model: name to log-likelihoods, float [labels], in nats.

    `starts` holds the index of each scoring window's first label, int [windows]: a posterior starts
    afresh there. `num_bytes` is the UTF-8 length of the shard's documents.
    """

    by_model: Mapping[str, Floats]
    starts: NDArray[np.integer]
    num_bytes: int

    def matrix(self, models: Sequence[str]) -> NDArray[np.float64]:
        """Log-likelihoods of `models`, fp64 [models, labels]."""
        return np.stack([np.asarray(self.by_model[model], dtype=np.float64) for model in models])


@dataclass(frozen=True)
class DomainScores:
    """One domain's dev shard, to choose on, and test shard, to report on."""

    domain: str
    dev: ShardScores
    test: ShardScores


class Measure(Value):
    """Perplexity for each label token, and total nats / ln 2 / UTF-8 bytes of the documents."""

    perplexity: Number
    bits_per_byte: Number


class SchemeResult(Value):
    """A scheme's ensembles of one domain's test text, by mode, and its best expert by dev text."""

    average: Measure
    posterior: Measure
    dev_prior_posterior: Measure
    average_with_seed: Measure
    posterior_with_seed: Measure
    dev_prior_posterior_with_seed: Measure
    best_single: str


class DomainResult(Value):
    """Everything that is reported of one domain. `models` has every checkpoint alone."""

    domain: DomainId
    num_labels: Positive
    num_bytes: Count
    models: dict[str, Measure]
    schemes: dict[str, SchemeResult]
    best_single: str
    tied: tuple[tuple[str, ...], ...]


class Results(Value):
    """Everything that was scored. `schemes` maps scheme and domain to the name of the expert."""

    run: str
    seed: str
    schemes: dict[str, dict[str, str]]
    domains: tuple[DomainResult, ...]


def compute_results(
    domains: Sequence[DomainScores],
    *,
    run: str,
    seed: str,
    schemes: Mapping[str, Mapping[str, str]],
) -> Results:
    """All ensembles of all schemes on every domain, and every model alone.

    `seed` names the seed model of width M, `schemes` maps scheme and domain to the expert's name.
    The best single expert is chosen for each domain by its dev text, never by the text reported.
    """
    return Results(
        run=run,
        seed=seed,
        schemes={scheme: dict(experts) for scheme, experts in schemes.items()},
        domains=tuple(_domain_result(scores, seed, schemes) for scores in domains),
    )


def best_on_dev(scores: DomainScores, models: Sequence[str]) -> str:
    """The model with the highest mean log-likelihood on dev text; of equals the first by name."""
    return min(models, key=lambda model: (-float(scores.dev.matrix([model]).mean()), model))


def tied_columns(
    domain: str, schemes: Mapping[str, Mapping[str, str]]
) -> tuple[tuple[str, ...], ...]:
    """Groups of the table's columns that tie by construction on `domain`: no scheme wins there.

    Schemes tie where the same expert trained on the domain in all of them: what still tells their
    ensembles apart is how little weight goes to the other domains' experts. On a domain that nobody
    trained on, they tie if all of their experts are the same.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for scheme, experts in schemes.items():
        basis = (experts[domain],) if domain in experts else tuple(sorted(set(experts.values())))
        groups.setdefault(basis, []).append(scheme)
    tied = [tuple(group) for group in groups.values() if len(group) > 1]
    return tuple(tied + [tuple(scheme + WITH_SEED for scheme in group) for group in tied])


def result_table(results: Results) -> ResultTable:
    """The table that people see: uniform-prior posteriors beside the seed and the best expert."""
    schemes = tuple(results.schemes)
    columns = (SEED_COLUMN, BEST_COLUMN, *schemes, *(scheme + WITH_SEED for scheme in schemes))
    return ResultTable(
        columns=columns, rows=tuple(_table_row(domain, results.seed) for domain in results.domains)
    )


def results_json(results: Results) -> bytes:
    """The contents of results.json: the table and all else, every figure in full precision."""
    contents = {
        "table": result_table(results).model_dump(mode="json"),
        **results.model_dump(mode="json"),
    }
    text = json.dumps(contents, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


def _measure(log_likelihoods: Floats, num_bytes: int) -> Measure:
    return Measure(
        perplexity=float(perplexity(log_likelihoods)),
        bits_per_byte=float(bits_per_byte(log_likelihoods, num_bytes)),
    )


def _domain_result(
    scores: DomainScores, seed: str, schemes: Mapping[str, Mapping[str, str]]
) -> DomainResult:
    test = scores.test
    experts = sorted({name for scheme in schemes.values() for name in scheme.values()})
    models = {name: _measure(test.matrix([name])[0], test.num_bytes) for name in [seed, *experts]}
    return DomainResult(
        domain=scores.domain,
        num_labels=len(test.by_model[seed]),
        num_bytes=test.num_bytes,
        models=models,
        schemes={
            scheme: _scheme_result(scores, seed, sorted(set(members.values())))
            for scheme, members in schemes.items()
        },
        best_single=best_on_dev(scores, experts),
        tied=tied_columns(scores.domain, schemes),
    )


def _scheme_result(scores: DomainScores, seed: str, experts: Sequence[str]) -> SchemeResult:
    average, posterior, dev_prior = _ensembles(scores, experts)
    seed_average, seed_posterior, seed_dev_prior = _ensembles(scores, [*experts, seed])
    return SchemeResult(
        average=average,
        posterior=posterior,
        dev_prior_posterior=dev_prior,
        average_with_seed=seed_average,
        posterior_with_seed=seed_posterior,
        dev_prior_posterior_with_seed=seed_dev_prior,
        best_single=best_on_dev(scores, experts),
    )


def _ensembles(scores: DomainScores, members: Sequence[str]) -> tuple[Measure, Measure, Measure]:
    test = scores.test
    matrix = test.matrix(members)
    prior = cached_prior(scores.dev.matrix(members), scores.dev.starts)
    return (
        _measure(probability_average(matrix), test.num_bytes),
        _measure(posterior_ensemble(matrix, test.starts), test.num_bytes),
        _measure(posterior_ensemble(matrix, test.starts, prior), test.num_bytes),
    )


def _table_row(result: DomainResult, seed: str) -> TableRow:
    cells = {SEED_COLUMN: result.models[seed], BEST_COLUMN: result.models[result.best_single]}
    for scheme, ensembles in result.schemes.items():
        cells[scheme] = ensembles.posterior
        cells[scheme + WITH_SEED] = ensembles.posterior_with_seed
    return TableRow(
        domain=result.domain,
        perplexity={column: cell.perplexity for column, cell in cells.items()},
        bits_per_byte={column: cell.bits_per_byte for column, cell in cells.items()},
        best_single=result.best_single,
        tied=result.tied,
    )


def render_table(table: ResultTable) -> str:
    """Plain text for a terminal: perplexity, then bits per byte, with what the reader must know."""
    lines = ["Perplexity on test text, for each token; lower is better."]
    lines += _block(table, lambda row: row.perplexity, digits=2)
    lines += ["", "Bits per byte on test text; lower is better."]
    lines += _block(table, lambda row: row.bits_per_byte, digits=4)
    lines += ["", f"{BEST_COLUMN}: the expert with the lowest perplexity on the domain's dev text:"]
    lines += [f"  {row.domain}: {row.best_single}" for row in table.rows]
    if any(row.tied for row in table.rows):
        lines.append(
            "=: these schemes trained the same expert on this domain, so that they tie there by "
            "construction."
        )
    return "\n".join(lines) + "\n"


def _block(
    table: ResultTable, cells_of: Callable[[TableRow], Mapping[str, float]], *, digits: int
) -> list[str]:
    rows = [
        [row.domain]
        + [
            f"{cells_of(row)[column]:.{digits}f}{'=' if _is_tied(row, column) else ' '}"
            for column in table.columns
        ]
        for row in table.rows
    ]
    means = [
        _geometric_mean([cells_of(row)[column] for row in table.rows]) for column in table.columns
    ]
    rows.append(["geometric mean", *(f"{mean:.{digits}f} " for mean in means)])
    header = ["domain", *(f"{column} " for column in table.columns)]
    widths = [max(len(line[index]) for line in [header, *rows]) for index in range(len(header))]
    return [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in [header, *rows]
    ]


def _is_tied(row: TableRow, column: str) -> bool:
    return any(column in group for group in row.tied)


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))
