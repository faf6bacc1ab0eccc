"""A tiny run over a real ledger and real shards, with checkpoints that the real trainer made."""

import logging
import random
import shutil
import threading

import pytest
import torch

from coordinator.folders import RunFolders
from coordinator.ledger import Ledger, queries
from coordinator.lifecycle import Holder
from coordinator.runfile import load_run_file
from coordinator.scoring.pulse import Pulse
from coordinator.scoring.scorer import Scorer
from coordinator.text.prepare import prepare
from protocol.capability import Capability
from protocol.manifests import CheckpointManifest, ManifestFile
from protocol.messages import Submission
from shared.blobs import BlobStore
from shared.identity import Identity
from shared.training.assignment import TrainerAssignment
from tests.integration.scorer.bench import Bench
from worker.trainer import loop

RUN_FILE = """
[run]
name = "tiny"
[tokenizer]
vocab_size = 320
[shape]
hidden_size = 32
num_layers = 2
num_heads = 2
context_length = 32
[widths]
S = 32
M = 48
L = 64
[general]
sources = [{path = "general/*.txt", document = "split:(?m)^#"}]
[domains.cooking]
sources = [{path = "cooking/*.txt", document = "split:(?m)^#"}]
difficulty = "difficult"
[domains.drama]
sources = [{path = "drama/*.txt", document = "split:(?m)^#"}]
difficulty = "easy"
[domains.python]
sources = [{path = "python/*.txt", document = "split:(?m)^#"}]
difficulty = "moderate"
[seed]
kind = "nested"
[seed.recipe]
num_steps = 120
warmup_steps = 5
peak_learning_rate = 1e-2
final_learning_rate = 1e-3
micro_batch = 8
sequence_length = 32
[recipe]
warmup_steps = 2
peak_learning_rate = 1e-2
final_learning_rate = 1e-3
micro_batch = 8
sequence_length = 32
schedule_steps = 60
trains = "ffn_embeddings"
[plan]
schemes = ["MHo-IHo", "MHe-IHo"]
homogeneous_steps = 40
"""
COOKING = "stir the onion with salt and oil then add water to pan"
DRAMA = "o my lord thy crown is lost what news of king"
PYTHON = "def return self value for item in list if not none"
WORDS = {
    name: text.split()
    for name, text in (("cooking", COOKING), ("drama", DRAMA), ("python", PYTHON))
}
HEARTBEAT = 10.0


def chain(words, draw):
    """A sentence in which a word is mostly followed by the same one: what an expert can learn."""
    index, said = draw.randrange(len(words)), []
    for _ in range(14):
        said.append(words[index])
        index = index + 1 if draw.random() < 0.9 else draw.randrange(len(words))
        index %= len(words)
    return " ".join(said)


def write_run(root):
    draw = random.Random(11)
    everything = [word for words in WORDS.values() for word in words]
    texts = {name: [chain(words, draw) for _ in range(600)] for name, words in WORDS.items()}
    texts["general"] = [" ".join(draw.choices(everything, k=14)) for _ in range(600)]
    for name, documents in texts.items():
        (root / name).mkdir()
        (root / name / "0.txt").write_text("".join(f"# {text}\n" for text in documents), "utf-8")
    (root / "keys").mkdir()
    (root / "keys" / "split.key").write_text("ab" * 32, "ascii")
    (root / "run.toml").write_text(RUN_FILE, "utf-8")


