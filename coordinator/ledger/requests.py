"""Answers to requests that may be repeated, by worker and request id."""

from sqlalchemy import Connection, bindparam, delete, select

from coordinator.ledger.prepared import Prepared, insert_into
from coordinator.ledger.tables import requests
from coordinator.lifecycle import Refused
from protocol.errors import ErrorCode

KEEP_SECONDS = 3600.0
"""How long an answer is remembered."""

_FIND = Prepared(
    select(requests).where(
        requests.c.worker == bindparam("worker"),
        requests.c.request_id == bindparam("request_id"),
    )
)
_KEEP = insert_into(requests, ("worker", "request_id", "body_digest", "answer", "at"))


def find_answer(
    connection: Connection, worker: str, request_id: str, body_digest: str
) -> str | Refused | None:
    """The JSON of the answer given before. Refused if the id was used for another body."""
    row = _FIND.one(connection, worker=worker, request_id=request_id)
    if row is None:
        return None
    if row.body_digest != body_digest:
        return Refused(
            ErrorCode.REQUEST_REUSED,
            f"request_id {request_id}: was used for another body, expected a new id",
        )
    return str(row.answer)


def keep_answer(
    connection: Connection,
    worker: str,
    request_id: str,
    *,
    body_digest: str,
    answer: str,
    now: float,
) -> None:
    """Remember an answer for KEEP_SECONDS."""
    _KEEP.run(
        connection,
        worker=worker,
        request_id=request_id,
        body_digest=body_digest,
        answer=answer,
        at=now,
    )


def forget_answers(connection: Connection, now: float) -> None:
    """Forget old answers: a request repeated after so long is a new one."""
    connection.execute(delete(requests).where(requests.c.at <= now - KEEP_SECONDS))
