"""A temporary run: its folder, its keys, and a ledger full of open assignments.

The specs are seeds of one small shape that differ in their random seed alone, so that every worker
may train every one of them. Nobody trains: the load is what the coordinator sees of training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coordinator.folders import RunFolders
from coordinator.init import init_folder
from coordinator.ledger import Ledger, queries
from protocol.blobs import BlobRef, ShardManifest, Split
from protocol.digests import digest_bytes
from protocol.specs import ExpertSpec, ModelShape, TrainSpec
from shared.clock import now
from shared.identity import Identity

RUN = "load"
DOMAIN = "text"
SPLITS: tuple[Split, ...] = ("train", "dev", "gate", "test")
SPECS_A_TRANSACTION = 500

_RUN_FILE = """\
[run]
name = "{run}"
[listen]
api_port = {port}
[timing]
heartbeat_seconds = {heartbeat_seconds}
checkpoint_seconds = 600
[tokenizer]
vocab_size = 4096
[shape]
hidden_size = 128
num_layers = 4
num_heads = 4
context_length = 256
[widths]
S = 384
M = 512
L = 640
[general]
[[general.sources]]
path = "nothing.txt"
document = "file"
[domains.{domain}]
[[domains.{domain}.sources]]
path = "nothing.txt"
document = "file"
[seed]
kind = "nested"
[seed.recipe]
num_steps = 250
warmup_steps = 20
peak_learning_rate = 3e-3
final_learning_rate = 3e-4
micro_batch = 4
sequence_length = 256
[recipe]
warmup_steps = 5
peak_learning_rate = 1.2e-3
final_learning_rate = 6e-4
micro_batch = 4
sequence_length = 256
schedule_steps = 90
[plan]
schemes = ["MHo-IHo"]
homogeneous_steps = 60
"""


@dataclass(frozen=True)
class Ground:
    """Where the run lies and who its coordinator is."""

    folders: RunFolders
    run_file: Path
    url: str
    port: int
    coordinator: str


def make_run(
    root: Path, *, url: str | None, port: int, heartbeat_seconds: float, specs: int
) -> Ground:
    """A new run in `root` with the ledger at `url` (None: its SQLite file) and `specs` open seeds.

    `port` is where its api will listen.
    """
    init_folder(root)
    folders = RunFolders(root)
    folders.create()
    run_file = root / "run.toml"
    run_file.write_text(
        _RUN_FILE.format(run=RUN, domain=DOMAIN, port=port, heartbeat_seconds=heartbeat_seconds)
    )
    ground = Ground(
        folders=folders,
        run_file=run_file,
        url=url or folders.ledger_url,
        port=port,
        coordinator=Identity.load(folders.coordinator_key).peer_id,
    )
    ledger = Ledger(ground.url)
    try:
        ledger.create()
        with ledger.begin() as connection:
            queries.create_run(connection, run=RUN, coordinator=ground.coordinator, now=now())
            for split in SPLITS:
                queries.add_shard(connection, _shard(split), now=now())
            queries.set_network(connection, maddrs=(), blob_url="http://127.0.0.1:9", now=now())
            queries.set_phase(connection, "training", "", now())
        add_specs(ledger, range(specs))
    finally:
        ledger.close()
    return ground


def add_specs(
    ledger: Ledger, rng_seeds: range, *, say: Callable[[int], None] = lambda _done: None
) -> None:
    """One open assignment for each random seed; `say` is told how many are there."""
    train = _shard("train").blob
    for first in range(rng_seeds.start, rng_seeds.stop, SPECS_A_TRANSACTION):
        last = min(first + SPECS_A_TRANSACTION, rng_seeds.stop)
        with ledger.begin() as connection:
            for rng_seed in range(first, last):
                queries.add_assignment(
                    connection, seed_spec(rng_seed), shard=train, schemes=("MHo-IHo",), now=now()
                )
        say(last - rng_seeds.start)


def seed_spec(rng_seed: int) -> ExpertSpec:
    """A small seed."""
    return ExpertSpec(
        kind="seed",
        domain=DOMAIN,
        shape=ModelShape(
            vocab_size=4096,
            hidden_size=128,
            num_layers=4,
            num_heads=4,
            ffn_width=512,
            context_length=256,
        ),
        nested_widths=(),
        train_shard=_shard("train").blob.digest,
        parent=None,
        trains="all",
        train=TrainSpec(
            num_steps=1000,
            schedule_steps=1000,
            warmup_steps=20,
            peak_learning_rate=3e-3,
            final_learning_rate=3e-4,
            micro_batch=4,
            accumulation=1,
            sequence_length=256,
            clip_norm=1.0,
            rng_seed=rng_seed,
            compile=False,
        ),
    )


def _shard(split: Split) -> ShardManifest:
    return ShardManifest(
        domain=DOMAIN,
        split=split,
        blob=BlobRef(digest=digest_bytes(f"{DOMAIN} {split}".encode()), size=1000),
        num_documents=40,
        num_tokens=4000,
        num_bytes=16000,
        vocab_size=4096,
    )
