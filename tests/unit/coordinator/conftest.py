"""A small run on disk: three domains of numbered sentences, and a run file to change.

And a checkpoint that a worker announced, with its files in a store.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.ledger import queries
from coordinator.lifecycle import Holder
from protocol.digests import canonical_bytes
from protocol.manifests import FILES, CheckpointManifest, ManifestFile
from protocol.messages import AssignmentHeartbeat

WORKER = "12D3KooW" + "A" * 44

RUN_FILE = """
[run]
name = "small"
[tokenizer]
vocab_size = 320
[shape]
hidden_size = 16
num_layers = 1
num_heads = 2
context_length = 32
[widths]
S = 16
M = 24
L = 32
[general]
sources = [{path = "general/*.txt", document = "paragraphs:300"}]
[domains.cooking]
sources = [{path = "cooking/*.txt", document = "split:(?m)^#"}]
[domains.drama]
sources = [{path = "drama/*.txt", document = "split:(?m)^#"}]
[domains.python]
sources = [{path = "python/*.txt", document = "split:(?m)^#"}]
[seed]
kind = "nested"
[seed.recipe]
num_steps = 8
warmup_steps = 2
peak_learning_rate = 3e-3
final_learning_rate = 3e-4
micro_batch = 2
sequence_length = 32
[recipe]
warmup_steps = 1
peak_learning_rate = 1e-3
final_learning_rate = 5e-4
micro_batch = 2
sequence_length = 32
schedule_steps = 12
[plan]
schemes = ["MHo-IHo", "MHe-IHo"]
homogeneous_steps = 8
"""

WORDS = {
    "general": "the land has a river and people who trade in the town by the sea",
    "cooking": "stir the onion with salt and oil then add water to the pan",
    "drama": "O my lord thy crown is lost what news of the king and his sword",
    "python": "def return self value for item in list if not None raise class",
}

WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Writes the run's texts, split key and run file, with each (old, new) replaced in it."""

    def write(*changes: tuple[str, str], num_documents: int = 600) -> Path:
        draw = random.Random(7)
        for name, words in WORDS.items():
            (tmp_path / name).mkdir(exist_ok=True)
            documents = [
                f"# {number} " + " ".join(draw.choices(words.split(), k=30))
                for number in range(num_documents)
            ]
            separator = "\n\n" if name == "general" else "\n"
            half = len(documents) // 2
            for part, chunk in enumerate((documents[:half], documents[half:])):
                (tmp_path / name / f"{part}.txt").write_text(separator.join(chunk), "utf-8")
        (tmp_path / "keys").mkdir(exist_ok=True)
        (tmp_path / "keys" / "split.key").write_text("ab" * 32, "ascii")
        text = RUN_FILE
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / "run.toml"
        path.write_text(text, "utf-8")
        return path

    return write


@pytest.fixture
def announce(clock, make):
    """Makes a run of one shard and one training checkpoint, announced: its id and manifest.

    Their blobs are in the store since `at`.
    """

    def add(store, data, at):
        ref = store.add_bytes(data)
        os.utime(store.root / "marks" / f"{ref.digest}.json", (at, at))
        return ref

    def announce(ledger, store, *, at):
        held, now = add(store, b"train shard", at), clock()
        spec = make.spec().model_copy(update={"train_shard": held.digest})
        files = tuple(
            ManifestFile(name=name, blob=add(store, name.encode(), at))
            for name in FILES["training"]
        )
        manifest = CheckpointManifest(
            kind="training", spec=spec.digest, worker=WORKER, step=3, loss=1.0, files=files
        )
        ref = add(store, canonical_bytes(manifest), at)
        with ledger.begin() as connection:
            queries.create_run(connection, run="test", coordinator=WORKER, now=now)
            shard = make.shard(spec.domain, "train").model_copy(update={"blob": held})
            queries.add_shard(connection, shard, now=now)
            assignment = queries.add_assignment(
                connection, spec, shard=shard.blob, schemes=(), now=now
            )
            registration = queries.Registration(
                worker=WORKER,
                name="",
                software_version="1",
                capability=make.capability(),
                maddrs=(),
                token_digest="0" * 64,
                token_expires_at=now + 3600,
                certificate_expires_at=now + 3600,
                allowed_at=now,
            )
            queries.register_worker(connection, registration, now)
            terms = queries.OfferTerms(
                assignment=assignment, worker=WORKER, free_memory_bytes=1, reason=""
            )
            queries.offer_assignment(connection, terms, now=now, heartbeat_seconds=10.0)
            holder = Holder(worker=WORKER, fencing=1)
            queries.acknowledge_lease(
                connection, assignment, holder, now=now, heartbeat_seconds=10.0
            )
            beat = AssignmentHeartbeat(
                fencing=1,
                step=3,
                loss=1.0,
                tokens_per_second=1.0,
                checkpoint=ref,
                checkpoint_step=3,
            )
            queries.renew_lease(
                connection,
                assignment,
                beat,
                worker=WORKER,
                flops_per_second=1e9,
                now=now,
                heartbeat_seconds=10.0,
            )
            (row,) = queries.announced_checkpoints(connection)
        return row.checkpoint_id, manifest

    return announce