class TinyRun:
    """A run's folder with its ledger, a scorer that a test steps, and volunteers to do the work."""

    def __init__(self, root, trained):
        self.run = load_run_file(root / "run.toml")
        self.folders = RunFolders(self.run.folder)
        self.prepared = prepare(self.run, self.folders, progress=print)
        self.store = BlobStore(self.folders.blobs)
        self.ledger = Ledger(self.folders.ledger_url)
        self.ledger.create()
        self.trained = trained
        self.time = 1000.0
        self.workers = []
        with self.ledger.begin() as connection:
            queries.create_run(
                connection, run="tiny", coordinator=self._peer(root, "coordinator"), now=self.time
            )
            for number in range(4):
                worker = self._peer(root, f"worker-{number}")
                queries.register_worker(connection, registration(worker), self.time)
                self.workers.append(worker)
        self.scorer = self.new_scorer()

    @staticmethod
    def _peer(root, name):
        return Identity.load_or_create(root / "keys" / f"{name}.key").peer_id

    def now(self):
        return self.time

    def new_scorer(self, *, stop=None, now=None):
        """As after a restart of the role: nothing is remembered."""
        now, log = now or self.now, logging.getLogger("test.scorer")
        pulse = Pulse(beat=print, stop=stop or threading.Event(), now=now, log=log)
        place = (self.run, self.folders, self.prepared, self.ledger)
        return Scorer(*place, pulse=pulse, now=now, log=log)

    def snapshot(self):
        with self.ledger.read() as connection:
            return queries.snapshot(connection)

    def rows(self, kind=None, domain=None):
        return [
            row
            for row in self.snapshot().assignments
            if kind in (None, row.spec.kind) and domain in (None, row.spec.domain)
        ]

    def row(self, assignment):
        with self.ledger.read() as connection:
            return queries.get_assignment(connection, assignment)

    def settle(self):
        """Steps until the scorer has nothing more to do."""
        for _ in range(50):
            if not self.scorer.step():
                return
        raise AssertionError("the scorer does not come to rest")

    def parent_of(self, spec):
        """The parent's file and spec, None for a seed."""
        if spec.parent is None:
            return None
        with self.ledger.read() as connection:
            parent = queries.accepted(connection)[spec.parent]
        return self.store.path(parent.manifest.blob("model.safetensors").digest), parent.spec

    def train(self, spec):
        """The expert's file, from the trainer, once for all tests."""
        folder = self.trained / spec.digest
        file = folder / "expert" / "model.safetensors"
        if not file.exists():
            parent = self.parent_of(spec)
            assignment = TrainerAssignment(
                spec=spec,
                shard=str(self.store.path(spec.train_shard)),
                parent=None if parent is None else str(parent[0]),
                parent_shape=None if parent is None else parent[1].shape,
                resume=None,
                folder=str(folder),
                device="cpu",
                num_threads=1,
                checkpoint_seconds=1000.0,
            )
            loop.run(
                loop.load(assignment),
                folder=folder,
                checkpoint_seconds=1000.0,
                stopping=lambda: False,
            )
        return file

    def hand_in(self, row, file=None, *, worker=0):
        """A worker leases `row`, submits `file` (its honest expert by default); it is collected."""
        file = file or self.train(row.spec)
        name, assignment = self.workers[worker], row.assignment
        self.time = max(self.time, self.row(assignment).standing.not_before)
        manifest = CheckpointManifest(
            kind="expert",
            spec=row.spec.digest,
            worker=name,
            step=row.spec.train.num_steps,
            loss=1.0,
            files=(ManifestFile(name="model.safetensors", blob=self.store.add_file(file)),),
        )
        ref = self.store.add_bytes(manifest.model_dump_json().encode())
        with self.ledger.begin() as connection:
            timing = {"now": self.time, "heartbeat_seconds": HEARTBEAT}
            terms = queries.OfferTerms(
                assignment=assignment, worker=name, free_memory_bytes=10**9, reason="test"
            )
            offered = queries.offer_assignment(connection, terms, **timing)
            holder = Holder(worker=name, fencing=offered.standing.fencing)
            queries.acknowledge_lease(connection, assignment, holder, **timing)
            submission = Submission(
                request_id="0" * 32,
                fencing=offered.standing.fencing,
                manifest=ref,
                tokens_per_second=1.0,
                train_seconds=1.0,
            )
            queries.submit_expert(connection, assignment, submission, worker=name, **timing)
            for announced in queries.announced_checkpoints(connection):
                queries.mark_durable(connection, announced.checkpoint_id, manifest, self.time)

    def to_experts(self):
        """Through the seed to the planned experts."""
        self.settle()
        self.hand_in(self.rows("seed")[0])
        self.settle()

    def decision_on(self, row, file, *, worker=0):
        """The state and the reason that the ledger shows after the scorer saw this submission."""
        self.hand_in(row, file, worker=worker)
        self.settle()
        after = self.row(row.assignment)
        return after.state, after.reason

    def to_the_end(self):
        self.to_experts()
        for row in self.rows("expert"):
            self.hand_in(row)
            self.settle()


def registration(worker):
    return queries.Registration(
        worker=worker,
        name="",
        software_version="0",
        capability=Capability(
            device="cpu",
            device_name="test",
            num_threads=1,
            total_memory_bytes=10**9,
            free_memory_bytes=10**9,
            free_disk_bytes=10**9,
            flops_per_second=1e9,
            bfloat16=False,
        ),
        maddrs=(),
        token_digest=worker,
        token_expires_at=1e12,
        certificate_expires_at=1e12,
        allowed_at=0.0,
    )


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """The prepared run, and a folder for what the trainer makes, both for all tests."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("workshop")
    (root / "run").mkdir()
    write_run(root / "run")
    run = load_run_file(root / "run" / "run.toml")
    prepare(run, RunFolders(run.folder), progress=print)
    return root


@pytest.fixture
def tiny(workshop, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(workshop / "run", root)
    tiny = TinyRun(root, workshop / "trained")
    yield tiny
    tiny.ledger.close()


@pytest.fixture
def bench(tiny):
    tiny.settle()
    return Bench(tiny)
