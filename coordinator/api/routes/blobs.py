"""Where blobs are fetched from and uploaded to: signed URLs of the network role, never bytes."""

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import RedirectResponse
from sqlalchemy import Connection

from coordinator.api.errors import ApiError
from coordinator.api.routes.context import ApiContext, Context, Worker
from coordinator.ledger import queries
from coordinator.ledger.queries import WorkerRow
from coordinator.urls import Purpose, sign_url
from protocol.errors import ErrorCode
from protocol.ids import Digest
from protocol.messages import BlobUrl

router = APIRouter(prefix="/v1/blobs/{digest}", tags=["blobs"])

URL_SECONDS = 60

Id = Annotated[Digest, Path()]


@router.get("", response_class=RedirectResponse, status_code=307)
async def fetch(context: Context, worker: Worker, digest: Id) -> RedirectResponse:
    """To where the blob can be read, for a minute. Unknown and forbidden blobs look alike."""

    def read(connection: Connection, row: WorkerRow) -> str:
        if not queries.may_read(connection, digest, row.worker):
            raise ApiError(ErrorCode.UNKNOWN_BLOB, f"blob {digest}: none that you may read")
        return _url(connection, context, row.worker, digest=digest, purpose="get")

    return RedirectResponse(await worker.read(read), status_code=307)


@router.get("/upload")
async def upload(context: Context, worker: Worker, digest: Id) -> BlobUrl:
    """Where to upload a blob that the coordinator wants from this worker."""

    def read(connection: Connection, row: WorkerRow) -> str:
        if queries.may_upload(connection, digest, worker=row.worker) is None:
            raise ApiError(ErrorCode.UNKNOWN_BLOB, f"blob {digest}: not wanted from you")
        return _url(connection, context, row.worker, digest=digest, purpose="put")

    return BlobUrl(url=await worker.read(read), expires_in=URL_SECONDS)


def _url(
    connection: Connection, context: ApiContext, peer: str, *, digest: str, purpose: Purpose
) -> str:
    base = queries.get_run(connection).blob_url
    if base is None:
        raise ApiError(
            ErrorCode.NOT_READY,
            "the network role does not listen yet",
            retry_after_seconds=context.settings.heartbeat_seconds,
        )
    return sign_url(
        base,
        digest=digest,
        purpose=purpose,
        peer=peer,
        expires_at=int(context.now()) + URL_SECONDS,
        secret=context.settings.url_secret,
    )
