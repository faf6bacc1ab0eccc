"""What a worker can show for accepted work, whatever becomes of the coordinator's ledger."""

from protocol.digests import canonical_bytes
from protocol.ids import AssignmentId, Digest, PeerId, RunId, Signature, WorkerId
from protocol.values import Amount, Positive, Value

_PURPOSE = b"hdee-receipt-v1|"


class Receipt(Value):
    """`worker` did `num_steps` of an accepted assignment, which earned `credit` training FLOPs.

    `entry` is the number of the ledger's entry that accepted it and `entry_digest` that entry's
    digest in the hash chain: a ledger that lacks it was cut or changed.
    """

    run: RunId
    coordinator: PeerId
    entry: Positive
    entry_digest: Digest
    worker: WorkerId
    assignment: AssignmentId
    spec: Digest
    manifest: Digest
    num_steps: Positive
    credit: Amount
    accepted_at: Amount

    def signed_bytes(self) -> bytes:
        """What the coordinator's key signs; the purpose keeps it from meaning anything else."""
        return _PURPOSE + canonical_bytes(self)


class SignedReceipt(Value):
    """A receipt and the coordinator's signature over `Receipt.signed_bytes`."""

    receipt: Receipt
    signature: Signature
