"""Who is asking: nonces, registration, tokens, certificates. Of a token only its digest is kept."""

import hmac
import secrets

from sqlalchemy import Connection

from coordinator.api.errors import ApiError
from coordinator.api.settings import ApiSettings
from coordinator.ledger import queries
from coordinator.ledger.queries import Registration, WorkerRow
from protocol import PROTOCOL_VERSION
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


def invite_token(identity: Identity) -> str:
    """What a volunteer shows where enrolment is by invite; derived from the coordinator's key."""
    return identity.derive_secret(b"hdee-invite-v1").hex()


def issue_challenge(connection: Connection, *, now: float) -> Challenge:
    """A nonce that registers one worker once."""
    nonce = secrets.token_hex(32)
    queries.add_nonce(connection, nonce, expires_at=now + NONCE_SECONDS, now=now)
    return Challenge(nonce=nonce, expires_in=NONCE_SECONDS)


def register(
    connection: Connection,
    request: RegisterRequest,
    *,
    identity: Identity,
    settings: ApiSettings,
    now: float,
) -> RegisterAnswer | ApiError:
    """Check that the worker holds its key and is welcome; give it a token and a certificate.

    The nonce is used up whatever comes of it, so a refusal is returned for the caller to commit.
    """
    fresh = queries.use_nonce(connection, request.nonce, now)
    refusal = _refuse_stranger(request, identity=identity, settings=settings, fresh=fresh)
    if refusal is not None:
        return refusal
    known = queries.find_worker(connection, request.worker)
    if known is not None and known.banned:
        return ApiError(ErrorCode.BANNED, f"worker {request.worker}: banned by the operator")
    token = secrets.token_hex(32)
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
        ),
        now,
    )
    return RegisterAnswer(
        token=token,
        token_seconds=settings.token_seconds,
        certificate=certificate,
        bootstrap=queries.get_run(connection).maddrs,
        heartbeat_seconds=settings.heartbeat_seconds,
    )


def authenticate(connection: Connection, authorization: str | None, *, now: float) -> WorkerRow:
    """The worker whose token the Authorization header carries. Raises ApiError."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise ApiError(ErrorCode.UNKNOWN_TOKEN, "Authorization: expected Bearer and a token")
    worker = queries.worker_of_token(connection, digest_bytes(token.encode()))
    if worker is None:
        raise ApiError(ErrorCode.UNKNOWN_TOKEN, "token: unknown or replaced; register again")
    if worker.token_expires_at <= now:
        raise ApiError(ErrorCode.EXPIRED_TOKEN, "token: has expired; register again")
    if worker.banned:
        raise ApiError(ErrorCode.BANNED, f"worker {worker.worker}: banned by the operator")
    return worker


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


def _refuse_stranger(
    request: RegisterRequest, *, identity: Identity, settings: ApiSettings, fresh: bool
) -> ApiError | None:
    if request.protocol_version != PROTOCOL_VERSION:
        return ApiError(
            ErrorCode.PROTOCOL_VERSION,
            f"protocol_version {request.protocol_version}: expected {PROTOCOL_VERSION}; "
            f"install hdee {SOFTWARE_VERSION} (you run {request.software_version})",
        )
    if not fresh:
        return ApiError(
            ErrorCode.UNKNOWN_NONCE, "nonce: unknown, used or expired; ask for a new challenge"
        )
    statement = RegistrationStatement(
        purpose="hdee-register-v1",
        coordinator=identity.peer_id,
        run=settings.run,
        worker=request.worker,
        nonce=request.nonce,
        capability=digest_value(request.capability),
        protocol_version=PROTOCOL_VERSION,
    )
    if not verify(request.worker, request.signature, statement.signed_bytes()):
        return ApiError(
            ErrorCode.BAD_SIGNATURE,
            f"signature: not by {request.worker} over run {settings.run!r} of coordinator "
            f"{identity.peer_id} and this request",
        )
    if settings.enrolment == "invite" and not hmac.compare_digest(
        (request.invite or "").encode(), invite_token(identity).encode()
    ):
        return ApiError(
            ErrorCode.INVITE_REQUIRED, "invite: missing or wrong; ask the operator for one"
        )
    return None


def _certify(
    worker: str, *, identity: Identity, settings: ApiSettings, now: float
) -> SignedCertificate:
    return sign_certificate(
        identity,
        peer=worker,
        run=settings.run,
        expires_at=int(now + settings.certificate_seconds),
    )
