"""Workers with real Ed25519 keys, and the bytes of the requests that they send.

Keys, capabilities and the parts of a body that stay alike are made before the clock runs, so that
one core of the player is enough to keep one core of the server busy.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load.wire import request_bytes
from protocol import PROTOCOL_VERSION
from protocol.blobs import BlobRef
from protocol.capability import Capability
from protocol.digests import digest_bytes, digest_value
from protocol.messages import (
    REGISTER_PURPOSE,
    Acknowledge,
    AssignmentHeartbeat,
    LeaseRequest,
    RegisterRequest,
    RegistrationStatement,
    Release,
    Submission,
    WorkerHeartbeat,
)
from shared.identity import Identity
from shared.version import SOFTWARE_VERSION

CAPABILITY = Capability(
    device="cuda",
    device_name="load",
    num_threads=8,
    total_memory_bytes=24 * 10**9,
    free_memory_bytes=22 * 10**9,
    free_disk_bytes=200 * 10**9,
    flops_per_second=2e13,
    bfloat16=True,
)
CHALLENGE = request_bytes("POST", "/v1/workers/challenge")

_CAPABILITY_DIGEST = digest_value(CAPABILITY)
_BEAT = WorkerHeartbeat(capability=CAPABILITY, maddrs=()).model_dump_json().encode()


@dataclass(frozen=True)
class Held:
    """An offer that a worker was given."""

    assignment: str
    fencing: int
    num_steps: int


@dataclass
class Volunteer:
    """One worker: its key, its token and the heartbeat that goes with it."""

    identity: Identity
    token: str = ""
    heartbeat: bytes = b""
    leasing: bool = False
    num_submitted: int = field(default=0)

    @classmethod
    def create(cls) -> "Volunteer":
        """A worker with a new key, which lies in no file."""
        return cls(Identity(Path("nowhere"), secrets.token_bytes(32)))

    def register(self, *, coordinator: str, run: str, nonce: str) -> bytes:
        """The request that answers a challenge."""
        statement = RegistrationStatement(
            purpose=REGISTER_PURPOSE,
            coordinator=coordinator,
            run=run,
            worker=self.identity.peer_id,
            nonce=nonce,
            capability=_CAPABILITY_DIGEST,
            protocol_version=PROTOCOL_VERSION,
        )
        request = RegisterRequest(
            worker=self.identity.peer_id,
            nonce=nonce,
            capability=CAPABILITY,
            protocol_version=PROTOCOL_VERSION,
            software_version=SOFTWARE_VERSION,
            maddrs=(),
            signature=self.identity.sign(statement.signed_bytes()),
        )
        return request_bytes("POST", "/v1/workers/register", request.model_dump_json().encode())

    def joined(self, token: str) -> None:
        """Keeps the token that registration earned."""
        self.token = token
        self.heartbeat = request_bytes("POST", "/v1/workers/heartbeat", _BEAT, token=token)

    def lease(self) -> bytes:
        """A new request for work."""
        request = LeaseRequest(request_id=secrets.token_hex(16), capability=CAPABILITY)
        return self._post("lease", request.model_dump_json())

    def acknowledge(self, held: Held) -> bytes:
        """Takes an offer."""
        body = Acknowledge(fencing=held.fencing).model_dump_json()
        return self._post(f"{held.assignment}/acknowledge", body)

    def progress(self, held: Held, *, share: float) -> bytes:
        """The trainer got `share` of its steps done."""
        beat = AssignmentHeartbeat(
            fencing=held.fencing,
            step=int(share * held.num_steps),
            loss=3.0,
            tokens_per_second=5000.0,
            checkpoint=None,
        )
        return self._post(f"{held.assignment}/heartbeat", beat.model_dump_json())

    def submit(self, held: Held) -> bytes:
        """Hands in the manifest of an expert that nobody will look at."""
        named = f"{held.assignment} {held.fencing} {self.identity.peer_id}"
        submission = Submission(
            request_id=secrets.token_hex(16),
            fencing=held.fencing,
            manifest=BlobRef(digest=digest_bytes(named.encode()), size=800),
            tokens_per_second=5000.0,
            train_seconds=4.0,
        )
        return self._post(f"{held.assignment}/submit", submission.model_dump_json())

    def release(self, held: Held) -> bytes:
        """Gives the lease back."""
        release = Release(fencing=held.fencing, reason="stopped", detail="", checkpoint=None)
        return self._post(f"{held.assignment}/release", release.model_dump_json())

    def _post(self, path: str, body: str) -> bytes:
        return request_bytes("POST", f"/v1/assignments/{path}", body.encode(), token=self.token)
