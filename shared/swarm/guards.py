"""What keeps strangers' requests and records from harming a DHT node.

hivemind 1.1 needs four guards of ours: nested msgpack extensions overflow its stack, its handlers
take requests of any size, its storage takes any record from anyone, and any number of them under
one key (`crowds`). Every node installs all four, the coordinator's included, because any libp2p
peer may call it.

A record of ours is a dictionary entry whose subkey is its owner's peer id and whose value is
msgpack `[payload, signature, certificate]`: a node without these guards can read it too, and one
with them needs the coordinator's public key only, no list of members.
"""

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable

from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer
from hivemind.utils.auth import AuthorizerBase
from hivemind.utils.logging import use_hivemind_log_handler

from protocol.certificates import SignedCertificate
from protocol.records import (
    MAX_KEYS_OF_COORDINATOR,
    MAX_KEYS_PER_OWNER,
    MAX_RECORD_BYTES,
    MAX_TTL_SECONDS,
    beacon_key,
)
from shared.identity import Identity, certificate_valid, verify
from shared.swarm.crowds import bound_crowds

CLOCK_SKEW_SECONDS = 10.0
"""How far a member's clock may be off before its records are refused."""

_MAX_EXTENSION_DEPTH = 4
_EXTENSIONS = (0x40, 0x50)
_MAX_KEYS = 128
_MAX_REQUEST_BYTES = 512 * 1024
_MAX_SUBKEY_BYTES = 128
_MAX_NEIGHBOURS = 64
_ID_BYTES = 20
_MAX_REMEMBERED = 4096
_PURPOSE = b"hdee-record-v1|"


def prepare_hivemind() -> None:
    """Make hivemind safe and quiet in this process. Call before the first node; repeats do nothing.

    Its log lines go to the program's own handlers, from warnings upwards; of the daemon's, fatal
    ones only. HIVEMIND_LOGLEVEL and GOLOG_LOG_LEVEL change that.
    """
    os.environ.setdefault("GOLOG_LOG_LEVEL", "fatal")
    use_hivemind_log_handler("nowhere")
    logging.addLevelName(logging.WARNING, "WARNING")
    logging.getLogger("hivemind").setLevel(os.environ.get("HIVEMIND_LOGLEVEL", "WARNING"))
    if not getattr(MSGPackSerializer, "hdee_guarded", False):
        MSGPackSerializer.hdee_guarded = True
        _guard_extension_depth()
        bound_crowds()


def _guard_extension_depth() -> None:
    """Refuse msgpack extensions that nest deep or that hivemind does not define.

    Its decoder recurses once for each level, in C: a request of 2 kB ends the process.
    """
    decode = MSGPackSerializer._decode_ext_types.__func__
    depth = threading.local()

    def guarded(cls: type, code: int, data: bytes) -> object:
        level = getattr(depth, "level", 0)
        if level >= _MAX_EXTENSION_DEPTH or code not in _EXTENSIONS:
            raise ValueError(f"msgpack extension {code} at depth {level}: refused")
        depth.level = level + 1
        try:
            return decode(cls, code, data)
        finally:
            depth.level = level

    MSGPackSerializer._decode_ext_types = classmethod(guarded)


