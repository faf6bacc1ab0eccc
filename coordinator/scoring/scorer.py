"""The scorer role: verifies submissions and takes the run from one step to the next.

It alone reads sealed shards. All it knows is in the ledger and the run's folder, so that it can be
killed at any point: what is planned is planned once, and what was computed is in the cache.
"""

import logging
import threading
from collections.abc import Callable, Sequence

import torch
from safetensors import SafetensorError

from coordinator.folders import RunFolders
from coordinator.ledger import Ledger, queries
from coordinator.ledger.errors import LedgerError, LedgerUnavailable
from coordinator.names import checkpoint_name
from coordinator.network.disposal import dispose
from coordinator.planning.errors import PlanError
from coordinator.planning.plan import Plan
from coordinator.rounds import (
    Action,
    AddWork,
    Classify,
    Measure,
    PlanSeeds,
    Score,
    Wait,
    next_action,
    standard_of,
)
from coordinator.runfile import RunFile
from coordinator.scoring.evidence import (
    ADAPTER_FILE,
    MODEL_FILE,
    AcceptedFiles,
    Examiner,
    checkpoint_at,
    widths_of,
)
from coordinator.scoring.export import Adapter, export_checkpoint
from coordinator.scoring.foreman import Foreman
from coordinator.scoring.likelihood_cache import LikelihoodCache
from coordinator.scoring.measuring import Measurer
from coordinator.scoring.owned import OwnData
from coordinator.scoring.pulse import Pulse, Stopped
from coordinator.scoring.scores import Scoring
from coordinator.scoring.table import render_results, result_table, results_json
from coordinator.scoring.verification import Decision, Rejected, Standard
from coordinator.text.prepared import Prepared, PrepareError
from protocol.views import Phase
from shared.blobs import BlobMissing, BlobStore
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
            prepared=prepared,
            trained=run.trained,
            store=self._store,
            measurer=measurer,
            pulse=pulse,
            harm_percent=0.0 if run.own_data is None else run.own_data.harm_percent,
        )
        self._scoring = Scoring(
            run=run, prepared=prepared, store=self._store, measurer=measurer, pulse=pulse
        )
        self._foreman = Foreman(
            run, prepared, ledger, self._store, self._scoring, tick=pulse.tick, now=now, log=log
        )
        self._own = OwnData(run, prepared, ledger, seeds=self._foreman.seeds, now=now, log=log)
        self._exported: set[str] = set()
        self._lost_own: set[str] = set()
        self._said: tuple[Phase, str] | None = None
        self._round = 0
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
        accepted = self._without_lost_own(accepted)
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
                self._export(accepted[digest], accepted)
        if submissions:
            self._verify(submissions[0], accepted, snapshot)
            return True
        self._own.publish()
        if self._own.plan(accepted):
            return True
        try:
            plan = self._foreman.plan(snapshot)
            return self._act(next_action(snapshot, plan), plan, snapshot, accepted)
        except PlanError as error:
            self._set_phase("stalled", f"the plan cannot be made: {error}")
            return False
        except PrepareError as error:
            self._set_phase("stalled", f"the seed cannot be made: {error}")
            return False

    def _without_lost_own(self, accepted: AcceptedRows) -> AcceptedRows:
        """The run needs no expert on own data: it goes on without those whose file is gone."""
        for digest, row in accepted.items():
            looks = row.owner is not None and digest not in self._lost_own
            if looks and (words := self._files.find_lost({digest: row})) is not None:
                self._log.error("an expert on own data is gone: %s", words)
                self._lost_own.add(digest)
        return {digest: row for digest, row in accepted.items() if digest not in self._lost_own}

    def _stall(self, reason: str, snapshot: queries.RunSnapshot) -> None:
        self._stalled_at = self._now()
        self._log.error("stalled: %s", reason)
        if snapshot.phase != "finished":
            self._set_phase("stalled", reason)

    def _act(
        self,
        action: Action,
        plan: Plan | None,
        snapshot: queries.RunSnapshot,
        accepted: AcceptedRows,
    ) -> bool:
        match action:
            case PlanSeeds():
                self._foreman.plan_seeds()
            case Classify():
                self._set_phase("planning", "measuring the seed on each domain")
                self._foreman.classify(accepted)
            case AddWork() if plan is not None:
                self._foreman.add_work(plan, snapshot, accepted)
            case Measure():
                self._foreman.measure(action, accepted)
            case Wait(phase, reason):
                self._set_phase(phase, reason)
                self._set_round(plan, accepted)
                return phase == "training" and self._score_ahead(plan, accepted)
            case Score() if plan is not None:
                self._score(plan, accepted)
            case _:
                return False
        return True

    def _verify(
        self,
        submission: queries.SubmissionRow,
        accepted: AcceptedRows,
        snapshot: queries.RunSnapshot,
    ) -> None:
        served = {row.spec.digest: row.schemes for row in snapshot.assignments}
        standard = standard_of(served.get(submission.spec.digest, ()))
        decision = self._examine(submission, accepted, standard)
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

    def _examine(
        self, submission: queries.SubmissionRow, accepted: AcceptedRows, standard: Standard
    ) -> Decision:
        """The decision; whatever a submission does to the measurement speaks against it alone."""
        try:
            return self._examiner.examine(submission, accepted, standard=standard)
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

    def _export(self, row: queries.AcceptedRow, accepted: AcceptedRows) -> None:
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
                adapter=self._adapter_of(row, accepted),
                marker=self._own.marker(row),
            )
            self._log.info("exported %s", facts(expert=name))
        self._exported.add(row.spec.digest)

    def _adapter_of(self, row: queries.AcceptedRow, accepted: AcceptedRows) -> Adapter | None:
        lora, parent = row.spec.lora, row.spec.parent
        if lora is None or parent is None:
            return None
        path = self._store.path(row.manifest.blob(ADAPTER_FILE).digest)
        return Adapter(path=path, lora=lora, base=checkpoint_name(accepted[parent].spec))

    def _score_ahead(self, plan: Plan | None, accepted: AcceptedRows) -> bool:
        if plan is None:
            return False
        return self._scoring.score_ahead(plan.lineup(self._foreman.seed), accepted)

    def _score(self, plan: Plan, accepted: AcceptedRows) -> None:
        self._set_phase("scoring", "measuring all experts on test text")
        lineup = plan.lineup(self._foreman.seed)
        scores = self._scoring.score(lineup, accepted, plan.budgets)
        results = scores.results.model_copy(update={"own_domains": self._own.facts()})
        table = result_table(results)
        write_atomic(self._folders.state / RESULTS_FILE, results_json(results))
        moment = self._now()
        with self._ledger.begin() as connection:
            scores.record_evaluations(connection, moment)
            queries.record_results(connection, table, moment)
            queries.set_phase(connection, "finished", f"results are in {RESULTS_FILE}", moment)
        self._log.info("finished\n%s", render_results(results))

    def _set_round(self, plan: Plan | None, accepted: AcceptedRows) -> None:
        """Write down which round the experts are in, when that changed."""
        number = 1 if plan is None else plan.current_round(accepted.keys())
        if number != self._round:
            self._round = number
            with self._ledger.begin() as connection:
                queries.set_round(connection, number, now=self._now())

    def _set_phase(self, phase: Phase, reason: str) -> None:
        """Say it in the ledger and the log, once."""
        said = (phase, reason[:MAX_REASON])
        if said == self._said:
            return
        self._said = said
        with self._ledger.begin() as connection:
            queries.set_phase(connection, *said, self._now())
        self._log.info("%s: %s", phase, reason)
