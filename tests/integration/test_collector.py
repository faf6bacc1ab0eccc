"""The collector over real peers, a real ledger and real blob stores: what becomes durable."""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from sqlalchemy import select

from coordinator.ledger import Ledger, queries
from coordinator.ledger.tables import checkpoints
from coordinator.lifecycle import Holder
from coordinator.network.blob_app import create_blob_app
from coordinator.network.collector import (
    DISK_RETRY_SECONDS,
    MAX_COLLECTIONS,
    MAX_REASON,
    Collector,
)
from coordinator.urls import sign_url
from protocol.assignments import AssignmentState
from protocol.blobs import BlobRef
from protocol.manifests import FILES, CheckpointManifest, ManifestFile, TrainerState
from protocol.messages import AssignmentHeartbeat, Submission
from protocol.specs import ExpertSpec
from shared import tensorfiles
from shared.blobs import BlobStore
from shared.exchange.exchange import Exchange
from shared.exchange.over_http import upload_over_http
from shared.exchange.rates import Bucket
from shared.exchange.serving import BlobServer
from shared.exchange.streams import FIRST_BYTE_SECONDS
from shared.swarm.peer import Peer

HEARTBEAT_SECONDS = 1e6
SECRET = b"s" * 32

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Files:
    """The files of a checkpoint, to be spoilt before they are written."""

    spec: ExpertSpec
    step: int
    model: Tensors
    optimizer: Tensors
    state: bytes

    def written(self, folder: Path) -> dict[str, Path]:
        folder.mkdir(parents=True)
        tensorfiles.write_tensors(folder / "model.safetensors", self.model)
        tensorfiles.write_tensors(folder / "optimizer.safetensors", self.optimizer)
        (folder / "state.json").write_bytes(self.state)
        return {name: folder / name for name in FILES["training"]}


def sound(spec: ExpertSpec, step: int) -> Files:
    draw = np.random.default_rng(step)
    state = TrainerState(spec=spec.digest, step=step, loss=3.0, train_seconds=1.0)

    def filled(forms: dict[str, tensorfiles.TensorForm]) -> Tensors:
        return {
            name: draw.random(shape, dtype=np.float32) / 100 for name, (_, shape) in forms.items()
        }

    return Files(
        spec=spec,
        step=step,
        model=filled(tensorfiles.model_tensors(spec.shape)),
        optimizer=filled(tensorfiles.moments_of(tensorfiles.model_tensors(spec.shape))),
        state=state.model_dump_json().encode(),
    )


