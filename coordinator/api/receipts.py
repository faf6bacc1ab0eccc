"""Receipts: what accepted work earned, signed when it is handed out. The same one every time."""

from coordinator.ledger.queries import ReceiptRow
from protocol.receipts import Receipt, SignedReceipt
from shared.identity import Identity


def sign_receipt(identity: Identity, row: ReceiptRow, *, run: str) -> SignedReceipt:
    """The receipt of one worker for one accepted assignment. Ed25519 signs alike every time."""
    receipt = Receipt(
        run=run,
        coordinator=identity.peer_id,
        entry=row.entry,
        entry_digest=row.entry_digest,
        worker=row.worker,
        assignment=row.assignment,
        spec=row.spec,
        manifest=row.manifest,
        num_steps=row.num_steps,
        credit=row.credit,
        accepted_at=row.accepted_at,
    )
    return SignedReceipt(receipt=receipt, signature=identity.sign(receipt.signed_bytes()))
