"""The scorer role: verifies submissions and takes the run from one step to the next.

It alone reads sealed shards. All it knows is in the ledger and the run's folder, so that it can be
killed at any point: what is planned is planned once, and what was computed is in the cache.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import cast

import torch
from safetensors import SafetensorError
from sqlalchemy import Connection

from coordinator import planner
from coordinator.folders import RunFolders
from coordinator.ledger import Ledger, queries
from coordinator.ledger.errors import LedgerError, LedgerUnavailable
from coordinator.names import checkpoint_name
from coordinator.network.disposal import dispose
from coordinator.rounds import (
    Action,
    Classify,
    Finished,
    PlanExperts,
    PlanSeeds,
    Score,
    Wait,
    next_action,
)
from coordinator.runfile import RunFile
from coordinator.scoring.evidence import (
    MODEL_FILE,
    AcceptedFiles,
    Examiner,
    checkpoint_at,
    widths_of,
)
from coordinator.scoring.export import export_checkpoint
from coordinator.scoring.likelihood_cache import LikelihoodCache
from coordinator.scoring.measuring import Measurer
from coordinator.scoring.pulse import Pulse, Stopped
from coordinator.scoring.results import render_table, result_table, results_json
from coordinator.scoring.scores import Scoring, schemes_of
from coordinator.scoring.verification import Decision, Rejected
from coordinator.text.prepared import Prepared
from protocol.messages import Phase
from protocol.specs import ExpertSpec
from shared.blobstore import BlobMissing, BlobStore
from shared.files import write_atomic
from shared.logs import facts

IDLE_SECONDS = 0.5
RECHECK_SECONDS = 30.0
"""Between two looks at a lost file, which is hashed each time."""

RESULTS_FILE = "results.json"
MAX_REASON = 500

AcceptedRows = dict[str, queries.AcceptedRow]


def run_scorer(  # noqa: PLR0913
    run: RunFile,
    folders: RunFolders,
    prepared: Prepared,
    ledger: Ledger,
    *,
    stop: threading.Event,
    now: Callable[[], float],
    log: logging.Logger,
    num_threads: int = 1,
) -> None:
    """Serve until `stop` is set; work in hand is dropped then, and taken up at the next start.

    `num_threads` is torch's, in this whole process: one leaves the other cores to workers that
    share this machine. Expects the run in the ledger (`create_run`).
    """
    torch.set_num_threads(num_threads)

    def beat(moment: float) -> None:
        with ledger.begin() as connection:
            queries.beat_role(connection, "scorer", moment)

    pulse = Pulse(beat=beat, stop=stop, now=now, log=log)
    scorer = Scorer(run, folders, prepared, ledger, pulse=pulse, now=now, log=log)
    try:
        while True:
            try:
                pulse.tick()
                waits = not scorer.step()
            except LedgerUnavailable as error:
                log.warning("the ledger does not answer, what was in hand is done again: %s", error)
                waits = True
            if waits:
                stop.wait(IDLE_SECONDS)
    except Stopped:
        log.info("stopped")


class Scorer:
    """One thing at a time: `step` does the next one."""

    def __init__(  # noqa: PLR0913
        self,
        run: RunFile,
        folders: RunFolders,
        prepared: Prepared,
        ledger: Ledger,
        *,
        pulse: Pulse,
        now: Callable[[], float],
        log: logging.Logger,
    ) -> None:
        self._run = run
        self._folders = folders
        self._prepared = prepared
        self._ledger = ledger
        self._now = now
        self._log = log
        self._store = BlobStore(folders.blobs)
        self._cache = LikelihoodCache(folders.sealed / "likelihoods")
        self._pulse = pulse
        measurer = Measurer(public=self._store, sealed=BlobStore(folders.sealed), cache=self._cache)
        self._examiner = Examiner(
            prepared=prepared, store=self._store, measurer=measurer, pulse=pulse
        )
        self._scoring = Scoring(
            run=run, prepared=prepared, store=self._store, measurer=measurer, pulse=pulse
        )
        self._seeds = planner.seed_specs(run, prepared)
        self._exported: set[str] = set()
        self._said: tuple[Phase, str] | None = None
        self._files = AcceptedFiles(self._store, pulse.tick)
        self._stalled_at: float | None = None

    def step(self) -> bool:
        """Do the next thing; whether there was one. Raises Stopped when the role is to stop.

        Without the file of an accepted checkpoint the run is stalled, until it is put back.
        """
        if self._stalled_at is not None and 0 <= self._now() - self._stalled_at < RECHECK_SECONDS:
            return False
        with self._ledger.read() as connection:
            submissions = queries.durable_submissions(connection)
            accepted = queries.accepted(connection)
            snapshot = queries.snapshot(connection)
        lost = self._files.find_lost(accepted)
        if lost is None:
            try:
                return self._proceed(submissions, accepted, snapshot)
            except (ValueError, BlobMissing, OSError, SafetensorError):
                self._files.hash_again()
                lost = self._files.find_lost(accepted)
                if lost is None:
                    raise
        self._stall(lost, snapshot)
        return False

    def _proceed(
        self,
        submissions: Sequence[queries.SubmissionRow],
        accepted: AcceptedRows,
        snapshot: queries.RunSnapshot,
    ) -> bool:
        self._stalled_at = None
        for digest in accepted:
            if digest not in self._exported:
                self._export(accepted[digest])
        if submissions:
            self._verify(submissions[0], accepted)
            return True
        action = next_action(snapshot, domains=self._run.domains)
        return self._act(action, snapshot, accepted)

    def _stall(self, reason: str, snapshot: queries.RunSnapshot) -> None:
        self._stalled_at = self._now()
        self._log.error("stalled: %s", reason)
        if snapshot.phase != "finished":
            self._set_phase("stalled", reason)

    def _act(self, action: Action, snapshot: queries.RunSnapshot, accepted: AcceptedRows) -> bool:
        match action:
            case PlanSeeds():
                self._plan_seeds()
            case Classify():
                self._classify(accepted)
            case PlanExperts():
                return self._plan_experts(snapshot)
            case Wait(phase, reason):
                self._set_phase(phase, reason)
                return phase == "training" and self._scoring.score_ahead(self._seeds["M"], accepted)
            case Score():
                self._score(snapshot, accepted)
            case Finished():
                return False
        return True

    def _verify(self, submission: queries.SubmissionRow, accepted: AcceptedRows) -> None:
        decision = self._examine(submission, accepted)
        self._log.info(
            "%s: %s %s",
            type(decision).__name__.lower(),
            decision.reason,
            facts(
                expert=checkpoint_name(submission.spec),
                assignment=submission.assignment,
                fencing=submission.fencing,
                worker=submission.worker,
                detail=decision.detail,
            ),
        )
        try:
            with self._ledger.begin() as connection:
                unneeded = queries.record_verification(
                    connection,
                    submission.assignment,
                    submission.fencing,
                    decision,
                    decision.reason,
                    self._now(),
                )
        except LedgerUnavailable:
            raise
        except LedgerError as error:
            self._log.warning("decision not recorded, the submission moved on: %s", error)
            return
        dispose(self._ledger, self._store, unneeded)
        if isinstance(decision, Rejected):
            self._cache.forget(submission.manifest.blob(MODEL_FILE).digest)

    def _examine(self, submission: queries.SubmissionRow, accepted: AcceptedRows) -> Decision:
        """The decision; whatever a submission does to the measurement speaks against it alone."""
        try:
            return self._examiner.examine(submission, accepted)
        except (ValueError, SafetensorError) as error:
            self._files.hash_again()
            if self._files.find_lost(accepted) is not None:
                raise
            failure: Exception = error
        except (BlobMissing, FileNotFoundError) as error:
            if self._store.has(submission.manifest.blob(MODEL_FILE).digest):
                raise
            failure = error
        self._log.error(
            "not measured %s", facts(assignment=submission.assignment), exc_info=failure
        )
        return Rejected("could not be measured", repr(failure))

    def _export(self, row: queries.AcceptedRow) -> None:
        for width in widths_of(row.spec):
            self._pulse.tick()
            name = checkpoint_name(row.spec, ffn_width=width)
            if (self._folders.experts / name).exists():
                continue
            export_checkpoint(
                checkpoint_at(self._store, row.spec, row.manifest, width),
                name=name,
                experts=self._folders.experts,
                tokenizer=self._folders.tokenizer,
            )
            self._log.info("exported %s", facts(expert=name))
        self._exported.add(row.spec.digest)

    def _plan_seeds(self) -> None:
        moment = self._now()
        with self._ledger.begin() as connection:
            for shard in self._prepared.shards:
                queries.add_shard(connection, shard, now=moment)
            for spec in dict.fromkeys(self._seeds.values()):
                self._add(connection, spec, (), moment)
            queries.set_phase(connection, "seeding", "seeds were planned", moment)

    def _classify(self, accepted: AcceptedRows) -> None:
        self._set_phase("planning", "measuring the seed on each domain")
        seed = self._scoring.seed(self._seeds["M"], accepted)
        measured = self._scoring.seed_perplexity(seed)
        pins = {
            name: domain.difficulty
            for name, domain in self._run.domains.items()
            if domain.difficulty is not None
        }
        classes = planner.classify(measured, pins)
        moment = self._now()
        with self._ledger.begin() as connection:
            for domain, difficulty in classes.items():
                perplexity = measured[domain]
                queries.set_domain_class(connection, domain, difficulty, perplexity, now=moment)
        for domain, difficulty in classes.items():
            self._log.info(
                "classified %s",
                facts(domain=domain, difficulty=difficulty, seed_perplexity=measured[domain]),
            )

    def _plan_experts(self, snapshot: queries.RunSnapshot) -> bool:
        classes = {
            row.domain: cast(planner.Difficulty, row.difficulty)
            for row in snapshot.domains
            if row.domain in self._run.domains
        }
        try:
            plan = planner.make_plan(self._run, self._prepared, self._seeds, classes)
        except planner.PlanError as error:
            self._set_phase("stalled", f"the plan cannot be made: {error}")
            return False
        moment = self._now()
        with self._ledger.begin() as connection:
            for spec, schemes in plan.assignments():
                self._add(connection, spec, schemes, moment)
            queries.set_phase(connection, "training", "experts were planned", moment)
        for row in plan.budgets:
            self._log.info("budget %s", facts(**row.model_dump()))
        return True

    def _score(self, snapshot: queries.RunSnapshot, accepted: AcceptedRows) -> None:
        self._set_phase("scoring", "measuring all experts on test text")
        seed = self._scoring.seed(self._seeds["M"], accepted)
        schemes = schemes_of(snapshot.assignments, self._run.plan.schemes)
        scores = self._scoring.score(seed, schemes, accepted)
        table = result_table(scores.results)
        write_atomic(self._folders.state / RESULTS_FILE, results_json(scores.results))
        moment = self._now()
        with self._ledger.begin() as connection:
            scores.record_evaluations(connection, moment)
            queries.record_results(connection, table, moment)
            queries.set_phase(connection, "finished", f"results are in {RESULTS_FILE}", moment)
        self._log.info("finished\n%s", render_table(table))

    def _add(
        self, connection: Connection, spec: ExpertSpec, schemes: tuple[str, ...], moment: float
    ) -> None:
        shard = self._prepared.shard(spec.domain, "train").blob
        queries.add_assignment(connection, spec, shard=shard, schemes=schemes, now=moment)
        self._log.info("planned %s", facts(expert=checkpoint_name(spec), schemes=schemes))

    def _set_phase(self, phase: Phase, reason: str) -> None:
        """Say it in the ledger and the log, once."""
        said = (phase, reason[:MAX_REASON])
        if said == self._said:
            return
        self._said = said
        with self._ledger.begin() as connection:
            queries.set_phase(connection, *said, self._now())
        self._log.info("%s: %s", phase, reason)
