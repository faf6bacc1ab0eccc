"""What the network role's HTTP side answers when it does not give or take a blob."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from coordinator.ledger.errors import LedgerUnavailable
from protocol.errors import HTTP_STATUS, ErrorBody, ErrorCode
from shared.blobs import BadBlob, BlobMissing

LEDGER_RETRY_SECONDS = 2.0


class BlobRefused(Exception):
    """A request that is answered with a typed error."""

    def __init__(
        self, code: ErrorCode, message: str, *, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_seconds = retry_after_seconds


def install_refusals(app: FastAPI) -> None:
    """Map whatever a handler raises, ours or the framework's, to an `ErrorBody`."""

    @app.exception_handler(BlobRefused)
    def refused(_: Request, error: BlobRefused) -> Response:
        return _answer(error.code, error.message, retry_after_seconds=error.retry_after_seconds)

    @app.exception_handler(LedgerUnavailable)
    def ledger_away(_: Request, __: LedgerUnavailable) -> Response:
        words = "the ledger, which says who may read what, does not answer; ask again"
        return _answer(ErrorCode.BUSY, words, retry_after_seconds=LEDGER_RETRY_SECONDS)

    @app.exception_handler(BlobMissing)
    def blob_missing(_: Request, error: BlobMissing) -> Response:
        return _answer(ErrorCode.UNKNOWN_BLOB, f"blob {error.args[0]}: not here for you")

    @app.exception_handler(BadBlob)
    def bad_blob(_: Request, error: BadBlob) -> Response:
        return _answer(ErrorCode.BAD_REQUEST, str(error))

    @app.exception_handler(RequestValidationError)
    def bad_request(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _answer(ErrorCode.BAD_REQUEST, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(HTTPException)
    def unrouted(_: Request, error: HTTPException) -> Response:
        return _answer(ErrorCode.NOT_FOUND, str(error.detail))

    @app.exception_handler(Exception)
    def failed(_: Request, __: Exception) -> Response:
        return _answer(ErrorCode.INTERNAL, "the network role failed; its log says why")


def _answer(
    code: ErrorCode, message: str, *, retry_after_seconds: float | None = None
) -> JSONResponse:
    body = ErrorBody(code=code, message=message[:2000], retry_after_seconds=retry_after_seconds)
    return JSONResponse(body.model_dump(mode="json"), status_code=HTTP_STATUS[code])