class Place:
    """A coordinator's side and one worker's, which holds a lease of the assignment for `spec`."""

    def __init__(self, swarm: Any, ledger: Ledger, clock: Any, make: Any) -> None:
        self.swarm, self.ledger, self.clock, self.make = swarm, ledger, clock, make
        self.worker = swarm.identity("worker").peer_id
        self.theirs: BlobStore = swarm.store("worker")
        self.store: BlobStore = swarm.store("coordinator")
        self.asked: list[str] = []
        self.on_read: Callable[[str], None] = lambda _digest: None
        self.coordinator_peer: Peer | None = None
        self.worker_peer: Peer | None = None
        self.collector = self.new_collector()
        with ledger.begin() as connection:
            queries.create_run(
                connection, run="demo", coordinator=swarm.coordinator.peer_id, now=clock()
            )
            queries.register_worker(connection, self._registration(), clock())
            queries.add_shard(connection, make.shard("python", "train"), now=clock())
        self.spec: ExpertSpec = make.spec()
        self.assignment, self.fencing = "", 0
        self.lease(self.spec)

    def _registration(self) -> queries.Registration:
        return queries.Registration(
            worker=self.worker,
            name="",
            software_version="0",
            capability=self.make.capability(),
            maddrs=(),
            token_digest="",
            token_expires_at=1e12,
            certificate_expires_at=1e12,
            allowed_at=0.0,
        )

    def new_collector(self) -> Collector:
        return Collector(
            ledger=self.ledger,
            exchange=Exchange(self.store),
            peer=lambda: self.coordinator_peer,
            now=self.clock,
        )

    async def connect(self, **changes: Any) -> None:
        """Both sides join the DHT; the worker serves what it has and notes what is asked for."""

        def may_read(digest: str, _peer: str) -> bool:
            self.asked.append(digest)
            self.on_read(digest)
            return True

        self.coordinator_peer = await self.swarm.start("coordinator")
        self.worker_peer = await self.swarm.start("worker", may_read=may_read, **changes)
        with self.ledger.begin() as connection:
            seen = queries.Sighting(
                token_expires_at=1e12, allowed_at=0.0, maddrs=self.worker_peer.maddrs
            )
            queries.see_worker(connection, self.worker, seen, self.clock())

    def lease(self, spec: ExpertSpec) -> None:
        """The worker takes and starts the assignment for `spec`."""
        with self.ledger.begin() as connection:
            timing = {"now": self.clock(), "heartbeat_seconds": HEARTBEAT_SECONDS}
            shard = self.make.shard("python", "train").blob
            self.assignment = queries.add_assignment(
                connection, spec, shard=shard, schemes=("a",), now=self.clock()
            )
            terms = queries.OfferTerms(
                assignment=self.assignment, worker=self.worker, free_memory_bytes=1, reason="test"
            )
            offered = queries.offer_assignment(connection, terms, **timing)
            self.spec, self.fencing = spec, offered.standing.fencing
            holder = Holder(worker=self.worker, fencing=self.fencing)
            queries.acknowledge_lease(connection, self.assignment, holder, **timing)

    def manifest(self, files: Files, kind: str, **changes: Any) -> CheckpointManifest:
        """The worker puts a checkpoint's files into its store; `blobs` replaces some of them."""
        blobs = changes.pop("blobs", {})
        folder = self.swarm.folder / "work" / f"{files.spec.digest[:8]}-{len(self.asked)}"
        paths = files.written(folder.with_name(f"{folder.name}-{os.urandom(4).hex()}"))
        kind = changes.pop("kind", kind)
        facts = {
            "kind": kind,
            "spec": files.spec.digest,
            "worker": self.worker,
            "step": files.step,
            "loss": 3.0,
            "files": tuple(
                ManifestFile(name=name, blob=blobs.get(name) or self.theirs.add_file(paths[name]))
                for name in FILES[kind]
            ),
        }
        return CheckpointManifest.model_validate({**facts, **changes})

    def announce(self, manifest: CheckpointManifest, *, step: int | None = None) -> BlobRef:
        """A heartbeat names a training checkpoint."""
        return self.announce_bytes(manifest.model_dump_json().encode(), step or manifest.step)

    def announce_bytes(self, data: bytes, step: int) -> BlobRef:
        ref = self.theirs.add_bytes(data)
        beat = AssignmentHeartbeat(
            fencing=self.fencing,
            step=step,
            loss=3.0,
            tokens_per_second=1.0,
            checkpoint=ref,
            checkpoint_step=step,
        )
        with self.ledger.begin() as connection:
            queries.renew_lease(
                connection,
                self.assignment,
                beat,
                worker=self.worker,
                flops_per_second=1e9,
                now=self.clock(),
                heartbeat_seconds=HEARTBEAT_SECONDS,
            )
        return ref

    def submit(self, manifest: CheckpointManifest) -> BlobRef:
        return self.submit_bytes(manifest.model_dump_json().encode())

    def submit_bytes(self, data: bytes) -> BlobRef:
        ref = self.theirs.add_bytes(data)
        submission = Submission(
            request_id="0" * 32,
            fencing=self.fencing,
            manifest=ref,
            tokens_per_second=1.0,
            train_seconds=1.0,
        )
        with self.ledger.begin() as connection:
            queries.submit_expert(
                connection,
                self.assignment,
                submission,
                worker=self.worker,
                now=self.clock(),
                heartbeat_seconds=HEARTBEAT_SECONDS,
            )
        return ref

    def training(self, step: int) -> tuple[BlobRef, CheckpointManifest]:
        """A sound training checkpoint, announced."""
        manifest = self.manifest(sound(self.spec, step), "training")
        return self.announce(manifest), manifest

    def decided(self, ref: BlobRef) -> tuple[str, str]:
        """State of the checkpoint with this manifest, and the reason for it."""
        with self.ledger.read() as connection:
            row = connection.execute(
                select(checkpoints).where(checkpoints.c.manifest_digest == ref.digest)
            ).one()
        return row.state, row.reason

    def wanted(self) -> set[str]:
        with self.ledger.read() as connection:
            return {ref.digest for ref in queries.wanted_from(connection, self.worker)}

    def standing(self) -> Any:
        with self.ledger.read() as connection:
            return queries.get_assignment(connection, self.assignment).standing

    async def until(self, condition: Callable[[], bool]) -> None:
        """The network role's loop, with time passing, until `condition` holds."""
        async with asyncio.timeout(60):
            while not condition():
                await self.collector.collect()
                self.clock.advance(0.5)
                await asyncio.sleep(0.01)

    async def until_decided(self, ref: BlobRef) -> tuple[str, str]:
        await self.until(lambda: self.decided(ref)[0] != "announced")
        return self.decided(ref)


