"""Receipts are checked, kept for ever, and tell when the ledger is not the one of before."""

import json
import logging
from pathlib import Path

import pytest

from protocol.receipts import Receipt, SignedReceipt
from shared.identity import Identity
from worker.receipts import Receipts, describe_receipt

RUN = "demo"


class Desk:
    """A coordinator that signs, and a worker's folder of receipts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.coordinator = Identity.create(root / "coordinator.key")
        self.worker = Identity.create(root / "worker.key").peer_id
        self.said: list[str] = []
        self.receipts = self.open()

    def open(self) -> Receipts:
        """As a start of the worker does."""
        self.said.clear()
        return Receipts(
            self.root / "receipts",
            coordinator=self.coordinator.peer_id,
            run=RUN,
            worker=self.worker,
            say=self.said.append,
        )

    def sign(self, entry: int, *, chain: str = "a", **changes: object) -> SignedReceipt:
        values: dict[str, object] = {
            "run": RUN,
            "coordinator": self.coordinator.peer_id,
            "entry": entry,
            "entry_digest": chain * 64,
            "worker": self.worker,
            "assignment": "a0123456789abcdef",
            "spec": "1" * 64,
            "manifest": "2" * 64,
            "num_steps": 300,
            "credit": 1.2e15,
            "accepted_at": float(entry),
        }
        receipt = Receipt.model_validate(values | changes)
        signature = self.coordinator.sign(receipt.signed_bytes())
        return SignedReceipt(receipt=receipt, signature=signature)

    def beat(self, *ledger: SignedReceipt, page: int = 16) -> int:
        """One heartbeat; returns after which entry it asked."""
        after = self.receipts.after
        found = [one for one in ledger if one.receipt.entry > after][:page]
        self.receipts.take(found, after=after)
        return after

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in (self.root / "receipts").glob("*"))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_receipt_is_kept_as_it_was_signed_and_told_in_one_line(desk: Desk) -> None:
    signed = desk.sign(1234)
    assert desk.beat(signed) == 0
    path = desk.root / "receipts" / "1234.json"
    assert SignedReceipt.model_validate_json(path.read_bytes()) == signed
    assert desk.said == [
        "receipt: entry 1234, 300 steps of a0123456789abcdef, 1.2e15 FLOPs credited"
    ]
    assert desk.beat(signed) == 1234
    assert len(desk.said) == 1


@pytest.mark.parametrize(("credit", "shown"), [(9.96e14, "1.0e15"), (3.0, "3.0e0"), (5e9, "5.0e9")])
def test_credit_is_shown_with_two_digits(desk: Desk, credit: float, shown: str) -> None:
    assert f", {shown} FLOPs" in describe_receipt(desk.sign(1, credit=credit).receipt)


def test_work_without_credit_says_why_in_words(desk: Desk) -> None:
    words = describe_receipt(desk.sign(1, credit=0.0).receipt)
    assert "without credit: it is on your own text" in words
    assert "FLOPs" not in words


def test_what_is_wrong_is_logged_not_stored_and_hinders_nothing(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    good = desk.sign(4)
    wrong = [
        desk.sign(1, run="other"),
        desk.sign(2, worker=desk.coordinator.peer_id),
        SignedReceipt(receipt=desk.sign(3).receipt, signature=good.signature),
    ]
    with caplog.at_level(logging.WARNING):
        desk.beat(*wrong, good)
    assert desk.files == ["4.json"]
    assert caplog.text.count("a wrong receipt, not stored") == 3
    assert len(desk.said) == 1


def test_a_start_asks_for_the_newest_again_and_goes_on_from_there(desk: Desk) -> None:
    ledger = [desk.sign(3), desk.sign(7)]
    desk.beat(*ledger)
    desk.receipts = desk.open()
    assert desk.beat(*ledger) == 6
    assert desk.beat(*ledger) == 7
    assert desk.said == []
    desk.beat(*ledger, desk.sign(9))
    assert desk.files == ["3.json", "7.json", "9.json"]


def test_a_restored_ledger_is_said_loudly_and_both_receipts_of_an_entry_are_kept(
    desk: Desk,
) -> None:
    desk.beat(desk.sign(3), desk.sign(5), desk.sign(7))
    restored = [
        desk.sign(3),
        desk.sign(5, chain="b", accepted_at=20.0, num_steps=1),
        desk.sign(6, chain="c", accepted_at=21.0),
    ]
    desk.receipts.doubt()
    assert desk.beat(*restored) == 6
    assert "does not hold entry 7" in desk.said[-1]
    assert "restored from an older backup" in desk.said[-1]
    assert desk.beat(*restored, page=2) == 0, "it asks from the first on"
    desk.receipts.doubt()
    assert desk.beat(*restored, page=2) == 5, "and goes on where it was"
    assert desk.files == ["3.json", f"5-{'b' * 12}.json", "5.json", "6.json", "7.json"]
    assert sum("another receipt for entry 5" in line for line in desk.said) == 1
    desk.receipts = desk.open()
    assert desk.beat(*restored) == 5, "the newest is the one accepted last"
    assert desk.beat(*restored) == 6
    assert desk.said == []


def test_the_answer_to_an_older_heartbeat_changes_nothing(desk: Desk) -> None:
    desk.beat(desk.sign(3))
    desk.receipts.take([desk.sign(2)], after=0)
    assert desk.receipts.after == 3
    assert desk.files == ["3.json"]


def test_a_full_disk_delays_a_receipt_and_nothing_else(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("worker.receipts.write_atomic", full)
        desk.beat(desk.sign(3))
    assert (desk.receipts.after, desk.said) == (0, [])
    desk.beat(desk.sign(3))
    assert desk.files == ["3.json"]


def test_a_damaged_or_changed_file_is_left_alone_and_its_receipt_comes_again(desk: Desk) -> None:
    desk.beat(desk.sign(3), desk.sign(5))
    path = desk.root / "receipts" / "5.json"
    changed = json.loads(path.read_text())
    changed["receipt"]["credit"] = 9e99
    path.write_text(json.dumps(changed))
    (desk.root / "receipts" / "3.json").write_text("{")
    desk.receipts = desk.open()
    assert desk.beat(desk.sign(3), desk.sign(5)) == 0
    assert SignedReceipt.model_validate_json(path.read_bytes()) == desk.sign(5)


def test_what_was_accepted_twice_after_a_restore_counts_once_by_the_newest(desk: Desk) -> None:
    other = {"assignment": "afedcba9876543210", "credit": 1e15}
    desk.beat(desk.sign(1), desk.sign(2, **other))
    assert desk.receipts.total() == (2, 2.2e15)
    again = desk.sign(1, chain="b", credit=2e15, accepted_at=9.0)
    desk.receipts.doubt()
    desk.beat(again)
    desk.beat(again)
    assert desk.open().total() == (2, 3e15)
