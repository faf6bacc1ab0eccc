"""What the handlers share: the api's state, and one worker's call inside its transaction."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Connection

from coordinator.api import auth
from coordinator.api.errors import ApiError
from coordinator.api.fleet import Fleet
from coordinator.api.receipts import sign_receipt
from coordinator.api.settings import ApiSettings
from coordinator.ledger import Ledger, queries
from coordinator.ledger.queries import Sighting, WorkerRow
from coordinator.ledger.writer import GroupWriter
from coordinator.lifecycle import Refused
from protocol.blobs import BlobRef
from protocol.capability import Capability
from protocol.certificates import SignedCertificate
from protocol.digests import digest_value
from protocol.messages import LeaseAnswer, LeaseRequest, LeaseState, Submission
from protocol.receipts import SignedReceipt
from protocol.specs import StepShape
from shared.identity import Identity

Answer = TypeVar("Answer")
Remembered = TypeVar("Remembered", LeaseAnswer, LeaseState)


@dataclass(frozen=True)
class Outlook:
    """When all work is expected to end, None: unknown; and what nobody here may do, in words.

    `on_offer` is as in RunInfo.
    """

    end: float | None
    deserted: str
    on_offer: tuple[StepShape, ...] = ()


class ApiContext:
    """The api's ledger, its writer, its key, its settings and its clock.

    `outlook` is what the scheduler's index said at the last tick: the index belongs to the writer.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        writer: GroupWriter,
        fleet: Fleet,
        identity: Identity,
        settings: ApiSettings,
        now: Callable[[], float],
    ) -> None:
        self.ledger = ledger
        self.writer = writer
        self.fleet = fleet
        self.outlook = Outlook(None, "")
        self.identity = identity
        self.settings = settings
        self.now = now
        self.started_at = now()
        self._listened_at = float("-inf")

    @contextmanager
    def listening(self, connection: Connection, now: float) -> Iterator[float]:
        """Forgive the time in which no api listened, before any lease is judged; gives that time.

        What is raised inside undoes the caller's writes, and so what was forgiven: then the next
        caller forgives it.
        """
        tolerance, before = self.settings.heartbeat_seconds, self._listened_at
        forgiven = 0.0
        if not 0 <= now - before <= tolerance:
            forgiven = queries.forgive_downtime(connection, now=now, tolerance_seconds=tolerance)
        self._listened_at = now
        try:
            yield forgiven
        except BaseException:
            self._listened_at = before
            raise

    def forget(self) -> None:
        """A commit failed: what was concluded from what it would have written is not so."""
        self.fleet.reset()
        self._listened_at = float("-inf")

    def look_around(self, connection: Connection, now: float) -> None:
        """Bring the index up to date with what heartbeats told, and note what it expects."""
        self.fleet.refresh(connection, now)
        fleet = self.fleet
        self.outlook = Outlook(fleet.expected_end(now), fleet.deserted(), fleet.on_offer())

    async def read(self, work: Callable[[Connection], Answer]) -> Answer:
        """Runs `work` in a read transaction, beside the event loop."""

        def read() -> Answer:
            with self.ledger.read() as connection:
                return work(connection)

        return await run_in_threadpool(read)


@dataclass(frozen=True)
class Call:
    """One worker's call, inside its transaction."""

    connection: Connection
    context: ApiContext
    worker: WorkerRow
    now: float

    def news(self, receipts_after: int) -> "News":
        """What every heartbeat's answer tells."""
        connection, worker, context = self.connection, self.worker.worker, self.context
        earned = queries.receipts_of(connection, worker, after=receipts_after)
        run = context.settings.run
        return News(
            wanted=queries.wanted_from(connection, worker),
            durable=queries.held_manifests(connection, worker),
            receipts=tuple(sign_receipt(context.identity, row, run=run) for row in earned),
            certificate=auth.renew_certificate(
                connection,
                self.worker,
                identity=context.identity,
                settings=context.settings,
                now=self.now,
            ),
        )

    def asking(self, request: LeaseRequest) -> WorkerRow:
        """The worker as it asks for work now, as the device that does."""
        return replace(
            queries.as_device(self.connection, self.worker, request.device_number),
            capability=request.capability,
            cached=frozenset(request.cached),
            asked_at=self.now,
        )

    def answered_before(
        self, request: LeaseRequest | Submission, kind: type[Remembered]
    ) -> Remembered | Refused | None:
        """The answer that this request got before, if its id was used."""
        found = queries.find_answer(
            self.connection, self.worker.worker, request.request_id, digest_value(request)
        )
        return kind.model_validate_json(found) if isinstance(found, str) else found

    def remember(
        self, request: LeaseRequest | Submission, answer: LeaseAnswer | LeaseState
    ) -> None:
        """Keep the answer for a repetition of the request."""
        queries.keep_answer(
            self.connection,
            self.worker.worker,
            request.request_id,
            body_digest=digest_value(request),
            answer=answer.model_dump_json(),
            now=self.now,
        )


