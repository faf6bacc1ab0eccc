"""Plans the run's work: classes, blends, and the assignments that follow from what was measured.

What was measured lies in the ledger (dev losses) and in the cache (posteriors), so that a plan can
be made again at any moment and names the same specs.
"""

import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

from sqlalchemy import Connection

from coordinator.ledger import Ledger, queries
from coordinator.names import checkpoint_name
from coordinator.planning.blends import blends_of
from coordinator.planning.dealing import order_of
from coordinator.planning.difficulty import classify
from coordinator.planning.measured import Measured
from coordinator.planning.plan import Plan, make_plan
from coordinator.planning.recipes import seed_specs
from coordinator.pretrained.making import Made, keep_made, make_pretrained_seed
from coordinator.rounds import Measure
from coordinator.runfile import RunFile
from coordinator.scoring.evidence import MODEL_FILE
from coordinator.scoring.pulse import with_signs_of_life
from coordinator.scoring.scores import Scoring
from coordinator.text.blending import make_blend
from coordinator.text.prepared import Prepared
from coordinator.text_sections import Difficulty
from protocol.blobs import ShardManifest
from protocol.ids import Digest, WorkerId
from protocol.specs import ExpertSpec
from shared.averaging import Source, average_files
from shared.blobs import BlobStore
from shared.logs import facts

AcceptedRows = dict[str, queries.AcceptedRow]