@pytest.fixture
async def place(loopback_swarm: Any, ledger: Ledger, clock: Any, make: Any) -> Any:
    place = Place(loopback_swarm, ledger, clock, make)
    yield place
    await place.collector.stop()


def digests_of(ref: BlobRef, manifest: CheckpointManifest) -> set[str]:
    return {ref.digest, *(file.blob.digest for file in manifest.files)}


async def test_the_last_two_training_checkpoints_are_kept_and_older_blobs_deleted(
    place: Place,
) -> None:
    await place.connect()
    made = []
    for step in (5, 10, 15):
        made.append(place.training(step))
        assert await place.until_decided(made[-1][0]) == ("durable", "")
    assert place.decided(made[0][0])[0] == "superseded"
    assert set(place.store.digests()) == digests_of(*made[1]) | digests_of(*made[2])
    assert all(place.store.verify(digest) for digest in place.store.digests())
    with place.ledger.read() as connection:
        resume = queries.resume_of(connection, place.assignment, None)
    assert resume is not None
    assert resume.manifest == made[2][1]


async def test_a_sound_expert_is_durable_and_waits_for_its_verification(place: Place) -> None:
    await place.connect()
    manifest = place.manifest(sound(place.spec, place.spec.train.num_steps), "expert")
    ref = place.submit(manifest)
    assert await place.until_decided(ref) == ("durable", "")
    assert set(place.store.digests()) == digests_of(ref, manifest)
    with place.ledger.read() as connection:
        [row] = queries.durable_submissions(connection)
    assert (row.assignment, row.manifest) == (place.assignment, manifest)
    assert place.standing().expires_at is None


def with_nan(files: Files) -> Files:
    name = "model.norm.weight"
    return replace(files, model={**files.model, name: files.model[name] * np.float32("nan")})


def narrower(files: Files) -> Files:
    shape = files.spec.shape.model_copy(update={"ffn_width": 32})
    return replace(files, model=sound(files.spec.model_copy(update={"shape": shape}), 1).model)


async def test_a_submission_that_is_no_expert_is_refused_and_its_assignment_open_again(
    place: Place,
) -> None:
    await place.connect()
    other = place.make.spec(rng_seed=99).digest
    cases: dict[str, Callable[[Files], BlobRef]] = {
        "tensor model.layers.0.mlp.gate_proj.weight is ('F32', (32, 32)), expected": lambda files: (
            place.submit(place.manifest(narrower(files), "expert"))
        ),
        "NaN or infinite": lambda files: place.submit(place.manifest(with_nan(files), "expert")),
        "header of 1048584 bytes": lambda files: place.submit(
            place.manifest(files, "expert", blobs={"model.safetensors": long_header(place, files)})
        ),
        "manifest.spec: ": lambda files: place.submit(place.manifest(files, "expert", spec=other)),
        "manifest.kind: 'training', expected 'expert'": lambda files: place.submit(
            place.manifest(files, "training")
        ),
        "manifest.step: 7, expected 20": lambda files: place.submit(
            place.manifest(files, "expert", step=7)
        ),
        "manifest.worker: ": lambda files: place.submit(
            place.manifest(files, "expert", worker=place.swarm.coordinator.peer_id)
        ),
        "manifest: Invalid JSON": lambda _files: place.submit_bytes(b"\x00 no manifest"),
        "manifest: kind: Field required": lambda _files: place.submit_bytes(b"{}"),
        "manifest: 16385 bytes": lambda _files: place.submit_bytes(b" " * 16_385),
    }
    for number, (reason, hand_in) in enumerate(cases.items()):
        if number:
            place.lease(place.make.spec(rng_seed=number))
        ref = hand_in(sound(place.spec, place.spec.train.num_steps))
        state, said = await place.until_decided(ref)
        assert state == "refused", reason
        assert reason in said
        assert place.standing().state is AssignmentState.OPEN
        assert place.standing().excluded == {place.worker}
    await place.until(lambda: not set(place.store.digests()))


