"""A coordinator's side and a worker's, over real peers, with checkpoints to be collected."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select

from coordinator.ledger import Ledger, queries
from coordinator.ledger.tables import checkpoints
from coordinator.lifecycle import Holder
from coordinator.network.collector import Collector
from protocol.blobs import BlobRef
from protocol.manifests import FILES, CheckpointManifest, ManifestFile, TrainerState
from protocol.messages import AssignmentHeartbeat, Submission
from protocol.specs import ExpertSpec
from shared import tensorfiles
from shared.blobs import BlobStore
from shared.exchange.exchange import Exchange
from shared.swarm.peer import Peer

HEARTBEAT_SECONDS = 1e6
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


def digests_of(ref: BlobRef, manifest: CheckpointManifest) -> set[str]:
    return {ref.digest, *(file.blob.digest for file in manifest.files)}