class RequestGuard(AuthorizerBase):
    """Bounds every DHT request that arrives and every answer that is believed."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now

    async def sign_request(self, request: object, service_public_key: object) -> None:
        """Requests are not signed: the connection proves the peer id."""

    async def sign_response(self, response: object, request: object) -> None:
        """Answers are not signed: the connection proves the peer id."""

    async def validate_request(self, request: object) -> bool:
        """Whether `request` is small and well formed; it is answered only then."""
        if isinstance(request, dht_pb2.StoreRequest):
            return _store_request_bounded(request)
        if isinstance(request, dht_pb2.FindRequest):
            return len(request.keys) <= _MAX_KEYS and _are_ids(request.keys)
        return isinstance(request, dht_pb2.PingRequest)

    async def validate_response(self, response: object, _: object) -> bool:
        """Whether `response` may be read.

        An expiration far ahead would end every later search at once, with whatever the peer sent.
        """
        if not isinstance(response, dht_pb2.FindResponse):
            return True
        latest = self._now() + MAX_TTL_SECONDS + CLOCK_SKEW_SECONDS
        return all(
            result.expiration_time <= latest
            and len(result.nearest_node_ids) <= _MAX_NEIGHBOURS
            and len(result.nearest_peer_ids) <= _MAX_NEIGHBOURS
            and _are_ids(result.nearest_node_ids)
            and len(result.value) <= _MAX_REQUEST_BYTES
            for result in response.results
        )


def _store_request_bounded(request: dht_pb2.StoreRequest) -> bool:
    count = len(request.keys)
    return (
        count <= _MAX_KEYS
        and count == len(request.values) == len(request.subkeys)
        and count == len(request.expiration_time) == len(request.in_cache)
        and _are_ids(request.keys)
        and all(len(subkey) <= _MAX_SUBKEY_BYTES for subkey in request.subkeys)
        and sum(len(value) for value in request.values) <= _MAX_REQUEST_BYTES
    )


def _are_ids(keys: "list[bytes]") -> bool:
    return all(len(key) == _ID_BYTES for key in keys)


class _LiveKeys:
    """The keys under which each owner has records that have not expired."""

    def __init__(self, coordinator: str) -> None:
        self._coordinator = coordinator
        self._expiries: dict[str, dict[bytes, float]] = {}
        self._swept_at = 0.0

    def admit(self, owner: str, key: bytes, *, expires_at: float, now: float) -> bool:
        """Count a record; False if its owner has too many living keys already."""
        if not self.has_room(owner, key, now=now):
            return False
        keys = self._expiries.setdefault(owner, {})
        keys[key] = max(expires_at, keys.get(key, expires_at))
        return True

    def has_room(self, owner: str, key: bytes, *, now: float) -> bool:
        """Whether `owner` may have a living record under `key`."""
        if abs(now - self._swept_at) > MAX_TTL_SECONDS:
            self._swept_at = now
            for other in tuple(self._expiries):
                self._sweep(other, now)
        keys = self._expiries.get(owner, {})
        limit = MAX_KEYS_OF_COORDINATOR if owner == self._coordinator else MAX_KEYS_PER_OWNER
        if key in keys or len(keys) < limit:
            return True
        if min(keys.values()) > now:
            return False
        self._sweep(owner, now)
        return True

    def _sweep(self, owner: str, now: float) -> None:
        living = {key: at for key, at in self._expiries[owner].items() if at > now}
        if living:
            self._expiries[owner] = living
        else:
            del self._expiries[owner]


class SignedRecordValidator(RecordValidatorBase):
    """Accepts a record from the certified peer under whose subkey it stands; signs our own.

    An owner has a bounded number of living keys, so that no member can fill every node's memory.
    A record may not outlive its certificate, so that no valid record turns invalid in storage.
    """

    def __init__(
        self,
        identity: Identity,
        certificate: SignedCertificate,
        *,
        coordinator: str,
        run: str,
        now: Callable[[], float],
    ) -> None:
        self._identity = identity
        self.coordinator, self.run, self._now = coordinator, run, now
        self._beacon_key = DHTID.generate(source=beacon_key(run)).to_bytes()
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._live_keys = _LiveKeys(coordinator)
        self.certificate = certificate

    def validate(self, record: DHTRecord) -> bool:
        """Whether to store or believe `record`. Never raises: hivemind would drop the answer."""
        try:
            return self._acceptable(record)
        except Exception:  # noqa: BLE001 - whatever a stranger sent, it is refused and nothing else
            return False

    def sign_value(self, record: DHTRecord) -> bytes:
        """The payload in `record.value`, with this peer's signature and certificate."""
        signature = bytes.fromhex(self._identity.sign(_signed_bytes(record, record.value)))
        certificate = self.certificate.model_dump_json().encode()
        return bytes(MSGPackSerializer.dumps([record.value, signature, certificate]))

    def strip_value(self, record: DHTRecord) -> bytes:
        """The payload of a record that `validate` accepted."""
        return _parts(record.value)[0]

    def _acceptable(self, record: DHTRecord) -> bool:
        now = self._now()
        owner = _owner(record.subkey)
        soonest, latest = now - CLOCK_SKEW_SECONDS, now + MAX_TTL_SECONDS + CLOCK_SKEW_SECONDS
        if record.key == self._beacon_key and owner != self.coordinator:
            return False
        if len(record.value) > MAX_RECORD_BYTES or not soonest < record.expiration_time <= latest:
            return False
        payload, signature, encoded = _parts(record.value)
        # What cannot be decoded would hang every reader.
        MSGPackSerializer.loads(payload)
        fingerprint = _fingerprint(record)
        if fingerprint in self._known:
            return True
        # Before the signatures, which cost most: what is one key too many is refused cheaply.
        if not self._live_keys.has_room(owner, record.key, now=soonest):
            return False
        signed = SignedCertificate.model_validate_json(encoded)
        accepted = (
            record.expiration_time <= signed.certificate.expires_at
            and certificate_valid(
                signed, coordinator=self.coordinator, run=self.run, peer=owner, now=soonest
            )
            and verify(owner, signature.hex(), _signed_bytes(record, payload))
            and self._live_keys.admit(
                owner, record.key, expires_at=record.expiration_time, now=soonest
            )
        )
        if accepted:
            self._remember(fingerprint)
        return accepted

    def _remember(self, fingerprint: bytes) -> None:
        self._known[fingerprint] = None
        if len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=False)


def _owner(subkey: bytes) -> str:
    """The peer id that a subkey names, in the one encoding that is allowed."""
    owner = MSGPackSerializer.loads(subkey)
    if not isinstance(owner, str) or MSGPackSerializer.dumps(owner) != subkey:
        raise ValueError("subkey: expected the owner's peer id")
    return owner


def _parts(value: bytes) -> tuple[bytes, bytes, bytes]:
    payload, signature, certificate = MSGPackSerializer.loads(value)
    if not all(isinstance(part, bytes) for part in (payload, signature, certificate)):
        raise ValueError("record: expected [payload, signature, certificate] as bytes")
    return payload, signature, certificate


def _signed_bytes(record: DHTRecord, payload: bytes) -> bytes:
    """What an owner signs: where the record stands, what it says and how long it holds."""
    return _PURPOSE + bytes(
        MSGPackSerializer.dumps([record.key, record.subkey, payload, float(record.expiration_time)])
    )


def _fingerprint(record: DHTRecord) -> bytes:
    return hashlib.sha256(_signed_bytes(record, record.value)).digest()