def long_header(place: Place, files: Files) -> BlobRef:
    """A header of 8 bytes more than there may be, in a file that is no larger than it may be."""
    path = files.written(place.swarm.folder / "long")["model.safetensors"]
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].ljust(tensorfiles.MAX_HEADER_BYTES + 8)
    body = data[8 + length : -8]
    return place.theirs.add_bytes(len(header).to_bytes(8, "little") + header + body)


async def test_a_training_checkpoint_that_nobody_could_go_on_from_is_refused(place: Place) -> None:
    await place.connect()

    def negative(files: Files) -> Files:
        name = "exp_avg_sq.model.norm.weight"
        return replace(files, optimizer={**files.optimizer, name: -files.optimizer[name]})

    def state(data: bytes) -> Callable[[Files], Files]:
        return lambda files: replace(files, state=data)

    def of_step(step: int) -> Callable[[Files], Files]:
        return lambda files: replace(files, state=sound(files.spec, step).state)

    def curve(*steps: int) -> Callable[[Files], Files]:
        points = [{"step": step, "loss": 1.0} for step in steps]
        return lambda files: replace(
            files, state=json.dumps({**json.loads(files.state), "curve": points}).encode()
        )

    cases: dict[str, Callable[[Files], Files]] = {
        "state.json: Value error, curve: steps [9]": curve(9),
        "state.json: Value error, curve: steps [2, 1]": curve(2, 1),
        "gate_proj.weight is ('F32', (32, 32)), expected ('F32', (64, 32))": narrower,
        "NaN or infinite": with_nan,
        "has negative values": negative,
        "state.json: Invalid JSON": state(b"step 4"),
        "state.json: Invalid JSON: recursion": state(b"[" * 4000),
        "state.json: spec: Field required": state(b"{}"),
        "state.json: step 19, expected": of_step(19),
        "state.json: 4097 bytes, expected at most 4096": state(b" " * 4097),
    }
    for step, (reason, spoil) in enumerate(cases.items(), start=1):
        ref = place.announce(place.manifest(spoil(sound(place.spec, step)), "training"))
        decided, said = await place.until_decided(ref)
        assert decided == "refused", reason
        assert reason in said
    await place.until(lambda: not set(place.store.digests()))
    assert place.standing().state is AssignmentState.RUNNING
    ref, _ = place.training(10)
    assert await place.until_decided(ref) == ("durable", "")


async def test_only_so_many_collections_run_at_once_and_every_one_gets_its_turn(
    place: Place,
) -> None:
    for rng_seed in range(MAX_COLLECTIONS + 3):
        with place.ledger.begin() as connection:
            queries.expire_leases_of(connection, place.worker, now=place.clock())
        place.lease(place.make.spec(rng_seed=rng_seed + 1))
        place.announce_bytes(b"nobody can send this %d" % rng_seed, 5)
    await place.collector.collect()
    assert len(asyncio.all_tasks()) - 1 <= MAX_COLLECTIONS
    await place.until(lambda: len(place.wanted()) == MAX_COLLECTIONS + 3)


async def test_workers_that_send_nothing_do_not_keep_the_others_from_being_collected(
    place: Place,
) -> None:
    silent: list[int] = []

    class Holding(BlobServer):
        """Says nothing on the first streams."""

        async def serve(self, info: Any, reader: Any, writer: Any) -> None:
            if len(silent) < MAX_COLLECTIONS:
                silent.append(1)
                await reader.read()
                writer.close()
            else:
                await super().serve(info, reader, writer)

    await place.connect(server=Holding(place.theirs, lambda *_: True))
    refs = []
    for rng_seed in range(MAX_COLLECTIONS + 1):
        with place.ledger.begin() as connection:
            queries.expire_leases_of(connection, place.worker, now=place.clock())
        place.lease(place.make.spec(rng_seed=rng_seed + 1))
        refs.append(place.training(5)[0])
    started = asyncio.get_running_loop().time()
    assert await place.until_decided(refs[-1]) == ("durable", "")
    assert len(silent) == MAX_COLLECTIONS
    assert asyncio.get_running_loop().time() - started < FIRST_BYTE_SECONDS
    for ref in refs[:-1]:
        assert await place.until_decided(ref) == ("durable", "")


