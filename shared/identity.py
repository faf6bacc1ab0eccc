"""The Ed25519 key that a worker or a coordinator is known by, and what it signs.

The file is libp2p's protobuf form of a private key, so that its daemon reads the same file:
`08 01` (type Ed25519) `12 40` (64 bytes follow), the 32-byte seed, the 32-byte public key. A peer
id is the base58 of the identity multihash of the public key. Neither needs libp2p, and nothing here
imports it: the api process verifies signatures too.
"""

import os
import secrets
import stat
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.certificates import Certificate, SignedCertificate
from protocol.receipts import SignedReceipt
from shared.files import sync_folder

_KEY_PREFIX = bytes.fromhex("08011240")
_PEER_ID_PREFIX = bytes.fromhex("002408011220")
_SEED_BYTES = 32
_FILE_BYTES = len(_KEY_PREFIX) + 2 * _SEED_BYTES
_MAX_PEER_ID_LENGTH = 64


class IdentityError(ValueError):
    """A key file is missing, damaged, exposed or already there; the message says what to do."""


class Identity:
    """A private key that lies in a file, and the peer id that it proves."""

    def __init__(self, path: Path, seed: bytes) -> None:
        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.path = path
        self.peer_id = _peer_id(self._key.public_key().public_bytes_raw())

    @classmethod
    def create(cls, path: Path) -> "Identity":
        """Make a new key and write it to `path`, mode 0600.

        The folder is made with mode 0700 if it is missing. Raises IdentityError if `path` exists,
        even when another process creates it at the same moment: a key is made once.
        """
        seed = secrets.token_bytes(_SEED_BYTES)
        public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            _write_private(draft, _KEY_PREFIX + seed + public)
            # A link is atomic and refuses an existing name, so no reader ever sees half a key.
            os.link(draft, path)
        except FileExistsError as error:
            raise IdentityError(
                f"key file {path}: exists already; load it, or move it away to become someone new"
            ) from error
        except OSError as error:
            raise IdentityError(f"key file {path}: cannot be written: {error}") from error
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(path.parent)
        return cls(path, seed)

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """Read the key from `path`. Raises IdentityError if it is missing, exposed or damaged."""
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                data = file.read(_FILE_BYTES + 1)
        except FileNotFoundError as error:
            raise IdentityError(
                f"key file {path}: not found; restore it from a backup or create a new one"
            ) from error
        except OSError as error:
            raise IdentityError(f"key file {path}: cannot be read: {error}") from error
        if mode & 0o077:
            raise IdentityError(
                f"key file {path}: mode {mode:04o} lets other users read it; run: chmod 600 {path}"
            )
        return cls(path, _seed_of(data, path))

    @classmethod
    def load_or_create(cls, path: Path) -> "Identity":
        """Load the key at `path`, creating it first if there is none."""
        if not path.exists():
            try:
                return cls.create(path)
            except IdentityError:
                # Another process may have made it meanwhile.
                if not path.exists():
                    raise
        return cls.load(path)

    def sign(self, data: bytes) -> str:
        """Ed25519 signature of `data`, in hexadecimal. Callers begin `data` with its purpose."""
        return self._key.sign(data).hex()

    def derive_secret(self, purpose: bytes) -> bytes:
        """32 bytes that only this key derives, different for each purpose (HKDF-SHA256)."""
        return HKDF(algorithm=SHA256(), length=32, salt=b"hdee-secret-v1", info=purpose).derive(
            self._seed
        )


def verify(peer_id: str, signature: str, data: bytes) -> bool:
    """Whether the key of `peer_id` made `signature` (hexadecimal) of `data`. Never raises."""
    try:
        _public_key(peer_id).verify(bytes.fromhex(signature), data)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def sign_certificate(
    identity: Identity, *, peer: str, run: str, expires_at: int
) -> SignedCertificate:
    """Certify that `peer` belongs to `run` until `expires_at` (whole seconds since 1970)."""
    certificate = Certificate(peer=peer, run=run, expires_at=expires_at)
    return SignedCertificate(
        certificate=certificate, signature=identity.sign(certificate.signed_bytes())
    )


def certificate_valid(
    signed: SignedCertificate, *, coordinator: str, run: str, peer: str, now: float
) -> bool:
    """Whether `coordinator` certified `peer` as a member of `run` and that still holds at `now`."""
    certificate = signed.certificate
    return (
        certificate.peer == peer
        and certificate.run == run
        and certificate.expires_at > now
        and verify(coordinator, signed.signature, certificate.signed_bytes())
    )


def receipt_valid(signed: SignedReceipt, *, coordinator: str, run: str, worker: str) -> bool:
    """Whether `coordinator` signed this receipt for work that `worker` did in `run`."""
    receipt = signed.receipt
    return (
        receipt.coordinator == coordinator
        and receipt.run == run
        and receipt.worker == worker
        and verify(coordinator, signed.signature, receipt.signed_bytes())
    )


def _peer_id(public: bytes) -> str:
    return base58.b58encode(_PEER_ID_PREFIX + public).decode("ascii")


def _public_key(peer_id: str) -> Ed25519PublicKey:
    if len(peer_id) > _MAX_PEER_ID_LENGTH:
        raise ValueError(f"peer id of {len(peer_id)} characters: expected 52")
    multihash = base58.b58decode(peer_id)
    prefix, public = multihash[: len(_PEER_ID_PREFIX)], multihash[len(_PEER_ID_PREFIX) :]
    if prefix != _PEER_ID_PREFIX or len(public) != _SEED_BYTES:
        raise ValueError(f"peer id {peer_id!r}: expected that of an Ed25519 key")
    return Ed25519PublicKey.from_public_bytes(public)


def _seed_of(data: bytes, path: Path) -> bytes:
    seed = data[len(_KEY_PREFIX) : len(_KEY_PREFIX) + _SEED_BYTES]
    public = data[len(_KEY_PREFIX) + _SEED_BYTES :]
    if (
        len(data) != _FILE_BYTES
        or not data.startswith(_KEY_PREFIX)
        or Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw() != public
    ):
        raise IdentityError(
            f"key file {path}: damaged, expected {_FILE_BYTES} bytes of an Ed25519 key in libp2p's "
            "form; restore it from a backup, or move it away and create a new one (a new identity)"
        )
    return seed


def _write_private(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
