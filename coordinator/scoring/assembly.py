"""All that was measured to the results. Reads no more than the text that a trace shows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from coordinator.folders import RunFolders
from coordinator.ledger.accepted import AcceptedRow
from coordinator.runfile import RunFile
from coordinator.scoring.forgetting import remembered
from coordinator.scoring.lineup import Contestants, Lineup, named
from coordinator.scoring.measuring import Measurer
from coordinator.scoring.outcome import BudgetFacts, DomainScores, PosteriorTrace, Results
from coordinator.scoring.provenance import checkpoint_facts, digests, names_of, versions
from coordinator.scoring.results import DomainText, compare_all, score_domain
from coordinator.scoring.statistics import DomainSums
from coordinator.scoring.traces import chosen_stretch, posterior_trace, spelled, traced_domains
from coordinator.text.prepared import Prepared
from protocol.ids import Digest
from shared.ensemble import perplexity
from shared.text.vocabulary import open_vocabulary


@dataclass(frozen=True)
class Measured:
    """What was measured of a lineup. `names` are those in `texts`, by spec digest.

    `texts` are gone through once, and let go one by one. `dev_perplexity` has what is known of
    further checkpoints, by spec digest and domain.
    """

    lineup: Lineup
    accepted: Mapping[Digest, AcceptedRow]
    names: Mapping[Digest, str]
    texts: Iterable[DomainText]
    dev_perplexity: Mapping[Digest, Mapping[str, float]]


def assemble(
    run: RunFile,
    prepared: Prepared,
    measurer: Measurer,
    measured: Measured,
    *,
    budgets: Sequence[BudgetFacts],
) -> Results:
    """The results of a run."""
    lineup, accepted = measured.lineup, measured.accepted
    names = {**names_of(accepted), **measured.names}
    parents = {
        digest: row.spec.parent for digest, row in accepted.items() if row.spec.parent is not None
    }
    contestants = named(lineup, names, parents)
    tracer = _Tracer(run, prepared, measurer, contestants)
    domains: list[DomainScores] = []
    sums: list[DomainSums] = []
    traces: list[PosteriorTrace] = []
    on_dev: dict[Digest, dict[str, float]] = {digest: {} for digest in measured.names}
    for text in measured.texts:
        scores, domain_sums = score_domain(text, contestants)
        domains.append(scores)
        sums.append(domain_sums)
        traces += tracer.traces(text)
        for digest, name in measured.names.items():
            if name in text.dev.by_model:
                on_dev[digest][text.domain] = perplexity(text.dev.by_model[name])
    return Results(
        run=run.run.name,
        rng_seed=run.recipe.rng_seed,
        seed=contestants.seed,
        dense=contestants.dense,
        schemes={scheme: dict(experts) for scheme, experts in contestants.experts.items()},
        members=dict(contestants.members),
        unit=run.plan.unit,
        budgets=tuple(budgets),
        search=lineup.search,
        checkpoints=checkpoint_facts(
            lineup, accepted, names, {**measured.dev_perplexity, **on_dev}
        ),
        domains=tuple(domains),
        comparisons=compare_all(domains, sums, contestants),
        remembered=remembered(contestants, {one.domain: one.models for one in domains}),
        traces=tuple(traces),
        versions=versions(),
        digests=digests(run, RunFolders(run.folder), prepared),
    )


class _Tracer:
    """The first scheme's members over the beginning of a test document, of up to three domains."""

    def __init__(
        self, run: RunFile, prepared: Prepared, measurer: Measurer, contestants: Contestants
    ) -> None:
        self._prepared = prepared
        self._measurer = measurer
        self._contestants = contestants
        self._context_length = run.shape.context_length
        self._domains = traced_domains(run.trained, contestants.classes)
        self._vocabulary = open_vocabulary(RunFolders(run.folder).tokenizer.read_bytes())

    def traces(self, text: DomainText) -> Iterator[PosteriorTrace]:
        """That of this domain, if it is one of those that are shown."""
        if text.domain not in self._domains:
            return
        manifest = self._prepared.shard(text.domain, "test")
        windows = self._measurer.windows(manifest, self._context_length)
        begin, ids = chosen_stretch(self._measurer.shard(manifest), windows)
        scheme = self._contestants.schemes[0]
        yield posterior_trace(
            scheme,
            text.domain,
            members=self._contestants.members[scheme],
            scores=text.test,
            tokens=spelled(self._vocabulary.decode, ids),
            begin=begin,
        )
