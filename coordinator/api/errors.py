"""Every refusal of the REST interface as an `ErrorBody` with the status of its code."""

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from coordinator.ledger.errors import LedgerBusy, LedgerUnavailable
from coordinator.lifecycle import Refused
from protocol.errors import HTTP_STATUS, ErrorBody, ErrorCode
from protocol.messages import MAX_BODY_BYTES

log = logging.getLogger(__name__)

_MAX_SHOWN = 80
LEDGER_RETRY_SECONDS = 5.0
BUSY_RETRY_SECONDS = 2.0

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Message, Receive, Send], Awaitable[None]]


class ApiError(Exception):
    """A request is refused; the client sees the code and the message."""

    def __init__(
        self, code: ErrorCode, message: str, *, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.body = ErrorBody(
            code=code, message=message[:2000], retry_after_seconds=retry_after_seconds
        )

    @classmethod
    def of(cls, refused: Refused) -> "ApiError":
        """The error that tells a client of a refused event."""
        return cls(refused.code, refused.message)


def install_error_handlers(app: FastAPI) -> None:
    """Map whatever a handler raises, ours or the framework's, to an `ErrorBody`."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(LedgerUnavailable, _ledger_away)
    app.add_exception_handler(LedgerBusy, _ledger_busy)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


class BodyLimit:
    """ASGI middleware that reads at most MAX_BODY_BYTES of a request's body and refuses more."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await read_body(receive)
        if body is None:
            await too_large()(scope, receive, send)
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)


def too_large() -> Response:
    """The answer to a body that `read_body` gave up on."""
    words = f"body: expected at most {MAX_BODY_BYTES} bytes"
    return respond(ApiError(ErrorCode.BODY_TOO_LARGE, words).body)


async def read_body(receive: Receive) -> bytes | None:
    """A request's whole body; None as soon as it is longer than MAX_BODY_BYTES."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def respond(body: ErrorBody) -> Response:
    """The response that carries a refusal."""
    headers = {}
    if body.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, round(body.retry_after_seconds)))
    return Response(
        body.model_dump_json(),
        status_code=HTTP_STATUS[body.code],
        media_type="application/json",
        headers=headers,
    )


async def _api_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return respond(error.body)


async def _ledger_away(_request: Request, error: Exception) -> Response:
    log.error("the ledger did not answer: %s", error)
    words = "the ledger does not answer now, nothing was changed; try again"
    return respond(
        ApiError(ErrorCode.NOT_READY, words, retry_after_seconds=LEDGER_RETRY_SECONDS).body
    )


async def _ledger_busy(_request: Request, error: Exception) -> Response:
    log.warning("a request was put off: %s", error)
    words = "too many read or write the ledger at once, nothing was changed; try again"
    return respond(ApiError(ErrorCode.BUSY, words, retry_after_seconds=BUSY_RETRY_SECONDS).body)


async def _invalid(_request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    value = repr(first.get("input"))[:_MAX_SHOWN]
    return respond(ApiError(ErrorCode.BAD_REQUEST, f"{field}: {value}: {first['msg']}").body)


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
        words = f"{request.method} {request.url.path[:_MAX_SHOWN]}: there is no such route"
        return respond(ApiError(ErrorCode.NOT_FOUND, words).body)
    return respond(ApiError(ErrorCode.BAD_REQUEST, str(error.detail)).body)


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return respond(ApiError(ErrorCode.INTERNAL, "the coordinator failed; try again").body)