class Foreman:
    """Knows what the run's next work is, and writes it into the ledger."""

    def __init__(  # noqa: PLR0913
        self,
        run: RunFile,
        prepared: Prepared,
        ledger: Ledger,
        store: BlobStore,
        scoring: Scoring,
        *,
        tick: Callable[[], None],
        now: Callable[[], float],
        log: logging.Logger,
    ) -> None:
        self._run = run
        self._prepared = prepared
        self._ledger = ledger
        self._store = store
        self._scoring = scoring
        self._tick = tick
        self._now = now
        self._log = log
        self._posteriors: dict[tuple[tuple[Digest, ...], str], tuple[float, ...]] = {}
        self._blobs = {shard.blob.digest: shard.blob for shard in prepared.shards}
        self.seeds = seed_specs(run, prepared)

    @property
    def seed(self) -> ExpertSpec:
        """The seed whose width M experts are compared with, and domains classified by."""
        return self.seeds["M"]

    def plan_seeds(self) -> None:
        """Write down the seeds' assignments, or the seed that was trained elsewhere, and the
        shards that the run trains on."""
        moment = self._now()
        made = None
        if self._run.seed.kind == "pretrained":
            made = make_pretrained_seed(
                self._run,
                self._prepared,
                self._store,
                coordinator=self._coordinator(),
                tick=self._tick,
            )
        with self._ledger.begin() as connection:
            for shard in self._prepared.shards:
                queries.add_shard(connection, shard, now=moment)
            for spec in dict.fromkeys(self.seeds.values()) if made is None else ():
                self._add(connection, spec, (), moment)
            if made is not None:
                self._add_made(connection, made, moment)
            queries.set_phase(connection, "seeding", "seeds were planned", moment)

    def classify(self, accepted: AcceptedRows) -> None:
        """Measure the seed on each trained domain, and write down the classes."""
        run = self._run
        measured = self._scoring.seed_perplexity(self._scoring.seed(self.seed, accepted))
        pins = {
            name: run.domains[name].difficulty
            for name in run.trained
            if run.domains[name].difficulty is not None
        }
        lineages = run.plan.experts == "lineages"
        classes = classify(
            measured,
            cast(dict[str, Difficulty], pins),
            thresholds=run.plan.classes,
            per_class=run.plan.rounds if lineages else None,
        )
        moment = self._now()
        with self._ledger.begin() as connection:
            for domain, difficulty in classes.items():
                queries.set_domain_class(
                    connection, domain, difficulty, measured[domain], now=moment
                )
        for domain, difficulty in classes.items():
            self._log.info(
                "classified %s",
                facts(domain=domain, difficulty=difficulty, seed_perplexity=measured[domain]),
            )

    def plan(self, snapshot: queries.RunSnapshot) -> Plan | None:
        """The plan as far as it can be made; None before all domains have a class.

        Raises PlanError.
        """
        classes = {
            row.domain: cast(Difficulty, row.difficulty)
            for row in snapshot.domains
            if row.domain in self._run.trained and row.difficulty is not None
        }
        if len(classes) < len(self._run.trained):
            return None
        prepared = self._with_blends(classes, snapshot)
        measured = Measured(self._dev_losses(snapshot), self._posteriors, snapshot.diverged)
        return make_plan(self._run, prepared, self.seeds, classes, measured)

    def add_work(self, plan: Plan, snapshot: queries.RunSnapshot, accepted: AcceptedRows) -> None:
        """Write down every assignment of the plan that is not there yet, and make its averages."""
        moment = self._now()
        known = {row.spec.digest: set(row.schemes) for row in snapshot.assignments}
        averages = [
            self._average(spec, accepted) for spec in plan.averages if spec.digest not in known
        ]
        with self._ledger.begin() as connection:
            for made in averages:
                self._add_made(connection, made, moment)
            for spec, served in plan.assignments():
                if spec.digest not in known or not set(served) <= known[spec.digest]:
                    self._add(connection, spec, served, moment)
            queries.set_phase(connection, "training", "experts were planned", moment)
        for row in plan.budgets:
            self._log.info("budget %s", facts(**row.model_dump()))
        for cost in plan.search:
            self._log.info("beside the budgets %s", facts(**cost.model_dump()))

    def measure(self, wanted: Measure, accepted: AcceptedRows) -> None:
        """Measure what the plan waits for; losses go into the ledger."""
        losses = self._scoring.measure_dev(wanted.losses, accepted)
        with self._ledger.begin() as connection:
            self._scoring.record_dev(connection, losses, self._now())
        for (digest, domain), loss in losses.items():
            name = checkpoint_name(accepted[digest].spec)
            self._log.info("measured %s", facts(expert=name, domain=domain, dev_loss=loss))
        for members, domain in wanted.posteriors:
            weights = self._scoring.dev_posterior(members, domain, accepted)
            self._posteriors[members, domain] = weights
            self._log.info("measured %s", facts(domain=domain, posterior=weights))

    def _dev_losses(self, snapshot: queries.RunSnapshot) -> dict[tuple[Digest, str], float]:
        domains = {
            self._prepared.shard(name, "dev").blob.digest: name for name in self._run.trained
        }
        return {
            (row.spec_digest, domains[row.shard_digest]): -row.mean_log_likelihood
            for row in snapshot.evaluations
            if row.shard_digest in domains
        }

    def _with_blends(
        self, classes: dict[str, Difficulty], snapshot: queries.RunSnapshot
    ) -> Prepared:
        """The run's shards and those that are mixed of them, which are made once."""
        there = {row.domain: row.shards.get("train") for row in snapshot.domains}
        made: list[ShardManifest] = []
        for blend in blends_of(self._run, order_of(self._run, classes)):
            manifest = there.get(blend.name)
            if manifest is None or not self._store.has(manifest.blob.digest):
                make = partial(make_blend, blend, self._prepared, self._store)
                manifest = with_signs_of_life(make, self._tick)
                with self._ledger.begin() as connection:
                    queries.add_shard(connection, manifest, now=self._now())
                self._log.info("blended %s", facts(text=blend.name, tokens=manifest.num_tokens))
            made.append(manifest)
        self._blobs |= {shard.blob.digest: shard.blob for shard in made}
        return self._prepared.model_copy(update={"shards": (*self._prepared.shards, *made)})

    def _average(self, spec: ExpertSpec, accepted: AcceptedRows) -> Made:
        """The weighted mean of the experts that the spec names, as a checkpoint of the run."""
        with tempfile.TemporaryDirectory(dir=self._store.root) as folder:
            target = Path(folder) / "average.safetensors"
            sources = [
                Source(path=self._weights(accepted[one.spec]), share=one.share)
                for one in spec.ingredients
            ]
            with_signs_of_life(partial(average_files, sources, target), self._tick)
            keep = partial(keep_made, self._store, spec, target, coordinator=self._coordinator())
            return with_signs_of_life(keep, self._tick)

    def _weights(self, row: queries.AcceptedRow) -> Path:
        return self._store.path(row.manifest.blob(MODEL_FILE).digest)

    def _coordinator(self) -> WorkerId:
        with self._ledger.read() as connection:
            return queries.get_run(connection).coordinator

    def _add_made(self, connection: Connection, made: Made, moment: float) -> None:
        queries.add_made(
            connection,
            made.spec,
            manifest=made.manifest,
            manifest_ref=made.manifest_ref,
            shard=self._blobs[made.spec.train_shard],
            now=moment,
        )
        self._log.info("made %s", facts(checkpoint=checkpoint_name(made.spec)))

    def _add(
        self, connection: Connection, spec: ExpertSpec, schemes: tuple[str, ...], moment: float
    ) -> None:
        shard = self._blobs[spec.train_shard]
        queries.add_assignment(connection, spec, shard=shard, schemes=schemes, now=moment)
        self._log.info("planned %s", facts(expert=checkpoint_name(spec), schemes=schemes))
