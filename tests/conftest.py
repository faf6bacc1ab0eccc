"""What many tests need: a clock that stands still, a temporary ledger, tiny specs, the real app."""

import hashlib
import logging
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import hypothesis
import pytest
from fastapi import FastAPI

sys.path.insert(0, str(Path(__file__).parent))

from databases import (  # noqa: F401
    backend,
    database,
    postgres_server,
    postgres_template,
    prepared_database,
    sqlite_template,
)

from coordinator.api.app import ApiSettings, create_app, tick
from coordinator.ledger import Ledger, queries
from protocol.blobs import BlobRef, ShardManifest, Split
from protocol.capability import Capability
from protocol.manifests import CheckpointManifest, ManifestFile
from protocol.specs import ExpertSpec, ModelShape, TrainSpec
from shared.identity import Identity

hypothesis.settings.register_profile("every-change", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("every-change")
"""No example is wrong for being slow: machines are, too. A change is judged by the same examples
each time; `make search` looks for new ones."""

HEARTBEAT_SECONDS = 10.0


@pytest.fixture(autouse=True)
def same_log() -> Iterator[None]:
    """No test leaves its log to the next: a program's `main` opens one in a folder that goes."""
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(kept):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


class FrozenClock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def blob_of(text: str, size: int = 1000) -> BlobRef:
    return BlobRef(digest=digest_of(text), size=size)


def tiny_capability(**changes: object) -> Capability:
    values: dict[str, object] = {
        "device": "cpu",
        "device_name": "test",
        "num_threads": 1,
        "total_memory_bytes": 4_000_000_000,
        "free_memory_bytes": 2_000_000_000,
        "free_disk_bytes": 10_000_000_000,
        "flops_per_second": 1e9,
        "bfloat16": False,
    }
    return Capability.model_validate({**values, **changes})


def tiny_spec(
    *,
    domain: str = "python",
    parent: str | None = None,
    ffn_width: int = 64,
    num_steps: int = 20,
    rng_seed: int = 0,
) -> ExpertSpec:
    return ExpertSpec(
        kind="seed" if parent is None else "expert",
        domain=domain,
        shape=ModelShape(
            vocab_size=256,
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            ffn_width=ffn_width,
            context_length=32,
        ),
        nested_widths=(),
        train_shard=digest_of(f"{domain} train"),
        parent=parent,
        trains="all",
        train=TrainSpec(
            num_steps=num_steps,
            schedule_steps=num_steps,
            warmup_steps=2,
            peak_learning_rate=1e-3,
            final_learning_rate=1e-4,
            micro_batch=2,
            accumulation=1,
            sequence_length=32,
            clip_norm=1.0,
            rng_seed=rng_seed,
            compile=False,
        ),
    )


def tiny_shard(domain: str, split: Split) -> ShardManifest:
    return ShardManifest(
        domain=domain,
        split=split,
        blob=blob_of(f"{domain} {split}"),
        num_documents=40,
        num_tokens=4000,
        num_bytes=16000,
        vocab_size=256,
    )


def tiny_manifest(
    spec: ExpertSpec, worker: str, *, step: int | None = None, salt: str = ""
) -> CheckpointManifest:
    """A finished expert's manifest, or with `step` that of a training checkpoint."""
    names = ("model.safetensors",)
    if step is not None:
        names = ("model.safetensors", "optimizer.safetensors", "state.json")
    return CheckpointManifest(
        kind="expert" if step is None else "training",
        spec=spec.digest,
        worker=worker,
        step=spec.train.num_steps if step is None else step,
        loss=2.5,
        files=tuple(
            ManifestFile(name=name, blob=blob_of(f"{spec.digest}{worker}{step}{name}{salt}"))
            for name in names
        ),
    )


@dataclass
class Factories:
    """The builders above, for tests, which cannot import from here."""

    blob: Callable[..., BlobRef] = blob_of
    capability: Callable[..., Capability] = tiny_capability
    spec: Callable[..., ExpertSpec] = tiny_spec
    shard: Callable[..., ShardManifest] = tiny_shard
    manifest: Callable[..., CheckpointManifest] = tiny_manifest


@pytest.fixture(scope="session")
def make() -> Factories:
    return Factories()


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "tampers: changes its ledger behind the ledger's back")


@pytest.fixture
def open_ledger(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Ledger]]:
    """Opens ledgers; when the test is over, each must be what its own entries prove."""
    opened: list[Ledger] = []

    def build(url: str) -> Ledger:
        opened.append(Ledger(url))
        return opened[-1]

    yield build
    for ledger in opened:
        if request.node.get_closest_marker("tampers") is None:
            with ledger.read() as connection:
                verdict = queries.verify_ledger(connection)
            assert verdict.holds, verdict
        ledger.close()


@pytest.fixture
def ledger(
    tmp_path: Path, request: pytest.FixtureRequest, open_ledger: Callable[[str], Ledger]
) -> Ledger:
    """An empty ledger on SQLite, verified when its test is over."""
    path = tmp_path / "ledger.sqlite"
    shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
    return open_ledger(f"sqlite:///{path}")


@pytest.fixture
def coordinator_identity(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / "keys" / "coordinator.key")


@pytest.fixture
def api_settings(request: pytest.FixtureRequest) -> ApiSettings:
    """The defaults of the tests; indirect parameters change some."""
    settings = ApiSettings(
        run="test",
        heartbeat_seconds=HEARTBEAT_SECONDS,
        checkpoint_seconds=5.0,
        enrolment="open",
        trust="all",
        url_secret=b"0123456789abcdef",
        token_key=b"fedcba9876543210",
        admin_token="the operator's token",
    )
    return replace(settings, **getattr(request, "param", {}))


@dataclass
class Api:
    """The real app, in this process, over a temporary ledger and a frozen clock."""

    app: FastAPI
    http: httpx.AsyncClient
    ledger: Ledger
    clock: FrozenClock
    identity: Identity
    settings: ApiSettings

    def tick(self) -> None:
        context = self.app.state.context
        with self.ledger.begin() as connection:
            tick(connection, context)
            context.look_around(connection, context.now())

    def pass_time(self, seconds: float) -> None:
        """Time passes while the api listens."""
        until = self.clock() + seconds
        while self.clock() < until:
            self.clock.advance(min(1.0, until - self.clock()))
            self.tick()


@pytest.fixture
async def api(
    ledger: Ledger,
    clock: FrozenClock,
    coordinator_identity: Identity,
    api_settings: ApiSettings,
) -> AsyncIterator[Api]:
    with ledger.begin() as connection:
        queries.create_run(
            connection, run="test", coordinator=coordinator_identity.peer_id, now=clock()
        )
        for domain in ("python", "manuals"):
            for split in ("train", "dev", "gate", "test"):
                queries.add_shard(connection, tiny_shard(domain, split), now=clock())
        queries.set_network(connection, maddrs=(), blob_url="http://127.0.0.1:9", now=clock())
        queries.set_phase(connection, "training", "", clock())
    app = create_app(ledger=ledger, identity=coordinator_identity, settings=api_settings, now=clock)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.state.context.writer,
        httpx.AsyncClient(transport=transport, base_url="http://coordinator") as http,
    ):
        built = Api(app, http, ledger, clock, coordinator_identity, api_settings)
        built.tick()
        yield built
