"""Who is asking: nonces, registration, tokens, certificates. Of a token only its digest is kept."""

import hmac

from sqlalchemy import Connection

from coordinator.api.errors import ApiError
from coordinator.api.limits import BURST_CALLS, TooFast, admit, calls_left
from coordinator.api.settings import ApiSettings
from coordinator.api.tokens import is_token, new_nonce, new_token, nonce_expiry
from coordinator.ledger import queries
from coordinator.ledger.queries import Registration, WorkerRow
from protocol import versions
from protocol.certificates import SignedCertificate
from protocol.digests import digest_bytes, digest_value
from protocol.errors import ErrorCode
from protocol.messages import (
    Challenge,
    RegisterAnswer,
    RegisterRequest,
    RegistrationStatement,
)
from shared.identity import Identity, sign_certificate, verify
from shared.version import SOFTWARE_VERSION

NONCE_SECONDS = 60.0

MAX_ENTRANCES = 8
MAX_MEMBERS = 3
"""Addresses of bootstrap peers that a worker is told, and how many of them are other workers'."""

SEEN_BEATS = 3
"""A worker that missed so many heartbeats is not named."""


def invite_token(identity: Identity) -> str:
    """What a volunteer shows where enrolment is by invite; derived from the coordinator's key."""
    return identity.derive_secret(b"hdee-invite-v1").hex()


def issue_challenge(settings: ApiSettings, *, now: float) -> Challenge:
    """A nonce that registers one worker once. Nothing is written before it is used."""
    nonce = new_nonce(settings.token_key, expires_at=now + NONCE_SECONDS)
    return Challenge(nonce=nonce, expires_in=NONCE_SECONDS)


def check_request(
    request: RegisterRequest, *, identity: Identity, settings: ApiSettings, now: float
) -> float:
    """Check all of a registration that needs no ledger; until when its nonce holds.

    Raises ApiError.
    """
    problem = versions.problem_of(request.protocol_version, software=SOFTWARE_VERSION)
    if problem is not None:
        words = f"{problem} (you run {request.software_version})"
        raise ApiError(ErrorCode.PROTOCOL_VERSION, words)
    expires_at = nonce_expiry(request.nonce, settings.token_key)
    if expires_at is None or expires_at <= now:
        raise _unknown_nonce()
    statement = RegistrationStatement(
        purpose="hdee-register-v1",
        coordinator=identity.peer_id,
        run=settings.run,
        worker=request.worker,
        nonce=request.nonce,
        capability=digest_value(request.capability),
        protocol_version=request.protocol_version,
    )
    if not verify(request.worker, request.signature, statement.signed_bytes()):
        raise ApiError(
            ErrorCode.BAD_SIGNATURE,
            f"signature: not by {request.worker} over run {settings.run!r} of coordinator "
            f"{identity.peer_id} and this request",
        )
    if settings.enrolment == "invite" and not hmac.compare_digest(
        (request.invite or "").encode(), invite_token(identity).encode()
    ):
        raise ApiError(
            ErrorCode.INVITE_REQUIRED, "invite: missing or wrong; ask the operator for one"
        )
    return expires_at


def register(
    connection: Connection,
    request: RegisterRequest,
    *,
    nonce_expires_at: float,
    identity: Identity,
    settings: ApiSettings,
    now: float,
) -> RegisterAnswer | ApiError:
    """Give a worker whose request was checked a token and a certificate; its nonce is used up.

    It counts as one of the worker's calls. Raises ApiError, so that nothing is written at all,
    when the worker calls too often.
    """
    if not queries.use_nonce(connection, request.nonce, expires_at=nonce_expires_at):
        return _unknown_nonce()
    known = queries.find_worker(connection, request.worker)
    if known is not None and known.banned:
        return _banned(request.worker)
    allowed_at = count_call(
        connection,
        request.worker,
        0.0 if known is None else known.allowed_at,
        heartbeat_seconds=settings.heartbeat_seconds,
        now=now,
    )
    token = new_token(settings.token_key)
    certificate = _certify(request.worker, identity=identity, settings=settings, now=now)
    queries.register_worker(
        connection,
        Registration(
            worker=request.worker,
            name=request.name,
            software_version=request.software_version,
            capability=request.capability,
            maddrs=request.maddrs,
            token_digest=digest_bytes(token.encode()),
            token_expires_at=now + settings.token_seconds,
            certificate_expires_at=certificate.certificate.expires_at,
            allowed_at=allowed_at,
        ),
        now,
    )
    return RegisterAnswer(
        token=token,
        token_seconds=settings.token_seconds,
        certificate=certificate,
        bootstrap=bootstrap_peers(connection, settings=settings, now=now),
        heartbeat_seconds=settings.heartbeat_seconds,
    )