async def test_a_file_larger_than_its_spec_allows_is_refused_without_asking_for_it(
    place: Place,
) -> None:
    await place.connect()
    limit = tensorfiles.max_bytes(tensorfiles.model_tensors(place.spec.shape))
    large = place.theirs.add_bytes(bytes(limit + 1))
    manifest = place.manifest(sound(place.spec, 20), "expert", blobs={"model.safetensors": large})
    state, reason = await place.until_decided(place.submit(manifest))
    assert state == "refused"
    assert reason == f"model.safetensors: {limit + 1} bytes, expected at most {limit}"
    assert large.digest not in place.asked


async def test_bytes_that_do_not_answer_to_their_digest_are_never_durable(place: Place) -> None:
    await place.connect()
    ref, manifest = place.training(5)
    model = manifest.blob("model.safetensors")
    path = place.theirs.path(model.digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    await place.until(lambda: model.digest in place.wanted())
    assert place.decided(ref)[0] == "announced"
    assert not place.store.has(model.digest)
    asked, until = place.asked.count(model.digest), place.clock() + 20
    await place.until(lambda: place.clock() > until)
    assert place.asked.count(model.digest) == asked, "a liar is not asked again"
    assert place.decided(ref)[0] == "announced"


@contextlib.asynccontextmanager
async def blobs_over_http(place: Place) -> Any:
    """The network role's HTTP side on a real port; yields how to sign a URL for the worker."""

    def may_upload(digest: str) -> BlobRef | None:
        with place.ledger.read() as connection:
            return queries.may_upload(connection, digest)

    app = create_blob_app(
        store=place.store,
        secret=SECRET,
        may_read=lambda _digest, _peer: False,
        may_upload=may_upload,
        on_complete=lambda _ref, _peer: None,
        now=place.clock,
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve([listener]))
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def sign(digest: str) -> str:
        return sign_url(
            base,
            digest=digest,
            purpose="put",
            peer=place.worker,
            expires_at=int(place.clock()) + 600,
            secret=SECRET,
        )

    try:
        yield sign
    finally:
        server.should_exit = True
        await serving
        listener.close()


async def test_what_no_peer_can_send_is_wanted_all_at_once_and_comes_by_upload(
    place: Place,
) -> None:
    ref, manifest = place.training(5)
    files = digests_of(ref, manifest) - {ref.digest}
    async with blobs_over_http(place) as sign, httpx.AsyncClient() as client:
        await place.until(lambda: place.wanted() == {ref.digest})
        await upload_over_http(client, sign(ref.digest), ref, place.theirs, up=Bucket())
        await place.until(lambda: place.wanted() == files)
        for file in manifest.files:
            url = sign(file.blob.digest)
            await upload_over_http(client, url, file.blob, place.theirs, up=Bucket())
        assert await place.until_decided(ref) == ("durable", "")
    assert place.wanted() == set()


async def test_nothing_is_wanted_of_a_checkpoint_that_a_newer_one_replaced(place: Place) -> None:
    older, _ = place.training(5)
    await place.until(lambda: place.wanted() == {older.digest})
    newer, _ = place.training(10)
    assert place.wanted() == set()
    with place.ledger.read() as connection:
        assert queries.may_upload(connection, older.digest) is None
    await place.until(lambda: place.wanted() == {newer.digest})


# A killed daemon's sockets are left to the garbage collector by hivemind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_provider_killed_halfway_is_asked_to_upload_and_completes_it_when_back(
    place: Place,
) -> None:
    await place.connect()
    ref, manifest = place.training(5)
    optimizer = manifest.blob("optimizer.safetensors").digest
    killed: list[int] = []

    def kill_once(digest: str) -> None:
        if digest == optimizer and not killed:
            killed.append(place.worker_peer.daemon_pid)
            os.kill(killed[0], signal.SIGKILL)

    place.on_read = kill_once
    await place.until(lambda: optimizer in place.wanted())
    assert killed
    assert place.decided(ref)[0] == "announced"
    assert place.store.has(manifest.blob("model.safetensors").digest)
    assert await place.until_decided(ref) == ("durable", "")
    assert place.worker_peer.restarts == 1
    assert place.wanted() == set()


