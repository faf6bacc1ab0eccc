"""Own data: the run's terms, domains whose text stays with a worker, and what it says of them."""

from typing import Annotated

from fastapi import APIRouter, Path

from coordinator.api.errors import ApiError
from coordinator.api.routes.context import Call, Context, Worker
from coordinator.ledger import queries
from coordinator.lifecycle import Refused
from protocol.errors import ErrorCode
from protocol.ids import DomainId
from protocol.owndata import DomainOffer, OwnDataTerms, OwnDomainView, SelfReport

router = APIRouter(prefix="/v1/own-data", tags=["own data"])


@router.get("")
async def terms(context: Context) -> OwnDataTerms:
    """What the run does with text that stays on a worker's machine. Needs no token."""
    found = await context.read(queries.own_data_terms)
    if found is None:
        run = await context.read(queries.get_run)
        if run.phase == "preparing":
            wait = context.settings.heartbeat_seconds
            raise ApiError(
                ErrorCode.NOT_READY,
                "own data: the run has not begun yet",
                retry_after_seconds=wait,
            )
        raise ApiError(ErrorCode.NOT_FOUND, "own data: this run takes none")
    return found


@router.get("/domains")
async def domains(context: Context) -> list[OwnDomainView]:
    """Every own domain, its worker's word on it, and what became of its expert."""
    return await context.read(
        lambda connection: list(queries.own_domain_views(connection, now=context.now()))
    )


@router.post("/domains")
async def offer(worker: Worker, request: DomainOffer) -> OwnDomainView:
    """Have text of a domain, which stays where it is. Repeating it changes nothing."""

    def write(call: Call) -> OwnDomainView | Refused:
        refused = queries.offer_domain(
            call.connection, request, worker=call.worker.worker, now=call.now
        )
        return _shown(call, request.domain) if refused is None else refused

    return await worker.write(write, urgent=False)


@router.post("/domains/{domain}/report")
async def report(
    worker: Worker, domain: Annotated[DomainId, Path()], request: SelfReport
) -> OwnDomainView:
    """Say how well the seed and the expert predict the own dev shard. Nobody verifies it."""

    def write(call: Call) -> OwnDomainView | Refused:
        refused = queries.report_own_domain(
            call.connection, domain, request, worker=call.worker.worker, now=call.now
        )
        return _shown(call, domain) if refused is None else refused

    return await worker.write(write, urgent=False)


def _shown(call: Call, domain: str) -> OwnDomainView:
    views = queries.own_domain_views(call.connection, now=call.now)
    return next(view for view in views if view.domain == domain)