def bootstrap_peers(
    connection: Connection, *, settings: ApiSettings, now: float
) -> tuple[str, ...]:
    """Whom a member may join: the network role's peer, and a few members that can be dialled.

    So the swarm still has an entrance when the network role has none.
    """
    since = now - SEEN_BEATS * settings.heartbeat_seconds
    members = queries.dialled_workers(connection, since=since, limit=MAX_MEMBERS)
    return (*queries.get_run(connection).maddrs[: MAX_ENTRANCES - MAX_MEMBERS], *members)


def bearer_token(authorization: str | None, *, key: bytes) -> str:
    """The token of an Authorization header, if this run's api made it. Raises ApiError."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise ApiError(ErrorCode.UNKNOWN_TOKEN, "Authorization: expected Bearer and a token")
    if not is_token(token, key):
        raise ApiError(ErrorCode.UNKNOWN_TOKEN, "token: not one of this run; register again")
    return token


def authenticate(connection: Connection, token: str, *, now: float) -> WorkerRow:
    """The worker whose token this is. Raises ApiError; UNKNOWN_TOKEN means: register again."""
    worker = queries.worker_of_token(connection, digest_bytes(token.encode()))
    if worker is None:
        raise ApiError(ErrorCode.UNKNOWN_TOKEN, "token: unknown or replaced; register again")
    if worker.token_expires_at <= now:
        raise ApiError(ErrorCode.EXPIRED_TOKEN, "token: has expired; register again")
    if worker.banned:
        raise _banned(worker.worker)
    return worker


def count_call(
    connection: Connection, worker: str, allowed_at: float, *, heartbeat_seconds: float, now: float
) -> float:
    """The worker's `allowed_at` after one more call. Raises ApiError RATE_LIMITED."""
    num_leases = 1
    if calls_left(allowed_at, now=now, heartbeat_seconds=heartbeat_seconds) < BURST_CALLS / 2:
        # Of those that keep well below the pace of one lease it does not matter.
        num_leases = len(queries.live_leases_of(connection, worker))
    after = admit(allowed_at, now=now, heartbeat_seconds=heartbeat_seconds, num_leases=num_leases)
    if isinstance(after, TooFast):
        wait = after.retry_after_seconds
        raise ApiError(
            ErrorCode.RATE_LIMITED,
            f"worker {worker}: too many calls, the next is answered in {wait:.1f} s",
            retry_after_seconds=wait,
        )
    return after


def renew_certificate(
    connection: Connection,
    worker: WorkerRow,
    *,
    identity: Identity,
    settings: ApiSettings,
    now: float,
) -> SignedCertificate | None:
    """A new certificate when less than half of the old one's life is left."""
    if worker.certificate_expires_at - now > settings.certificate_seconds / 2:
        return None
    signed = _certify(worker.worker, identity=identity, settings=settings, now=now)
    queries.set_certificate(connection, worker.worker, signed.certificate.expires_at)
    return signed


def _unknown_nonce() -> ApiError:
    return ApiError(
        ErrorCode.UNKNOWN_NONCE, "nonce: unknown, used or expired; ask for a new challenge"
    )


def _banned(worker: str) -> ApiError:
    return ApiError(ErrorCode.BANNED, f"worker {worker}: banned by the operator")


def _certify(
    worker: str, *, identity: Identity, settings: ApiSettings, now: float
) -> SignedCertificate:
    return sign_certificate(
        identity,
        peer=worker,
        run=settings.run,
        expires_at=int(now + settings.certificate_seconds),
    )
