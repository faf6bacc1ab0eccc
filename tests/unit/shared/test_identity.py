"""The key file, its peer id, signatures and certificates."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.receipts import Receipt, SignedReceipt
from shared.identity import (
    Identity,
    IdentityError,
    certificate_valid,
    receipt_valid,
    sign_certificate,
    verify,
)

NOW = 1_800_000_000


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / "keys" / "worker.key")


def test_a_created_key_is_private_and_loads_as_the_same_peer(identity: Identity) -> None:
    assert stat.S_IMODE(identity.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(identity.path.parent.stat().st_mode) == 0o700
    assert identity.path.stat().st_size == 68
    assert Identity.load(identity.path).peer_id == identity.peer_id
    assert identity.peer_id.startswith("12D3KooW")
    assert list(identity.path.parent.iterdir()) == [identity.path]


def test_a_key_is_made_once(identity: Identity) -> None:
    before = identity.path.read_bytes()
    with pytest.raises(IdentityError, match="exists already"):
        Identity.create(identity.path)
    assert identity.path.read_bytes() == before
    assert Identity.load_or_create(identity.path).peer_id == identity.peer_id


def test_load_or_create_creates_what_is_missing(tmp_path: Path) -> None:
    made = Identity.load_or_create(tmp_path / "new" / "worker.key")
    assert Identity.load_or_create(made.path).peer_id == made.peer_id


def test_a_missing_key_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"worker\.key: not found; restore it"):
        Identity.load(tmp_path / "worker.key")


def test_a_key_that_cannot_be_written_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "worker.key").mkdir()
    with pytest.raises(IdentityError, match=r"worker\.key: exists already"):
        Identity.create(tmp_path / "worker.key")
    with pytest.raises(IdentityError, match=r"worker\.key: cannot be read"):
        Identity.load(tmp_path / "worker.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(identity: Identity, mode: int) -> None:
    identity.path.chmod(mode)
    with pytest.raises(IdentityError, match="chmod 600"):
        Identity.load(identity.path)


@given(position=st.integers(0, 67), flip=st.integers(1, 255))
def test_a_damaged_key_is_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
) -> None:
    path = tmp_path_factory.mktemp("keys") / "worker.key"
    damaged = bytearray(Identity.create(path).path.read_bytes())
    damaged[position] ^= flip
    path.write_bytes(damaged)
    with pytest.raises(IdentityError, match="damaged"):
        Identity.load(path)


@pytest.mark.parametrize("length", [0, 67, 69])
def test_a_key_of_the_wrong_length_is_refused(identity: Identity, length: int) -> None:
    identity.path.write_bytes((identity.path.read_bytes() + b"\0")[:length])
    with pytest.raises(IdentityError, match="damaged"):
        Identity.load(identity.path)


def test_a_signature_holds_for_its_key_and_data_only(identity: Identity, tmp_path: Path) -> None:
    other = Identity.create(tmp_path / "other.key")
    signature = identity.sign(b"purpose|data")
    assert verify(identity.peer_id, signature, b"purpose|data")
    assert not verify(identity.peer_id, signature, b"purpose|date")
    assert not verify(other.peer_id, signature, b"purpose|data")


@given(peer=st.text(max_size=80), signature=st.text(max_size=140), data=st.binary(max_size=20))
def test_verify_never_raises(peer: str, signature: str, data: bytes) -> None:
    assert not verify(peer, signature, data)


def test_verify_refuses_a_peer_id_of_another_kind(identity: Identity) -> None:
    signature = identity.sign(b"data")
    assert not verify("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", signature, b"data")
    assert not verify(identity.peer_id[:-1], signature, b"data")
    assert not verify("1" * 100_000, signature, b"data")


def test_secrets_differ_by_purpose_and_by_key(identity: Identity, tmp_path: Path) -> None:
    other = Identity.create(tmp_path / "other.key")
    secret = identity.derive_secret(b"urls")
    assert len(secret) == 32
    assert secret == Identity.load(identity.path).derive_secret(b"urls")
    assert secret != identity.derive_secret(b"tokens")
    assert secret != other.derive_secret(b"urls")


def test_a_certificate_binds_peer_run_expiry_and_coordinator(
    identity: Identity, tmp_path: Path
) -> None:
    coordinator = Identity.create(tmp_path / "coordinator.key")
    signed = sign_certificate(coordinator, peer=identity.peer_id, run="demo", expires_at=NOW + 60)

    def valid(**changes: object) -> bool:
        facts: dict[str, object] = {
            "coordinator": coordinator.peer_id,
            "run": "demo",
            "peer": identity.peer_id,
            "now": float(NOW),
        }
        return certificate_valid(signed, **(facts | changes))  # type: ignore[arg-type]

    assert valid()
    assert not valid(now=float(NOW + 60))
    assert not valid(run="other")
    assert not valid(peer=coordinator.peer_id)
    assert not valid(coordinator=identity.peer_id)
    forged = signed.model_copy(
        update={"certificate": signed.certificate.model_copy(update={"expires_at": NOW + 9999})}
    )
    assert not certificate_valid(
        forged, coordinator=coordinator.peer_id, run="demo", peer=identity.peer_id, now=NOW
    )


def test_a_receipt_binds_coordinator_run_worker_and_all_that_it_says(
    identity: Identity, tmp_path: Path
) -> None:
    coordinator = Identity.create(tmp_path / "coordinator.key")
    receipt = Receipt(
        run="demo",
        coordinator=coordinator.peer_id,
        entry=7,
        entry_digest="0" * 64,
        worker=identity.peer_id,
        assignment="a0123456789abcdef",
        spec="1" * 64,
        manifest="2" * 64,
        num_steps=300,
        credit=1e12,
        accepted_at=1.5,
    )
    signed = SignedReceipt(receipt=receipt, signature=coordinator.sign(receipt.signed_bytes()))
    facts = {"coordinator": coordinator.peer_id, "run": "demo", "worker": identity.peer_id}
    assert receipt_valid(signed, **facts)
    for other in (
        {"coordinator": identity.peer_id},
        {"run": "other"},
        {"worker": coordinator.peer_id},
    ):
        assert not receipt_valid(signed, **(facts | other))
    for field, value in {"credit": 2e12, "entry": 8, "run": "other", "num_steps": 1}.items():
        forged = receipt.model_copy(update={field: value})
        changed = signed.model_copy(update={"receipt": forged})
        assert not receipt_valid(changed, **(facts | {"run": forged.run}))
    own = receipt.model_copy(update={"coordinator": identity.peer_id})
    by_worker = SignedReceipt(receipt=own, signature=identity.sign(own.signed_bytes()))
    assert not receipt_valid(by_worker, **facts)


def test_importing_identity_loads_neither_torch_nor_hivemind() -> None:
    code = (
        "import sys, shared.identity; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'hivemind')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
