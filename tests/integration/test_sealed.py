"""Gate and test text and likelihoods leave the coordinator by no path; nothing tells of them."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.api.app import ApiSettings, create_app
from coordinator.api.tokens import new_token
from coordinator.folders import RunFolders
from coordinator.init import init_folder
from coordinator.ledger import Ledger, queries
from coordinator.lifecycle import Holder
from coordinator.network.serve import NetworkRole
from coordinator.runfile import load_run_file
from coordinator.text.prepared import Prepared
from coordinator.urls import URL_SECRET_PURPOSE, Purpose, sign_url
from protocol.blobs import BlobRef, ShardManifest, Split
from protocol.digests import digest_bytes
from protocol.messages import AssignmentHeartbeat
from shared.blobs import BlobStore
from shared.clock import now
from shared.exchange.exchange import Exchange, FetchFailed
from shared.exchange.push import push
from shared.exchange.rates import Bucket
from shared.exchange.streams import Status, StreamRefused, StreamSource
from shared.identity import Identity, sign_certificate
from tests.wire import tier

STRANGER = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
UNKNOWN = BlobRef(digest="ab" * 32, size=11)
TOKEN_KEY = b"0123456789abcdef"
TOKEN = new_token(TOKEN_KEY)


@dataclass
class Place:
    """A network role in this process over a run whose gate, test and likelihoods are sealed."""

    role: NetworkRole
    ledger: Ledger
    public: BlobRef
    sealed: dict[str, BlobRef]
    base: str

    def url(self, digest: str, purpose: Purpose) -> str:
        return sign_url(
            self.base,
            digest=digest,
            purpose=purpose,
            peer=STRANGER,
            expires_at=int(now()) + 60,
            secret=self.role.identity.derive_secret(URL_SECRET_PURPOSE),
        )


def shard_of(ref: BlobRef, split: Split) -> ShardManifest:
    return ShardManifest(
        domain="python",
        split=split,
        blob=ref,
        num_documents=1,
        num_tokens=5,
        num_bytes=11,
        vocab_size=256,
    )


@pytest.fixture
async def place(tmp_path: Path, free_ports: Callable[[int], list[int]], make: Any) -> Any:
    root = tmp_path / "run"
    init_folder(root)
    api, network, libp2p = free_ports(3)
    text = (root / "run.toml").read_text()
    for name, port in (("api_port", api), ("network_port", network), ("libp2p_port", libp2p)):
        text = set_port(text, name, port)
    (root / "run.toml").write_text(text)
    run, folders = load_run_file(root / "run.toml"), RunFolders(root)
    folders.create()
    store, sealed = BlobStore(folders.blobs), BlobStore(folders.sealed)
    public = store.add_bytes(b"train text!")
    hidden = {
        "gate": sealed.add_bytes(b"gate text!!"),
        "test": sealed.add_bytes(b"test text!!"),
        "likelihoods": sealed.add_bytes(b"likelihoods"),
    }
    shards = (
        shard_of(public, "train"),
        shard_of(hidden["gate"], "gate"),
        shard_of(hidden["test"], "test"),
    )
    prepared = Prepared(tokenizer=store.add_bytes(b"words"), vocab_size=256, shards=shards)
    ledger = Ledger(folders.ledger_url)
    ledger.create()
    coordinator = Identity.load(folders.coordinator_key).peer_id
    with ledger.begin() as connection:
        queries.create_run(connection, run=run.run.name, coordinator=coordinator, now=now())
        for shard in shards:
            queries.add_shard(connection, shard, now=now())
        queries.register_worker(connection, registration(make), now())
    role = NetworkRole(run, folders, prepared, ledger)
    stop = asyncio.Event()
    serving = asyncio.create_task(role.serve(stop))
    async with asyncio.timeout(60):
        while role.peer is None or public.digest not in role._announced:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    yield Place(role, ledger, public, hidden, f"http://127.0.0.1:{network}")
    stop.set()
    await serving
    ledger.close()


def set_port(text: str, name: str, port: int) -> str:
    lines = [f"{name} = {port}" if line.startswith(name) else line for line in text.splitlines()]
    assert f"{name} = {port}" in lines
    return "\n".join(lines)


def said(response: httpx.Response, digest: str) -> tuple[int, str]:
    """A refusal without the digest that was asked for."""
    return response.status_code, response.text.replace(digest, "DIGEST")


async def test_signed_urls_open_no_sealed_blob_by_any_method(place: Place) -> None:
    async with httpx.AsyncClient() as client:
        ways: list[Callable[[str], Any]] = [
            lambda digest: client.get(place.url(digest, "get")),
            lambda digest: client.get(place.url(digest, "get"), headers={"range": "bytes=0-3"}),
            lambda digest: client.get(extended(place.url(digest, "get"), "/pieces")),
            lambda digest: client.get(extended(place.url(digest, "put"), "/missing")),
            lambda digest: client.put(extended(place.url(digest, "put"), "/pieces"), content=b"{}"),
            lambda digest: client.put(
                extended(place.url(digest, "put"), "/pieces/0"), content=b"gate text!!"
            ),
            lambda digest: client.get(place.url(digest, "put")),
            lambda digest: client.get(f"{place.base}/blobs/{digest}"),
        ]
        for way in ways:
            refused = said(await way(UNKNOWN.digest), UNKNOWN.digest)
            assert refused[0] in (403, 404)
            for name, ref in place.sealed.items():
                assert said(await way(ref.digest), ref.digest) == refused, name
        read = await client.get(place.url(place.public.digest, "get"))
        assert (read.status_code, read.content) == (200, b"train text!")


def extended(url: str, suffix: str) -> str:
    return url.replace("?", f"{suffix}?", 1)


async def test_libp2p_streams_and_the_dht_know_no_sealed_blob(
    place: Place, loopback_swarm: Any
) -> None:
    key = loopback_swarm.identity("stranger")
    peer = await loopback_swarm.start(
        "stranger",
        coordinator=place.role.identity.peer_id,
        run=place.role.run.run.name,
        certificate=sign_certificate(
            place.role.identity,
            peer=key.peer_id,
            run=place.role.run.run.name,
            expires_at=int(now()) + 600,
        ),
        bootstrap=place.role.peer.maddrs,
    )
    store, name = loopback_swarm.store("stranger"), place.role.identity.peer_id
    open_stream = peer.opener(name, place.role.peer.maddrs)
    coordinator = StreamSource(open_stream, peer=name, route="retained", down=Bucket())

    async def fetch(ref: BlobRef) -> str:
        return await Exchange(store).fetch(ref, [tier(coordinator)])

    assert await fetch(place.public) == f"retained {name}"
    with pytest.raises(FetchFailed) as unknown:
        await fetch(UNKNOWN)
    for ref in place.sealed.values():
        assert await peer.providers(ref.digest) == []
        with pytest.raises(FetchFailed) as refused:
            await fetch(ref)
        assert refused.value.reason.replace(ref.digest, UNKNOWN.digest) == unknown.value.reason
        assert not store.has(ref.digest)
    own = store.add_bytes(b"own text")
    with pytest.raises(StreamRefused) as unwanted:
        await push(open_stream, own, store, up=Bucket())
    for data in (b"gate text!!", b"test text!!"):
        with pytest.raises(StreamRefused) as not_taken:
            await push(open_stream, store.add_bytes(data), store, up=Bucket())
        assert not_taken.value.reason == unwanted.value.reason


async def test_no_request_on_a_stream_tells_a_sealed_blob_from_one_that_is_nowhere(
    place: Place, loopback_swarm: Any
) -> None:
    """Every op, of any range and size, the right ones included."""
    peer = await loopback_swarm.start("stranger", bootstrap=place.role.peer.maddrs)
    assert place.role.peer is not None
    open_stream = peer.opener(place.role.identity.peer_id, place.role.peer.maddrs)

    async def answer(op: str, digest: str, offset: int, length: int) -> bytes:
        request = {"op": op, "digest": digest, "offset": offset, "length": length}
        body = json.dumps(request).encode()
        reader, writer = await open_stream()
        writer.write(len(body).to_bytes(2, "big") + body)
        said = await asyncio.wait_for(reader.readexactly(9), 10)
        writer.write(b"k")
        said += await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return said

    refused = bytes([Status.UNKNOWN]) + bytes(8)
    for op, offset, length in (
        ("pieces", 0, 1000),
        ("bytes", 0, 11),
        ("bytes", 3, 1),
        ("bytes", 11, 0),
        ("push", 0, 11),
    ):
        for digest in (UNKNOWN.digest, *(ref.digest for ref in place.sealed.values())):
            assert await answer(op, digest, offset, length) == refused, (op, offset, length)
    assert (await answer("bytes", place.public.digest, 0, 11))[9:] == b"train text!"


async def test_the_api_signs_no_url_for_a_sealed_blob(place: Place) -> None:
    settings = ApiSettings(
        run=place.role.run.run.name,
        heartbeat_seconds=60.0,
        checkpoint_seconds=60.0,
        enrolment="open",
        trust="all",
        url_secret=place.role.identity.derive_secret(URL_SECRET_PURPOSE),
        token_key=TOKEN_KEY,
    )
    app = create_app(ledger=place.ledger, identity=place.role.identity, settings=settings, now=now)
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://api", headers=headers
    ) as client:
        for way in ("/v1/blobs/{}", "/v1/blobs/{}/upload"):
            refused = said(await client.get(way.format(UNKNOWN.digest)), UNKNOWN.digest)
            assert refused[0] == 404
            for ref in place.sealed.values():
                assert said(await client.get(way.format(ref.digest)), ref.digest) == refused
        assert (await client.get(f"/v1/blobs/{place.public.digest}")).status_code == 307


async def test_a_worker_that_names_a_sealed_blob_as_its_own_file_learns_nothing(
    place: Place, make: Any
) -> None:
    """It is wanted then, but the store behind the network has nothing to compare with."""
    gate = place.sealed["gate"]
    spec = make.spec().model_copy(update={"train_shard": place.public.digest})
    beat = AssignmentHeartbeat(
        fencing=1,
        step=1,
        loss=None,
        tokens_per_second=1.0,
        checkpoint=gate,
        checkpoint_step=1,
    )
    timing = {"now": now(), "heartbeat_seconds": 60.0}
    with place.ledger.begin() as connection:
        assignment = queries.add_assignment(
            connection, spec, shard=place.public, schemes=("a",), now=now()
        )
        terms = queries.OfferTerms(
            assignment=assignment, worker=STRANGER, free_memory_bytes=1, reason="test"
        )
        queries.offer_assignment(connection, terms, **timing)
        holder = Holder(worker=STRANGER, fencing=1)
        queries.acknowledge_lease(connection, assignment, holder, **timing)
        queries.renew_lease(
            connection, assignment, beat, worker=STRANGER, flops_per_second=1e9, **timing
        )
    async with asyncio.timeout(60):
        while not wanted(place, gate.digest):  # noqa: ASYNC110 - the ledger has no event for it
            await asyncio.sleep(0.02)
    async with httpx.AsyncClient() as client:
        missing = await client.get(extended(place.url(gate.digest, "put"), "/missing"))
        read = await client.get(place.url(gate.digest, "get"))
        unknown = await client.get(place.url(UNKNOWN.digest, "get"))
    assert missing.status_code == 409
    assert "PUT its piece list first" in missing.text
    assert said(read, gate.digest) == said(unknown, UNKNOWN.digest)


def wanted(place: Place, digest: str) -> bool:
    with place.ledger.read() as connection:
        return queries.may_upload(connection, digest) is not None


def registration(make: Any) -> queries.Registration:
    return queries.Registration(
        worker=STRANGER,
        name="",
        software_version="0",
        capability=make.capability(),
        maddrs=(),
        token_digest=digest_bytes(TOKEN.encode()),
        token_expires_at=1e12,
        certificate_expires_at=1e12,
        allowed_at=0.0,
    )


async def test_the_role_outlives_a_ledger_that_cannot_be_written_for_a_while(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with place.ledger.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE roles RENAME TO away")
    async with asyncio.timeout(60):
        while "could not be written" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    broken_until = now()
    with place.ledger.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO roles")
    async with asyncio.timeout(60):
        beat = 0.0
        while beat <= broken_until:
            await asyncio.sleep(0.02)
            with place.ledger.read() as connection:
                beat = queries.role_beats(connection)["network"]
