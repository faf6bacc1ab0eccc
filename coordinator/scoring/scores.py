"""From accepted checkpoints to measured text: the seed on dev shards, everything on test shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from coordinator.ledger import queries
from coordinator.names import checkpoint_name
from coordinator.runfile import RunFile
from coordinator.scoring.evidence import checkpoint_at
from coordinator.scoring.measuring import Checkpoint, Measurer, num_labels
from coordinator.scoring.pulse import Pulse
from coordinator.scoring.results import DomainScores, Results, ShardScores, compute_results
from coordinator.text.prepared import Prepared
from protocol.blobs import ShardManifest
from protocol.specs import ExpertSpec
from shared.blobstore import BlobStore
from shared.ensemble import bits_per_byte, perplexity


@dataclass(frozen=True)
class Model:
    """A checkpoint with its name and the digest of its spec."""

    name: str
    spec_digest: str
    checkpoint: Checkpoint


class Scoring:
    """Measures the checkpoints of a run, one model in memory at a time."""

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

    def seed(self, seed: ExpertSpec, accepted: Mapping[str, queries.AcceptedRow]) -> Model:
        """The seed model of width M: what experts are compared with, and domains classified by."""
        return self._model(accepted[seed.digest], self._run.widths.M)

    def seed_perplexity(self, seed: Model) -> dict[str, float]:
        """The seed's perplexity on each domain's dev shard."""
        shards = [self._prepared.shard(domain, "dev") for domain in self._run.domains]
        task = self._pulse.task("classifying domains", sum(map(num_labels, shards)))
        measured = self._measurer.measure(seed.checkpoint, shards, task=task)
        return {
            domain: perplexity(labels)
            for domain, labels in zip(self._run.domains, measured, strict=True)
        }

    def score_ahead(self, seed: ExpertSpec, accepted: Mapping[str, queries.AcceptedRow]) -> bool:
        """Measure one accepted model on one domain, while others still train; whether one was left.

        What is measured now is in the cache when all are scored.
        """
        experts = [row for row in accepted.values() if row.spec.kind == "expert"]
        models = [self._model(row, row.spec.shape.ffn_width) for row in experts]
        for model in [self.seed(seed, accepted), *models]:
            for domain in self._run.domains:
                if (model.name, domain) not in self._ahead:
                    shards = [self._prepared.shard(domain, split) for split in ("dev", "test")]
                    task = self._pulse.task(f"scoring {model.name}", sum(map(num_labels, shards)))
                    self._measurer.measure(model.checkpoint, shards, task=task)
                    self._ahead.add((model.name, domain))
                    return True
        return False

    def score(
        self,
        seed: Model,
        schemes: Mapping[str, Mapping[str, str]],
        accepted: Mapping[str, queries.AcceptedRow],
    ) -> "Scores":
        """All models on all dev and test text; `schemes` is scheme to domain to spec digest."""
        digests = sorted({digest for experts in schemes.values() for digest in experts.values()})
        experts = [
            self._model(accepted[digest], accepted[digest].spec.shape.ffn_width)
            for digest in digests
        ]
        models = [seed, *sorted(experts, key=lambda model: model.name)]
        shards = [
            self._prepared.shard(domain, split)
            for domain in self._run.domains
            for split in ("dev", "test")
        ]
        task = self._pulse.task("scoring", len(models) * sum(map(num_labels, shards)))
        measured = {
            model.name: self._measurer.measure(model.checkpoint, shards, task=task)
            for model in models
        }
        scores = {
            shard.blob.digest: ShardScores(
                by_model={name: labels[index] for name, labels in measured.items()},
                starts=self._measurer.windows(shard, self._run.shape.context_length).label_starts,
                num_bytes=shard.num_bytes,
            )
            for index, shard in enumerate(shards)
        }
        names = {model.spec_digest: model.name for model in experts}
        results = compute_results(
            [self._domain_scores(domain, scores) for domain in self._run.domains],
            run=self._run.run.name,
            seed=seed.name,
            schemes={
                scheme: {domain: names[digest] for domain, digest in experts_of.items()}
                for scheme, experts_of in schemes.items()
            },
        )
        return Scores(results=results, models=models, shards=shards, scores=scores)

    def _model(self, row: queries.AcceptedRow, ffn_width: int) -> Model:
        return Model(
            name=checkpoint_name(row.spec, ffn_width=ffn_width),
            spec_digest=row.spec.digest,
            checkpoint=checkpoint_at(self._store, row.spec, row.manifest, ffn_width),
        )

    def _domain_scores(self, domain: str, scores: Mapping[str, ShardScores]) -> DomainScores:
        return DomainScores(
            domain=domain,
            dev=scores[self._prepared.shard(domain, "dev").blob.digest],
            test=scores[self._prepared.shard(domain, "test").blob.digest],
        )


@dataclass(frozen=True)
class Scores:
    """The results, and the log-likelihoods that they come from, by shard digest."""

    results: Results
    models: Sequence[Model]
    shards: Sequence[ShardManifest]
    scores: Mapping[str, ShardScores]

    def record_evaluations(self, connection: Connection, now: float) -> None:
        """One evaluation for each model and shard; a nested seed's is that of width M."""
        for model in self.models:
            for shard in self.shards:
                labels = self.scores[shard.blob.digest].matrix([model.name])[0]
                queries.record_evaluation(
                    connection,
                    spec_digest=model.spec_digest,
                    shard_digest=shard.blob.digest,
                    mean_log_likelihood=float(labels.mean()),
                    perplexity=perplexity(labels),
                    bits_per_byte=bits_per_byte(labels, shard.num_bytes),
                    now=now,
                )


def schemes_of(
    rows: Sequence[queries.AssignmentRow], order: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Scheme to domain to the digest of its expert's spec, schemes in `order`, domains by name."""
    return {
        scheme: {
            row.spec.domain: row.spec.digest
            for row in sorted(rows, key=lambda row: row.spec.domain)
            if row.spec.kind == "expert" and scheme in row.schemes
        }
        for scheme in order
    }
