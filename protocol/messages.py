"""One request and one answer for each REST route. Durations are seconds; `fencing` is a lease's."""

from typing import Annotated, Final, Literal

from pydantic import Field

from protocol.assignments import State
from protocol.blobs import BlobRef
from protocol.capability import Capability
from protocol.certificates import SignedCertificate
from protocol.digests import canonical_bytes
from protocol.ids import (
    AssignmentId,
    Digest,
    DomainId,
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
from protocol.specs import ExpertSpec, ModelShape
from protocol.values import Amount, Count, Items, Number, Positive, Value

REGISTER_PURPOSE: Final = "hdee-register-v1"
MAX_BODY_BYTES = 64 * 1024

Version = Annotated[str, Field(max_length=40)]
Cached = Annotated[tuple[Digest, ...], Field(strict=False, max_length=64)]
Text = Annotated[str, Field(max_length=500)]
Label = Annotated[str, Field(max_length=64)]
Maddrs = Annotated[tuple[Maddr, ...], Field(strict=False, max_length=8)]
WorkerState = Literal["idle", "working", "offline", "banned"]
Phase = Literal["preparing", "seeding", "planning", "training", "scoring", "finished", "stalled"]


class RunInfo(Value):
    """GET /v1/run: what a newcomer must know before it trusts and joins. Needs no token."""

    run: RunId
    coordinator: PeerId
    protocol_version: Positive
    software_version: Version
    bootstrap: Maddrs
    server_time: Amount
    heartbeat_seconds: Amount


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
    """POST /v1/workers/register. `maddrs` empty: the worker takes part over HTTP alone."""

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

    `wanted` are blobs the coordinator could not fetch and asks to be uploaded over HTTP; `durable`
    are manifests of this worker's that the coordinator holds, files included, so that the worker
    may delete its own copy; `receipts` are the next ones after those that the worker holds.
    """

    next_heartbeat_seconds: Amount
    wanted: Items[BlobRef] = ()
    durable: Items[Digest] = ()
    receipts: Items[SignedReceipt] = ()
    certificate: SignedCertificate | None = None


class LeaseRequest(Value):
    """POST /v1/assignments/lease. The same `request_id` gets the same answer.

    `cached` are digests of shards and weights that the worker holds and need not fetch.
    """

    request_id: RequestId
    capability: Capability
    cached: Cached = ()


class Parent(Value):
    """The accepted checkpoint that a spec's training starts from."""

    shape: ModelShape
    manifest: CheckpointManifest


class Offer(Value):
    """An assignment and all that it takes to start. Lapses unless acknowledged in `expires_in`.

    `resume` is the newest durable training checkpoint: training goes on from its step, on whatever
    worker wrote it. `checkpoint_seconds` is how often a durable checkpoint should be announced.
    """

    assignment: AssignmentId
    fencing: Positive
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

    fencing: Positive


class LeaseState(Value):
    """Answer to acknowledge, release and submit."""

    assignment: AssignmentId
    state: State
    lease_seconds: Amount
    next_heartbeat_seconds: Amount


class AssignmentHeartbeat(Value):
    """POST /v1/assignments/{id}/heartbeat: the trainer's own progress, which renews the lease.

    `checkpoint` refers to the manifest of the newest training checkpoint that the worker announces.
    """

    fencing: Positive
    step: Count
    loss: Number | None
    tokens_per_second: Amount
    checkpoint: BlobRef | None
    checkpoint_step: Count = 0
    receipts_after: Count = 0


class AssignmentHeartbeatAnswer(HeartbeatAnswer):
    """The lease's new life, and the newest checkpoint of the assignment that is durable."""

    lease_seconds: Amount
    durable_step: Count | None


class Submission(Value):
    """POST /v1/assignments/{id}/submit: the manifest of the finished expert."""

    request_id: RequestId
    fencing: Positive
    manifest: BlobRef
    tokens_per_second: Amount
    train_seconds: Amount


ReleaseReason = Literal["stopped", "out_of_memory", "trainer_failed", "disk_full", "unavailable"]


class Release(Value):
    """POST /v1/assignments/{id}/release: the lease goes back, with the newest checkpoint if any."""

    fencing: Positive
    reason: ReleaseReason
    detail: Text
    checkpoint: BlobRef | None
    checkpoint_step: Count = 0


class BlobUrl(Value):
    """GET /v1/blobs/{digest}/upload: where to PUT pieces, for `expires_in` seconds."""

    url: Annotated[str, Field(max_length=2000)]
    expires_in: Amount


class MissingPieces(Value):
    """What the coordinator still lacks of a blob that is being uploaded; empty: it is complete."""

    missing: Annotated[tuple[Count, ...], Field(strict=False, max_length=65_536)]


class WorkerView(Value):
    """One worker, as GET /v1/workers shows it. `credit` in training FLOPs of accepted work."""

    worker: WorkerId
    name: str
    state: WorkerState
    draining: bool
    device: str
    free_memory_bytes: Count
    flops_per_second: Amount
    assignment: AssignmentId | None
    accepted: Count
    credit: Amount
    age_seconds: Amount


class AssignmentView(Value):
    """One assignment, as GET /v1/assignments shows it."""

    assignment: AssignmentId
    spec: Digest
    backup_of: AssignmentId | None
    kind: Literal["seed", "expert"]
    domain: DomainId
    ffn_width: Positive
    num_steps: Positive
    state: State
    worker: WorkerId | None
    fencing: Count
    step: Count
    durable_step: Count | None
    loss: Number | None
    reason: str
    age_seconds: Amount


class DomainView(Value):
    """One domain, as GET /v1/domains shows it. `seed_perplexity` is on its dev shard."""

    domain: DomainId
    difficulty: Label | None
    seed_perplexity: Amount | None
    num_documents: Count
    num_train_tokens: Count
    train_shard: Digest
    dev_shard: Digest


class ExpertView(Value):
    """One accepted checkpoint, as GET /v1/experts shows it. `folder` is relative to the run's."""

    spec: Digest
    kind: Literal["seed", "expert"]
    domain: DomainId
    ffn_width: Positive
    num_steps: Positive
    worker: WorkerId
    manifest: Digest
    schemes: Items[Label]
    folder: str


class TableRow(Value):
    """One domain's test perplexity and bits per byte, by column.

    `best_single` names the expert in the column of that name, chosen on dev text. `tied` holds
    groups of columns that rest on the same expert of this domain: none of a group wins here.
    """

    domain: DomainId
    perplexity: dict[str, Number]
    bits_per_byte: dict[str, Number]
    best_single: Text = ""
    tied: Items[Items[Label]] = ()


class ResultTable(Value):
    """GET /v1/results: rows domains, columns models and ensembles."""

    columns: Items[Label]
    rows: Items[TableRow]


class PerplexityView(Value):
    """How well a checkpoint predicts a domain's dev text; test text is for the results alone."""

    checkpoint: Label
    domain: DomainId
    perplexity: Amount
    bits_per_byte: Amount
    age_seconds: Amount


class StatusView(Value):
    """GET /v1/status: the whole run at a glance. Needs no token.

    `perplexities` are the newest ones on dev text, newest first. `roles` maps a role to the age in
    seconds of its last sign of life.
    """

    run: RunId
    coordinator: PeerId
    phase: Phase
    phase_reason: Text
    phase_age_seconds: Amount
    paused: bool
    round: Count
    assignments: dict[str, int]
    workers: dict[str, int]
    experts_accepted: Count
    experts_planned: Count
    eta_seconds: Amount | None
    perplexities: Items[PerplexityView]
    results: ResultTable | None
    results_age_seconds: Amount | None
    software_version: Version
    protocol_version: Positive
    server_time: Amount
    uptime_seconds: Amount
    roles: dict[str, Amount]
