"""What workers ask and are answered, by route. Durations are seconds; `fencing` is a lease's."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from protocol.assignments import State
from protocol.blobs import BlobRef
from protocol.capability import Capability, DeviceNumber
from protocol.certificates import SignedCertificate
from protocol.digests import canonical_bytes
from protocol.ids import (
    AssignmentId,
    Digest,
    Maddr,
    Nonce,
    PeerId,
    RequestId,
    RunId,
    Signature,
    WorkerId,
)
from protocol.manifests import CheckpointManifest
from protocol.receipts import SignedReceipt
from protocol.specs import ExpertSpec, ModelShape, StepShape
from protocol.values import Amount, Count, Items, Number, Positive, Value

REGISTER_PURPOSE: Final = "hdee-register-v1"
MAX_BODY_BYTES = 64 * 1024

_NO_NUL = r"^[^\x00]*$"
"""PostgreSQL keeps no text with this character."""

Version = Annotated[str, Field(max_length=40, pattern=_NO_NUL)]
Cached = Annotated[tuple[Digest, ...], Field(strict=False, max_length=64)]
Text = Annotated[str, Field(max_length=500, pattern=_NO_NUL)]
Label = Annotated[str, Field(max_length=64, pattern=_NO_NUL)]
Fencing = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""As large as a column of the ledger."""
Maddrs = Annotated[tuple[Maddr, ...], Field(strict=False, max_length=8)]


class RunInfo(Value):
    """GET /v1/run: what a newcomer must know before it trusts and joins. Needs no token.

    `on_offer` are the cheapest and the dearest step of the work that is not finished, for a worker
    to measure its speed with; empty: there is none, or the coordinator does not say.
    """

    run: RunId
    coordinator: PeerId
    protocol_version: Positive
    software_version: Version
    bootstrap: Maddrs
    server_time: Amount
    heartbeat_seconds: Amount
    on_offer: Annotated[tuple[StepShape, ...], Field(strict=False, max_length=2)] = ()


class Challenge(Value):
    """POST /v1/workers/challenge: a nonce to sign, good once and for `expires_in` seconds."""

    nonce: Nonce
    expires_in: Amount


class RegistrationStatement(Value):
    """What a worker's key signs to register. Not sent: both sides build it from what they know."""

    purpose: Literal["hdee-register-v1"]
    coordinator: PeerId
    run: RunId
    worker: WorkerId
    nonce: Nonce
    capability: Digest
    protocol_version: Positive

    def signed_bytes(self) -> bytes:
        """Canonical bytes of the statement."""
        return canonical_bytes(self)


class RegisterRequest(Value):
    """POST /v1/workers/register. `maddrs` empty: nobody can dial the worker."""

    worker: WorkerId
    nonce: Nonce
    capability: Capability
    protocol_version: Positive
    software_version: Version
    maddrs: Maddrs
    signature: Signature
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9 _.-]{0,40}$")] = ""
    invite: Annotated[str, Field(max_length=200)] | None = None


class RegisterAnswer(Value):
    """Good for `token_seconds`; each heartbeat prolongs it."""

    token: Annotated[str, Field(max_length=200)]
    token_seconds: Amount
    certificate: SignedCertificate
    bootstrap: Maddrs
    heartbeat_seconds: Amount


class WorkerHeartbeat(Value):
    """POST /v1/workers/heartbeat: alive, between assignments too. `maddrs` as in registration.

    `receipts_after` is the newest entry of which the worker holds a receipt; 0: it holds none.
    """

    capability: Capability
    maddrs: Maddrs
    receipts_after: Count = 0


class HeartbeatAnswer(Value):
    """What a worker should know after any heartbeat.

    `wanted` are blobs the coordinator could not fetch and asks to be uploaded; `durable` are
    manifests of this worker's whose files the coordinator has fetched and checked, all of them, so
    that the worker may delete its own copy: it holds them, or needs them no more; `receipts` are
    the next ones after those that the worker holds.
    """

    next_heartbeat_seconds: Amount
    wanted: Items[BlobRef] = ()
    durable: Items[Digest] = ()
    receipts: Items[SignedReceipt] = ()
    certificate: SignedCertificate | None = None


class ReachabilityRequest(Value):
    """POST /v1/workers/reachability: can a libp2p connection be opened to the ports of `maddrs`?

    The ports are tried at the address that the request comes from, whatever host a maddr names.
    """

    maddrs: Maddrs


Outcome = Literal["reachable", "refused", "timed_out", "no_route", "not_libp2p", "not_dialled"]


class Dialled(Value):
    """What became of one maddr, and the same in words. `not_libp2p`: something else answers."""

    maddr: Maddr
    outcome: Outcome
    detail: Text = ""


