"""Can others reach this worker? The api tries, from where it stands."""

from fastapi import APIRouter, Request

from coordinator.api.reachability import Dialler, dialable, nothing_dialled
from coordinator.api.routes.context import Call, Context, Worker
from coordinator.ledger import queries
from protocol.messages import ReachabilityAnswer, ReachabilityRequest

router = APIRouter(prefix="/v1/workers", tags=["workers"])


@router.post("/reachability")
async def reachability(
    request: Request, context: Context, worker: Worker, asked: ReachabilityRequest
) -> ReachabilityAnswer:
    """Dial the ports of `maddrs`, four at most, at the address that this request comes from.

    Behind a proxy that address is what X-Forwarded-For says, if the proxy's own address is trusted:
    loopback, or what the variable FORWARDED_ALLOW_IPS of `serve` names.
    """
    dialler = request.app.state.dialler
    assert isinstance(dialler, Dialler), "create_app makes it"

    def write(call: Call) -> tuple[str, tuple[str, ...]]:
        return call.worker.worker, queries.get_run(call.connection).maddrs

    asking, own = await worker.write(write)
    dialler.admit(asking, now=context.now())
    host = request.client.host if request.client else None
    observed, why = dialable(host, own=own)
    if observed is None:
        return nothing_dialled(host, asked.maddrs, why)
    return await dialler.dial_back(observed, asked.maddrs)
