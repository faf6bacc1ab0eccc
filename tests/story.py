"""One spec, two workers and what becomes of them, told through the ledger's own queries."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from coordinator.ledger import Ledger, queries
from coordinator.ledger.workers import Registration
from coordinator.lifecycle import Assignment, Holder
from coordinator.scoring.verification import Accepted, Decision
from protocol.messages import AssignmentHeartbeat, Submission

ANNA, BERT = "12D3KooW" + "A" * 44, "12D3KooW" + "B" * 44
HEARTBEAT = 10.0


class Story:
    """What happens to one spec, told in the third person; the clock goes on with every call."""

    def __init__(self, ledger: Ledger, make: Any) -> None:
        self.ledger, self.make, self.now = ledger, make, 100.0
        self.spec = make.spec()
        with ledger.begin() as connection:
            queries.create_run(connection, run="r", coordinator="c", now=1.0)
            for worker in (ANNA, BERT):
                registration = Registration(
                    worker=worker,
                    name="",
                    software_version="0",
                    capability=make.capability(),
                    maddrs=(),
                    token_digest=worker,
                    token_expires_at=1e9,
                    certificate_expires_at=1e9,
                    allowed_at=0.0,
                )
                queries.register_worker(connection, registration, 1.0)
            shard = make.shard("python", "train")
            queries.add_shard(connection, shard, now=1.0)
            self.original = queries.add_assignment(
                connection, self.spec, shard=shard.blob, schemes=("A",), now=1.0
            )

    def write(self, work: Callable[[Connection, float], Any]) -> Any:
        self.now += 1.0
        with self.ledger.begin() as connection:
            return work(connection, self.now)

    def row(self, assignment: str) -> queries.AssignmentRow:
        with self.ledger.read() as connection:
            return queries.get_assignment(connection, assignment)

    def start(self, worker: str, assignment: str) -> Assignment:
        def work(connection: Connection, now: float) -> Any:
            terms = queries.OfferTerms(
                assignment=assignment, worker=worker, free_memory_bytes=1, reason=""
            )
            offered = queries.offer_assignment(
                connection, terms, now=now, heartbeat_seconds=HEARTBEAT
            )
            assert isinstance(offered, queries.Offered)
            holder = Holder(worker=worker, fencing=offered.standing.fencing)
            return queries.acknowledge_lease(
                connection, assignment, holder, now=now, heartbeat_seconds=HEARTBEAT
            )

        held = self.write(work)
        assert isinstance(held, Assignment)
        return held

    def back_up(self) -> str:
        row = self.row(self.original)
        return self.write(lambda connection, now: queries.add_backup(connection, row, now=now))

    def beat(
        self,
        held: Assignment,
        step: int,
        *,
        checkpoint: bool = False,
        first_step: int | None = None,
        tokens_per_second: float = 1.0,
    ) -> Any:
        beat = AssignmentHeartbeat(
            fencing=held.fencing,
            step=step,
            loss=None,
            tokens_per_second=tokens_per_second,
            checkpoint=self.make.blob(f"{held.worker} {step}") if checkpoint else None,
            checkpoint_step=step if checkpoint else 0,
            first_step=first_step,
        )
        return self.write(
            lambda connection, now: queries.renew_lease(
                connection,
                held.assignment,
                beat,
                worker=held.worker or "",
                flops_per_second=1e9,
                now=now,
                heartbeat_seconds=HEARTBEAT,
            )
        )

    def collect(self, worker: str, step: int | None = None) -> None:
        def work(connection: Connection, now: float) -> Any:
            for row in queries.announced_checkpoints(connection):
                manifest = self.make.manifest(self.spec, worker, step=step)
                queries.mark_durable(connection, row.checkpoint_id, manifest, now)

        self.write(work)

    def submit(self, held: Assignment, *, first_step: int | None = None) -> Any:
        submission = Submission(
            request_id="0" * 32,
            fencing=held.fencing,
            manifest=self.make.blob(f"{held.worker} expert"),
            tokens_per_second=1.0,
            train_seconds=1.0,
            first_step=first_step,
        )
        return self.write(
            lambda connection, now: queries.submit_expert(
                connection,
                held.assignment,
                submission,
                worker=held.worker or "",
                now=now,
                heartbeat_seconds=HEARTBEAT,
            )
        )

    def hand_in(
        self,
        held: Assignment,
        decision: Decision | None = None,
        *,
        first_step: int | None = None,
    ) -> None:
        assert isinstance(self.submit(held, first_step=first_step), Assignment)
        self.collect(held.worker or "")
        self.write(
            lambda connection, now: queries.record_verification(
                connection, held.assignment, held.fencing, decision or Accepted(), "", now
            )
        )

    def earned(self) -> dict[str, list[queries.ReceiptRow]]:
        with self.ledger.read() as connection:
            return {worker: queries.receipts_of(connection, worker) for worker in (ANNA, BERT)}

    def free(self, worker: str) -> bool:
        with self.ledger.read() as connection:
            return queries.live_lease_of(connection, worker) is None