class ReachabilityAnswer(Value):
    """`observed` is the IP address that the request came from, empty if the api cannot tell."""

    observed: Annotated[str, Field(pattern=r"^[0-9A-Za-z:.%_-]{0,80}$")]
    dialled: Items[Dialled]


class LeaseRequest(Value):
    """POST /v1/assignments/lease. The same `request_id` gets the same answer.

    `cached` are digests of shards and weights that the worker holds and need not fetch.
    `device_number` is which of the worker's devices asks, of which `capability` tells: each holds a
    lease of its own.
    """

    request_id: RequestId
    capability: Capability
    cached: Cached = ()
    device_number: DeviceNumber = 0


class Parent(Value):
    """The accepted checkpoint that a spec's training starts from."""

    shape: ModelShape
    manifest: CheckpointManifest

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.manifest.kind != "expert":
            raise ValueError(f"manifest.kind {self.manifest.kind!r}: expected 'expert'")
        return self


class Offer(Value):
    """An assignment and all that it takes to start. Lapses unless acknowledged in `expires_in`.

    `resume` is the newest durable training checkpoint: training goes on from its step, on whatever
    worker wrote it. `checkpoint_seconds` is how often a durable checkpoint should be announced.
    """

    assignment: AssignmentId
    fencing: Annotated[Fencing, Field(ge=1)]
    expires_in: Amount
    spec: ExpertSpec
    shard: BlobRef
    parent: Parent | None
    resume: CheckpointManifest | None
    checkpoint_seconds: Amount
    reason: Text


class LeaseAnswer(Value):
    """An offer, or why there is none and when to ask again. `finished`: no more work will come.

    `busy`: the coordinator did not look for work at all, too many are asking at once.
    """

    offer: Offer | None
    reason: Text
    retry_after_seconds: Amount
    finished: bool = False
    busy: bool = False


class Acknowledge(Value):
    """POST /v1/assignments/{id}/acknowledge: the worker starts."""

    fencing: Annotated[Fencing, Field(ge=1)]


class LeaseState(Value):
    """Answer to acknowledge, release and submit."""

    assignment: AssignmentId
    state: State
    lease_seconds: Amount
    next_heartbeat_seconds: Amount


class AssignmentHeartbeat(Value):
    """POST /v1/assignments/{id}/heartbeat: the trainer's own progress, which renews the lease.

    `first_step` is the step that training under this lease went on from, which may be later than
    that of the checkpoint that came with the offer; None: it has not begun, or is not told.
    `checkpoint` refers to the manifest of the newest training checkpoint that the worker announces.
    `peak_memory_bytes` is the most memory that the trainer has had, of the kind that its device
    computes in.
    """

    fencing: Annotated[Fencing, Field(ge=1)]
    step: Count
    loss: Number | None
    tokens_per_second: Amount
    checkpoint: BlobRef | None
    checkpoint_step: Count = 0
    receipts_after: Count = 0
    first_step: Count | None = None
    peak_memory_bytes: Count | None = None


class AssignmentHeartbeatAnswer(HeartbeatAnswer):
    """The lease's new life, and the newest checkpoint of the assignment that is durable."""

    lease_seconds: Amount
    durable_step: Count | None


class Submission(Value):
    """POST /v1/assignments/{id}/submit: the manifest of the finished expert.

    `first_step` is as in heartbeats, of which there may have been none.

    `peak_memory_bytes` is the most memory that training it took here.
    """

    request_id: RequestId
    fencing: Annotated[Fencing, Field(ge=1)]
    manifest: BlobRef
    tokens_per_second: Amount
    train_seconds: Amount
    first_step: Count | None = None
    peak_memory_bytes: Count | None = None


ReleaseReason = Literal[
    "stopped", "out_of_memory", "trainer_failed", "diverged", "disk_full", "unavailable"
]
"""diverged: the loss or its gradient was no longer finite, which may be the recipe's fault."""


class Release(Value):
    """POST /v1/assignments/{id}/release: the lease goes back, with the newest checkpoint if any.

    `peak_memory_bytes` is what the trainer had when it ran out of memory, None in all other cases.
    """

    fencing: Annotated[Fencing, Field(ge=1)]
    reason: ReleaseReason
    detail: Text
    checkpoint: BlobRef | None
    checkpoint_step: Count = 0
    peak_memory_bytes: Count | None = None


class BlobUrl(Value):
    """GET /v1/blobs/{digest}/upload: where to PUT pieces, for `expires_in` seconds."""

    url: Annotated[str, Field(max_length=2000)]
    expires_in: Amount


class MissingPieces(Value):
    """What the coordinator still lacks of a blob that is being uploaded; empty: it is complete."""

    missing: Annotated[tuple[Count, ...], Field(strict=False, max_length=65_536)]
