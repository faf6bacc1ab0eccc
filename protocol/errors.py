"""Error codes, and the one body that every refusal of the REST interface carries."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from protocol.values import Amount, Value


class ErrorCode(StrEnum):
    """Why a request was refused. The HTTP status follows from `HTTP_STATUS`."""

    BAD_REQUEST = "bad_request"
    BODY_TOO_LARGE = "body_too_large"
    NOT_FOUND = "not_found"
    UNKNOWN_TOKEN = "unknown_token"
    EXPIRED_TOKEN = "expired_token"
    UNKNOWN_NONCE = "unknown_nonce"
    BAD_SIGNATURE = "bad_signature"
    WRONG_RUN = "wrong_run"
    INVITE_REQUIRED = "invite_required"
    BANNED = "banned"
    PROTOCOL_VERSION = "protocol_version"
    UNKNOWN_ASSIGNMENT = "unknown_assignment"
    LEASE_LOST = "lease_lost"
    WRONG_STATE = "wrong_state"
    REQUEST_REUSED = "request_reused"
    FORBIDDEN = "forbidden"
    UNKNOWN_BLOB = "unknown_blob"
    UNKNOWN_WORKER = "unknown_worker"
    RATE_LIMITED = "rate_limited"
    BUSY = "busy"
    NOT_READY = "not_ready"
    INTERNAL = "internal"


HTTP_STATUS: dict[ErrorCode, int] = {
    ErrorCode.BAD_REQUEST: 422,
    ErrorCode.BODY_TOO_LARGE: 413,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.UNKNOWN_TOKEN: 401,
    ErrorCode.EXPIRED_TOKEN: 401,
    ErrorCode.UNKNOWN_NONCE: 401,
    ErrorCode.BAD_SIGNATURE: 401,
    ErrorCode.WRONG_RUN: 409,
    ErrorCode.INVITE_REQUIRED: 403,
    ErrorCode.BANNED: 403,
    ErrorCode.PROTOCOL_VERSION: 426,
    ErrorCode.UNKNOWN_ASSIGNMENT: 404,
    ErrorCode.LEASE_LOST: 409,
    ErrorCode.WRONG_STATE: 409,
    ErrorCode.REQUEST_REUSED: 409,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.UNKNOWN_BLOB: 404,
    ErrorCode.UNKNOWN_WORKER: 404,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.BUSY: 429,
    ErrorCode.NOT_READY: 503,
    ErrorCode.INTERNAL: 500,
}


class ErrorBody(Value):
    """The body of every refusal: a code for programs, words for people."""

    code: Annotated[ErrorCode, Field(strict=False)]
    message: Annotated[str, Field(max_length=2000)]
    retry_after_seconds: Amount | None = None