@dataclass(frozen=True)
class News:
    """The part that the answers to both kinds of heartbeat have in common."""

    wanted: tuple[BlobRef, ...]
    durable: tuple[str, ...]
    receipts: tuple[SignedReceipt, ...]
    certificate: SignedCertificate | None


# The framework runs a dependency that is no coroutine in another thread, which costs half a
# millisecond of CPU a call: most of what such a call costs at all.
async def _context(request: Request) -> ApiContext:
    context = request.app.state.context
    if not isinstance(context, ApiContext):
        raise TypeError(f"app.state.context: {type(context)}, expected ApiContext")
    return context


Context = Annotated[ApiContext, Depends(_context)]
Authorization = Annotated[str | None, Header()]


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a call tells of its worker; None: nothing new."""

    capability: Capability | None = None
    maddrs: tuple[str, ...] | None = None
    cached: tuple[str, ...] | None = None


class Caller:
    """Who calls: a bearer token of ours, whose owner the ledger knows."""

    def __init__(self, context: ApiContext, authorization: str | None) -> None:
        self._context = context
        self._token = auth.bearer_token(authorization, key=context.settings.token_key)

    async def write(
        self,
        work: Callable[[Call], Answer | Refused | ApiError],
        *,
        said: Said | None = None,
        urgent: bool = True,
    ) -> Answer:
        """Runs `work` in a write transaction as this worker, and answers when it is committed.

        The call is a sign of life and counts against the worker's rate limit. Raises ApiError.
        """
        context = self._context

        def write(connection: Connection) -> Answer | Refused | ApiError:
            now = context.now()
            with context.listening(connection, now):
                worker = auth.authenticate(connection, self._token, now=now)
                see(connection, context, worker, said or Said(), now)
                return work(Call(connection, context, worker, now))

        return unwrap(await context.writer.write(write, urgent=urgent))

    async def read(self, work: Callable[[Connection, WorkerRow], Answer]) -> Answer:
        """Runs `work` in a read transaction as this worker. Raises ApiError."""

        def read(connection: Connection) -> Answer:
            worker = auth.authenticate(connection, self._token, now=self._context.now())
            return work(connection, worker)

        return await self._context.read(read)


async def _caller(context: Context, authorization: Authorization = None) -> Caller:
    return Caller(context, authorization)


Worker = Annotated[Caller, Depends(_caller)]


def see(
    connection: Connection, context: ApiContext, worker: WorkerRow, said: Said, now: float
) -> None:
    """Note a sign of life. Raises ApiError, and notes nothing, when the worker calls too often."""
    settings = context.settings
    allowed_at = auth.count_call(
        connection,
        worker.worker,
        worker.allowed_at,
        heartbeat_seconds=settings.heartbeat_seconds,
        now=now,
    )
    sighting = Sighting(
        token_expires_at=now + settings.token_seconds,
        allowed_at=allowed_at,
        capability=said.capability,
        maddrs=said.maddrs,
        cached=said.cached,
    )
    queries.see_worker(connection, worker.worker, sighting, now)


def unwrap(outcome: Answer | Refused | ApiError) -> Answer:
    """The answer, or the refusal as the error that its client sees.

    Called after the transaction: what was noted before a refusal is committed.
    """
    if isinstance(outcome, Refused):
        raise ApiError.of(outcome)
    if isinstance(outcome, ApiError):
        raise outcome
    return outcome
