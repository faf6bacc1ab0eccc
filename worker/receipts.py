"""What a worker can show for its accepted work: receipts that the coordinator signed.

One file an entry, never deleted. The ledger's entries are a hash chain, so one look tells whether
it still holds everything of before: after each registration, and whenever the coordinator was
away, the worker asks again for the newest receipt that it has. If something else comes, the ledger
was restored from an older backup, or changed, and all receipts are asked for from the first.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from protocol.receipts import Receipt, SignedReceipt
from shared.files import write_atomic
from shared.identity import receipt_valid
from shared.logs import facts
from shared.words import flops_words

log = logging.getLogger(__name__)


class Receipts:
    """The receipts of one worker from one coordinator, in a folder; `say` tells the volunteer."""

    def __init__(
        self,
        folder: Path,
        *,
        coordinator: str,
        run: str,
        worker: str,
        say: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self._coordinator = coordinator
        self._run = run
        self._worker = worker
        self._say = say
        self._held: dict[int, list[SignedReceipt]] = {}
        for signed in self._read():
            self._held.setdefault(signed.receipt.entry, []).append(signed)
        self._after = 0
        self._in_doubt = False
        self._catches_up = False
        self.doubt()

    @property
    def after(self) -> int:
        """The entry after which receipts are missing here, for the next heartbeat."""
        return self._after

    def total(self) -> tuple[int, float]:
        """Assignments that were accepted, and what they earned in FLOPs: by the newest receipts."""
        return total_of(signed for held in self._held.values() for signed in held)

    def holds(self, assignment: str) -> bool:
        """Whether there is a receipt for this assignment."""
        held = (signed for same_entry in self._held.values() for signed in same_entry)
        return any(signed.receipt.assignment == assignment for signed in held)

    def doubt(self) -> None:
        """The ledger may be another than before: make sure of it with the next heartbeat."""
        if self._catches_up:
            return
        newest = self._newest()
        self._in_doubt = newest is not None
        self._after = 0 if newest is None else newest.receipt.entry - 1

    def take(self, received: Sequence[SignedReceipt], *, after: int) -> None:
        """Keeps what came for a heartbeat that asked for receipts `after` an entry.

        A receipt that is wrong is logged and left. Where the disk fails, the next heartbeat asks
        for the same ones again.
        """
        if after != self._after:
            return
        if self._in_doubt and not self._confirms(received):
            return
        self._catches_up &= bool(received)
        for signed in received:
            try:
                self._keep(signed)
            except OSError as error:
                log.warning("receipt of entry %d not stored: %s", signed.receipt.entry, error)
                return
            self._after = signed.receipt.entry

    def _confirms(self, received: Sequence[SignedReceipt]) -> bool:
        """Whether the ledger holds our newest receipt; if not, all are asked for anew."""
        self._in_doubt = False
        newest = self._newest()
        if newest is None or newest in received[:1]:
            return True
        self._say(
            f"warning: the coordinator's ledger does not hold entry {newest.receipt.entry}, of "
            "which this worker has a receipt: it was restored from an older backup, or changed. "
            f"All receipts are kept in {self.folder}"
        )
        log.warning("the ledger lacks %s", facts(entry=newest.receipt.entry))
        self._after, self._catches_up = 0, True
        return False

    def _keep(self, signed: SignedReceipt) -> None:
        receipt = signed.receipt
        same_entry = self._held.get(receipt.entry, [])
        if signed in same_entry:
            return
        if not self._is_valid(signed):
            log.warning("a wrong receipt, not stored: %s", signed.model_dump_json())
            return
        name = f"{receipt.entry}-{receipt.entry_digest[:12]}" if same_entry else receipt.entry
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / f"{name}.json", signed.model_dump_json(indent=2).encode())
        self._held.setdefault(receipt.entry, []).append(signed)
        if same_entry:
            self._say(
                f"warning: another receipt for entry {receipt.entry} came before: the "
                f"coordinator's ledger is not the same as then. Both are kept in {self.folder}"
            )
        self._say(describe_receipt(receipt))
        log.info(
            "receipt %s",
            facts(
                entry=receipt.entry,
                assignment=receipt.assignment,
                steps=receipt.num_steps,
                credit=receipt.credit,
                digest=receipt.entry_digest,
            ),
        )

    def _newest(self) -> SignedReceipt | None:
        """The one accepted last. A restored ledger counts its entries from a lower number again."""
        held = [signed for same_entry in self._held.values() for signed in same_entry]
        return max(held, key=lambda one: (one.receipt.accepted_at, one.receipt.entry), default=None)

    def _read(self) -> list[SignedReceipt]:
        found = []
        for path in sorted(self.folder.glob("[0-9]*.json")):
            try:
                signed = SignedReceipt.model_validate_json(path.read_bytes())
            except (OSError, ValidationError) as error:
                log.warning("receipt %s cannot be read: %s", path, error)
                continue
            if self._is_valid(signed):
                found.append(signed)
            else:
                log.warning("receipt %s is not one of this worker and run", path)
        return found

    def _is_valid(self, signed: SignedReceipt) -> bool:
        return receipt_valid(
            signed, coordinator=self._coordinator, run=self._run, worker=self._worker
        )


def total_of(receipts: Iterable[SignedReceipt]) -> tuple[int, float]:
    """Assignments and their credit in FLOPs.

    Where a ledger was restored, work that was accepted again counts once.
    """
    newest: dict[str, Receipt] = {}
    for receipt in sorted((one.receipt for one in receipts), key=lambda one: one.accepted_at):
        newest[receipt.assignment] = receipt
    return len(newest), sum(receipt.credit for receipt in newest.values())


def describe_receipt(receipt: Receipt) -> str:
    """`receipt: entry 1234, 300 steps of a0123…, 1.2e15 FLOPs credited`."""
    earned = f"{flops_words(receipt.credit)} credited"
    if receipt.credit == 0:
        earned = "without credit: it is on your own text, which nobody else can judge it by"
    return (
        f"receipt: entry {receipt.entry}, {receipt.num_steps} steps of {receipt.assignment}, "
        f"{earned}"
    )
