"""Own domains: what workers said of text that stays with them, and what became of its experts."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy import Row as Found

from coordinator import owndata
from coordinator.ledger.accepted import expert_folder
from coordinator.ledger.assignments import add_assignment, find_assignment
from coordinator.ledger.entries import added, changed, record
from coordinator.ledger.run import own_data_terms
from coordinator.ledger.tables import own_domains, workers
from coordinator.lifecycle import Refused
from protocol.assignments import AssignmentState
from protocol.errors import ErrorCode
from protocol.owndata import DomainOffer, OwnDomainView, OwnState, SelfReport
from protocol.specs import ExpertSpec


@dataclass(frozen=True)
class OwnDomainRow:
    """A domain whose text stays with `worker`. `assignment` is None until its expert is planned."""

    worker: str
    offer: DomainOffer
    assignment: str | None
    report: SelfReport | None
    banned: bool
    offered_at: float


def offer_domain(
    connection: Connection, offer: DomainOffer, *, worker: str, now: float
) -> Refused | None:
    """Note that a worker has text of a domain, or say why it may not. Harmless when repeated."""
    held = all_own_domains(connection)
    before = [owndata.Offered(row.worker, row.offer, counts=not row.banned) for row in held]
    refusal = owndata.refusal_of(offer, worker, own_data_terms(connection), before)
    if refusal is not None or any(row.offer.domain == offer.domain for row in held):
        return refusal
    row = added(
        own_domains,
        domain=offer.domain,
        worker=worker,
        body=offer.model_dump_json(),
        offered_at=now,
    )
    record(connection, "own-offer", row, facts={"worker": worker}, now=now)
    return None


def plan_own_expert(
    connection: Connection, row: OwnDomainRow, spec: ExpertSpec, *, now: float
) -> str:
    """Open the assignment that only the domain's worker may hold; returns its id."""
    assignment = add_assignment(
        connection, spec, shard=row.offer.train.blob, schemes=(), now=now, owner=row.worker
    )
    written = changed(own_domains, domain=row.offer.domain, assignment=assignment)
    record(connection, "plan", written, now=now)
    return assignment


def report_own_domain(
    connection: Connection, domain: str, report: SelfReport, *, worker: str, now: float
) -> Refused | None:
    """Keep what a worker says of its own domain; the newest word counts."""
    row = _find(connection, domain)
    if row is None or row.worker != worker:
        return Refused(ErrorCode.NOT_FOUND, f"{domain}: you offered no such domain")
    if row.report != report:
        written = changed(own_domains, domain=domain, **report.model_dump())
        record(connection, "own-report", written, facts={"worker": worker}, now=now)
    return None


def all_own_domains(connection: Connection) -> tuple[OwnDomainRow, ...]:
    """Every own domain, by name."""
    return tuple(map(_row, connection.execute(_SELECT.order_by(own_domains.c.domain))))


def own_domain_views(connection: Connection, *, now: float) -> tuple[OwnDomainView, ...]:
    """Every own domain as anybody may see it, by name."""
    return tuple(_view(connection, row, now) for row in all_own_domains(connection))


def _view(connection: Connection, row: OwnDomainRow, now: float) -> OwnDomainView:
    held = None if row.assignment is None else find_assignment(connection, row.assignment)
    report, state = row.report, "waiting" if held is None else _STATES[held.state]
    return OwnDomainView(
        domain=row.offer.domain,
        worker=row.worker,
        state=state,
        reason="" if held is None else held.reason[:500],
        num_documents=row.offer.train.num_documents,
        num_train_tokens=row.offer.train.num_tokens,
        perplexity_before=None if report is None else report.perplexity_before,
        perplexity_after=None if report is None else report.perplexity_after,
        folder=expert_folder(held.spec) if held is not None and state == "accepted" else "",
        age_seconds=max(0.0, now - (row.offered_at if held is None else held.changed_at)),
    )


_STATES: dict[AssignmentState, OwnState] = {
    AssignmentState.OPEN: "open",
    AssignmentState.OFFERED: "open",
    AssignmentState.RUNNING: "running",
    AssignmentState.SUBMITTED: "submitted",
    AssignmentState.ACCEPTED: "accepted",
    AssignmentState.FAILED: "refused",
    AssignmentState.CANCELLED: "refused",
}

_SELECT = select(own_domains, workers.c.banned).join(
    workers, workers.c.worker == own_domains.c.worker
)


def _find(connection: Connection, domain: str) -> OwnDomainRow | None:
    row = connection.execute(_SELECT.where(own_domains.c.domain == domain)).one_or_none()
    return None if row is None else _row(row)


def _row(row: Found[Any]) -> OwnDomainRow:
    report = None
    if row.perplexity_before is not None:
        report = SelfReport(
            perplexity_before=row.perplexity_before, perplexity_after=row.perplexity_after
        )
    return OwnDomainRow(
        worker=row.worker,
        offer=DomainOffer.model_validate_json(row.body),
        assignment=row.assignment,
        report=report,
        banned=bool(row.banned),
        offered_at=row.offered_at,
    )
