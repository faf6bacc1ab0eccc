"""From accepted checkpoints to measured text: what a plan needs on dev text, all that is reported.

A model is in memory alone, and only for shards that the cache does not have: whatever was measured
before, for verification, for a plan, ahead of time or in a run that was killed, costs nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from coordinator.folders import RunFolders
from coordinator.ledger import queries
from coordinator.names import checkpoint_name
from coordinator.runfile import RunFile
from coordinator.scoring.assembly import Measured, assemble
from coordinator.scoring.averages import SchemeAverages, WeightAverages
from coordinator.scoring.ensembles import ShardScores, mean_posterior
from coordinator.scoring.evidence import checkpoint_at, widths_of
from coordinator.scoring.lineup import Lineup, needed_texts
from coordinator.scoring.measuring import Checkpoint, Measurer, num_labels
from coordinator.scoring.outcome import BudgetFacts, Results
from coordinator.scoring.pulse import Pulse
from coordinator.scoring.results import DomainText
from coordinator.text.prepared import Prepared
from protocol.blobs import ShardManifest, Split
from protocol.ids import Digest
from protocol.specs import ExpertSpec
from shared.blobs import BlobStore
from shared.ensemble import perplexity

SPLITS: tuple[Split, ...] = ("dev", "test")

AcceptedRows = Mapping[str, queries.AcceptedRow]
Labels = NDArray[np.float32]


@dataclass(frozen=True)
class Model:
    """A checkpoint with its name and the digest of its spec."""

    name: str
    spec_digest: str
    checkpoint: Checkpoint


class Scoring:
    """Measures the checkpoints of a run. Those of `accepted` are found by spec digest."""

    def __init__(
        self,
        *,
        run: RunFile,
        prepared: Prepared,
        store: BlobStore,
        measurer: Measurer,
        pulse: Pulse,
    ) -> None:
        self._run = run
        self._prepared = prepared
        self._store = store
        self._measurer = measurer
        self._pulse = pulse
        self._ahead: set[tuple[str, str]] = set()

    def seed(self, seed: ExpertSpec, accepted: AcceptedRows) -> Model:
        """The seed model of width M: what experts are compared with, and domains classified by."""
        return self._model(accepted[seed.digest])

    def seed_perplexity(self, seed: Model) -> dict[str, float]:
        """The seed's perplexity on the dev shard of each domain that experts train on."""
        domains = self._run.trained
        measured = self._measure(seed, domains, ("dev",), what="classifying domains")
        return {
            domain: perplexity(labels) for domain, labels in zip(domains, measured, strict=True)
        }

    def measure_dev(
        self, wants: Sequence[tuple[Digest, str]], accepted: AcceptedRows
    ) -> dict[tuple[Digest, str], float]:
        """Mean loss of a label, in nats, of each checkpoint on each domain's dev text.

        `wants` are pairs of spec digest and domain. A seed is measured at width M.
        """
        by_spec: dict[Digest, list[str]] = {}
        for digest, domain in wants:
            by_spec.setdefault(digest, []).append(domain)
        losses = {}
        for digest, domains in by_spec.items():
            model = self._model(accepted[digest])
            measured = self._measure(model, domains, ("dev",), what=f"measuring {model.name}")
            for domain, labels in zip(domains, measured, strict=True):
                losses[digest, domain] = -float(labels.mean(dtype=np.float64))
        return losses

    def record_dev(
        self, connection: Connection, losses: Mapping[tuple[Digest, str], float], now: float
    ) -> None:
        """Write down what `measure_dev` found, as evaluations."""
        for (digest, domain), loss in losses.items():
            shard = self._prepared.shard(domain, "dev")
            _record(connection, digest, shard, mean_log_likelihood=-loss, now=now)

    def dev_posterior(
        self, members: Sequence[Digest], domain: str, accepted: AcceptedRows
    ) -> tuple[float, ...]:
        """Each member's mean weight over the labels of the domain's dev text, uniform prior.

        What Branch-Train-Merge weights an average by (arXiv 2208.03306). They sum to 1.
        """
        by_model = {
            digest: self._measure(
                self._model(accepted[digest]), [domain], ("dev",), what="weighing experts"
            )[0]
            for digest in members
        }
        dev = self._shard_scores(self._prepared.shard(domain, "dev"), by_model)
        weights = mean_posterior(list(by_model), dev)
        return tuple(weights[digest] for digest in members)

    def score_ahead(self, lineup: Lineup, accepted: AcceptedRows) -> bool:
        """Measure one accepted contestant on one domain, while others still train; whether one was
        left.

        What is measured now is in the cache when all are scored.
        """
        for digest, domains in needed_texts(lineup, list(self._run.domains)).items():
            for domain in domains if digest in accepted else ():
                if (digest, domain) not in self._ahead:
                    model = self._model(accepted[digest])
                    self._measure(model, [domain], SPLITS, what=f"scoring {model.name}")
                    self._ahead.add((digest, domain))
                    return True
        return False

    def score(
        self, lineup: Lineup, accepted: AcceptedRows, budgets: Sequence[BudgetFacts]
    ) -> "Scores":
        """All contestants on all that they are compared on, and what follows from it.

        `budgets` are the plan's. Raises KeyError when a contestant was not accepted.
        """
        needed = needed_texts(lineup, list(self._run.domains))
        models = {digest: self._model(accepted[digest]) for digest in needed}
        wanted = {digest: self._shards(domains, SPLITS) for digest, domains in needed.items()}
        task = self._pulse.task("scoring", sum(map(_labels_of, wanted.values())))
        evaluations = []
        for digest, shards in wanted.items():
            measured = self._measurer.measure(models[digest].checkpoint, shards, task=task)
            for shard, labels in zip(shards, measured, strict=True):
                evaluations.append((digest, shard, float(labels.mean(dtype=np.float64))))
        results = assemble(
            self._run,
            self._prepared,
            self._measurer,
            Measured(
                lineup=lineup,
                accepted=accepted,
                names={digest: model.name for digest, model in models.items()},
                texts=self._texts(needed, models, self._averages(lineup, models)),
                dev_perplexity=self._known_on_dev(lineup.others, accepted),
            ),
            budgets=budgets,
        )
        return Scores(results=results, evaluations=evaluations)

    def _averages(self, lineup: Lineup, models: Mapping[Digest, Model]) -> SchemeAverages | None:
        """The averages of weights, measured where that is done once for all; None if not wanted."""
        if not self._run.evaluation.weight_averages or self._run.seed.kind == "per-size":
            return None
        averages = SchemeAverages(
            WeightAverages(RunFolders(self._run.folder).averages, self._measurer),
            {
                scheme: {models[digest].name: models[digest].checkpoint for digest in one.members}
                for scheme, one in lineup.schemes.items()
            },
        )
        tests = self._shards(list(self._run.domains), ("test",))
        task = self._pulse.task("averaging weights", len(lineup.schemes) * _labels_of(tests))
        averages.prepare(tests, task=task)
        return averages

    def _texts(
        self,
        needed: Mapping[Digest, Sequence[str]],
        models: Mapping[Digest, Model],
        averages: SchemeAverages | None,
    ) -> Iterator[DomainText]:
        """One domain after the other, from the cache: all at once would be too many open files."""
        for domain in self._run.domains:
            shards = self._shards([domain], SPLITS)
            task = self._pulse.task(f"combining on {domain}", len(models) * _labels_of(shards))
            measured = {
                models[digest].name: self._measurer.measure(
                    models[digest].checkpoint, shards, task=task
                )
                for digest, domains in needed.items()
                if domain in domains
            }
            dev, test = (
                self._shard_scores(shard, {name: one[index] for name, one in measured.items()})
                for index, shard in enumerate(shards)
            )
            yield DomainText(
                domain=domain,
                role=self._run.domains[domain].role,
                dev=dev,
                test=test,
                weight_averages=averages.on(dev, shards[1], task=task) if averages else {},
            )

    def _known_on_dev(
        self, digests: Sequence[Digest], accepted: AcceptedRows
    ) -> dict[Digest, dict[str, float]]:
        """What the cache knows of these on dev text: perplexities by spec digest and domain."""
        found: dict[Digest, dict[str, float]] = {}
        for digest in digests:
            if digest not in accepted:
                continue
            model, found[digest] = self._model(accepted[digest]), {}
            for domain in self._run.trained:
                shard = self._prepared.shard(domain, "dev")
                if self._measurer.is_measured(model.checkpoint, [shard]):
                    (labels,) = self._measure(model, [domain], ("dev",), what="reading")
                    found[digest][domain] = perplexity(labels)
        return found

    def _model(self, row: queries.AcceptedRow) -> Model:
        """A checkpoint at the width that it is used at: M where that is nested in it."""
        medium = self._run.widths.M
        width = medium if medium in widths_of(row.spec) else row.spec.shape.ffn_width
        return Model(
            name=checkpoint_name(row.spec, ffn_width=width),
            spec_digest=row.spec.digest,
            checkpoint=checkpoint_at(self._store, row.spec, row.manifest, width),
        )

    def _measure(
        self, model: Model, domains: Sequence[str], splits: Sequence[Split], *, what: str
    ) -> list[Labels]:
        """Log-likelihoods on these splits of these domains, domain by domain."""
        shards = self._shards(domains, splits)
        task = self._pulse.task(what, _labels_of(shards))
        return self._measurer.measure(model.checkpoint, shards, task=task)

    def _shards(self, domains: Sequence[str], splits: Sequence[Split]) -> list[ShardManifest]:
        """Domain by domain."""
        return [self._prepared.shard(domain, split) for domain in domains for split in splits]

    def _shard_scores(self, shard: ShardManifest, by_model: Mapping[str, Labels]) -> ShardScores:
        windows = self._measurer.windows(shard, self._run.shape.context_length)
        return ShardScores(
            by_model=by_model,
            starts=windows.label_starts,
            documents=windows.documents,
            num_bytes=shard.num_bytes,
        )


@dataclass(frozen=True)
class Scores:
    """The results, and each model's mean log-likelihood of a label by spec digest and shard."""

    results: Results
    evaluations: Sequence[tuple[Digest, ShardManifest, float]]

    def record_evaluations(self, connection: Connection, now: float) -> None:
        """One evaluation for each model and shard; a nested seed's is that of width M."""
        for digest, shard, mean in self.evaluations:
            _record(connection, digest, shard, mean_log_likelihood=mean, now=now)


def _labels_of(shards: Sequence[ShardManifest]) -> int:
    return sum(map(num_labels, shards))


def _record(
    connection: Connection,
    spec_digest: Digest,
    shard: ShardManifest,
    *,
    mean_log_likelihood: float,
    now: float,
) -> None:
    nats = -mean_log_likelihood * num_labels(shard)
    queries.record_evaluation(
        connection,
        spec_digest=spec_digest,
        shard_digest=shard.blob.digest,
        mean_log_likelihood=mean_log_likelihood,
        perplexity=float(np.exp(-mean_log_likelihood)),
        bits_per_byte=float(nats / np.log(2) / shard.num_bytes),
        now=now,
    )
