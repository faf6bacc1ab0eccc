"""Membership of a run: who may write to its DHT, until when, signed by the coordinator."""

from protocol.digests import canonical_bytes
from protocol.ids import PeerId, RunId, Signature
from protocol.values import Positive, Value

_PURPOSE = b"hdee-certificate-v1|"


class Certificate(Value):
    """`peer` belongs to `run` until `expires_at` (whole seconds since 1970)."""

    peer: PeerId
    run: RunId
    expires_at: Positive

    def signed_bytes(self) -> bytes:
        """What the coordinator's key signs; the purpose keeps it from meaning anything else."""
        return _PURPOSE + canonical_bytes(self)


class SignedCertificate(Value):
    """A certificate and the coordinator's signature over `Certificate.signed_bytes`."""

    certificate: Certificate
    signature: Signature