async def test_a_new_collector_goes_on_with_what_the_old_one_had_brought(place: Place) -> None:
    await place.connect()
    ref, manifest = place.training(5)
    model, optimizer = (
        manifest.blob(name).digest for name in ("model.safetensors", "optimizer.safetensors")
    )
    half = asyncio.Event()
    place.on_read = lambda digest: half.set() if digest == optimizer else None
    await place.collector.collect()
    async with asyncio.timeout(60):
        await half.wait()
    await place.collector.stop()
    assert place.decided(ref)[0] == "announced"
    asked = place.asked.count(model)
    place.collector = place.new_collector()
    assert await place.until_decided(ref) == ("durable", "")
    assert place.asked.count(model) == asked, "what is here is not fetched again"


async def test_a_blob_deleted_under_a_finished_check_is_brought_again_before_it_counts(
    place: Place,
) -> None:
    """Two checkpoints may have a blob in common; the end of one deletes what the other needs."""
    await place.connect()
    ref, manifest = place.training(5)
    model = manifest.blob("model.safetensors").digest
    deletions = []

    class Deleting(BlobStore):
        def path(self, digest: str) -> Path:
            found = super().path(digest)
            if digest == optimizer and not deletions:
                deletions.append(model)
                self.delete(model)
            return found

    optimizer = manifest.blob("optimizer.safetensors").digest
    place.store = Deleting(place.store.root)
    place.collector = place.new_collector()
    assert await place.until_decided(ref) == ("durable", "")
    assert deletions == [model]
    assert set(place.store.digests()) == digests_of(ref, manifest)
    assert (
        json.loads(place.store.path(manifest.blob("state.json").digest).read_bytes())["step"] == 5
    )


async def test_a_full_disk_is_told_now_and_then_and_collecting_goes_on_when_it_has_room(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    await place.connect()
    ref, _ = place.training(10)

    def told() -> int:
        return sum("the disk failed" in record.message for record in caplog.records)

    with monkeypatch.context() as patch:
        patch.setattr("shared.blobs.partial.os.pwrite", full)
        await place.until(lambda: told() == 1)
        since = place.clock()
        await place.until(lambda: told() == 2)
        assert place.clock() - since >= DISK_RETRY_SECONDS / 2
    assert (await place.until_decided(ref))[0] == "durable"


async def test_what_is_here_under_another_size_is_refused_and_not_read(place: Place) -> None:
    ours = place.store.add_bytes(bytes(1 << 20))
    lie = BlobRef(digest=ours.digest, size=100)
    names = f"{ours.digest}: 100 bytes, expected {1 << 20}"
    with place.ledger.begin() as connection:
        beat = AssignmentHeartbeat(
            fencing=place.fencing,
            step=1,
            loss=None,
            tokens_per_second=0.0,
            checkpoint=lie,
            checkpoint_step=1,
        )
        queries.renew_lease(
            connection,
            place.assignment,
            beat,
            worker=place.worker,
            flops_per_second=1e9,
            now=place.clock(),
            heartbeat_seconds=HEARTBEAT_SECONDS,
        )
    state, reason = await place.until_decided(lie)
    assert (state, names in reason) == ("refused", True)

    await place.connect()
    for step, name in enumerate(("state.json", "model.safetensors"), start=2):
        spoilt = place.manifest(sound(place.spec, step), "training", blobs={name: lie})
        state, reason = await place.until_decided(place.announce(spoilt))
        assert (state, names in reason) == ("refused", True)


async def test_words_that_no_ledger_can_keep_stop_no_refusal(place: Place) -> None:
    await place.connect()
    files = sound(place.spec, 3)
    path = files.written(place.swarm.folder / "named")["model.safetensors"]
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8 : 8 + length])
    first = min(tensors, key=lambda name: tensors[name]["data_offsets"])
    begin, end = tensors[first]["data_offsets"]
    tensors["\ud800\x00"] = {**tensors.pop(first), "data_offsets": [begin + 4, end + 4]}
    header = json.dumps(tensors).encode()
    spoilt = place.theirs.add_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    manifest = place.manifest(files, "training", blobs={"model.safetensors": spoilt})
    state, reason = await place.until_decided(place.announce(manifest))
    assert state == "refused"
    assert reason.startswith("model.safetensors: ")
    assert "begins at byte" in reason

    key = "\x00" + "k" * 9000
    data = json.dumps({**manifest.model_dump(mode="json"), key: 1}).encode()
    state, reason = await place.until_decided(place.announce_bytes(data, 4))
    assert state == "refused"
    assert "\x00" not in reason
    assert len(reason) <= MAX_REASON
