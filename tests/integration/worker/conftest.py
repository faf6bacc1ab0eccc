"""Real roles of a coordinator as processes, and real agents, in this process or as processes."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from coordinator.folders import RunFolders
from coordinator.init import init_folder
from coordinator.ledger import Ledger, queries
from coordinator.text.prepared import Prepared, PreparedFile
from protocol.assignments import FINAL
from protocol.blobs import ShardManifest
from protocol.specs import ExpertSpec
from shared.blobs import BlobStore
from shared.clock import now
from shared.identity import Identity
from shared.shards import write_shard
from worker.agent import Agent
from worker.capability import Probed
from worker.folder import WorkerFolder
from worker.owndata.texts import OwnText
from worker.settings import JoinSettings

PAUSE = threading.Event()
"""Never set: waiting on it spaces two looks at a condition."""

RUN_FILE = """\
[run]
name = "tiny"
[listen]
api_port = {api}
network_port = {network}
libp2p_port = {libp2p}
[timing]
heartbeat_seconds = 1
checkpoint_seconds = 0.5
[tokenizer]
vocab_size = 260
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
sources = [{{path = "general/*.txt", document = "file"}}]
[domains.python]
sources = [{{path = "python/*.txt", document = "file"}}]
difficulty = "easy"
[domains.manuals]
sources = [{{path = "manuals/*.txt", document = "file"}}]
difficulty = "difficult"
[seed]
kind = "nested"
[seed.recipe]
num_steps = 10
warmup_steps = 1
peak_learning_rate = 1e-2
final_learning_rate = 1e-3
micro_batch = 2
sequence_length = 32
[recipe]
warmup_steps = 1
peak_learning_rate = 1e-2
final_learning_rate = 1e-3
micro_batch = 2
sequence_length = 32
schedule_steps = 10
[plan]
schemes = ["MHo-IHo"]
homogeneous_steps = 10
"""

GIVEN_CAPABILITY = """\
import sys
from protocol.capability import Capability
from worker import capability, main
given = Capability.model_validate_json(sys.argv.pop(1))
capability.probe = lambda **_: capability.Probed(given)
main.main()
"""
"""`hdee-worker` without its ten seconds of measuring."""


def wait_for(what: str, condition: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    """What `condition` returns once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        PAUSE.wait(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


async def until(what: str, condition: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    """The same, for tests whose agent runs in this process."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


class Said:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.step = 0

    def say(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, event: dict[str, Any], *, durable_step: int | None) -> None:
        del durable_step
        self.step = event["step"]

    def __contains__(self, words: str) -> bool:
        return any(words in line for line in self.lines)


class Roles:
    """The api and network roles over one ledger, and what a test asks of them."""

    def __init__(self, root: Path, ports: list[int], make: Any) -> None:
        self.make = make
        self.root = root / "run"
        self.folders = RunFolders(self.root)
        api, network, libp2p = ports
        self.url = f"http://127.0.0.1:{api}"
        init_folder(self.root)
        self.run_file = self.root / "run.toml"
        self.run_file.write_text(RUN_FILE.format(api=api, network=network, libp2p=libp2p))
        self.folders.create()
        self.store = BlobStore(self.folders.blobs)
        self.shard = self._prepare()
        self.ledger = Ledger(self.folders.ledger_url)
        self._create_run()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._seed = 0

    def _prepare(self) -> ShardManifest:
        draw = np.random.default_rng(0)
        documents = [(np.concatenate([[1], draw.integers(3, 256, 200)]), 200) for _ in range(20)]
        path = self.root / "train.shard"
        write_shard(path, documents, vocab_size=256)
        blob = self.store.add_file(path)
        shard = ShardManifest(
            domain="python",
            split="train",
            blob=blob,
            num_documents=20,
            num_tokens=20 * 201,
            num_bytes=20 * 200,
            vocab_size=256,
        )
        prepared = Prepared(
            tokenizer=self.store.add_bytes(b"tokenizer"), vocab_size=256, shards=(shard,)
        )
        file = PreparedFile(text={}, prepared=prepared)
        self.folders.prepared.write_text(file.model_dump_json())
        return shard

    def _create_run(self) -> None:
        coordinator = Identity.load(self.folders.coordinator_key).peer_id
        self.ledger.create()
        with self.ledger.begin() as connection:
            queries.create_run(connection, run="tiny", coordinator=coordinator, now=now())
            queries.add_shard(connection, self.shard, now=now())
            queries.set_phase(connection, "training", "", now())

    def start(self, role: str) -> None:
        with (self.root / f"{role}.out").open("ab") as output:
            self.processes[role] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "coordinator.main", "serve", str(self.run_file)),
                    *("--role", role, "--supervised"),
                ],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )

    def ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError), self.ledger.read() as connection:
            listening = httpx.get(f"{self.url}/v1/run", timeout=2).is_success
            return listening and bool(queries.get_run(connection).maddrs)
        return False

    def kill(self, role: str) -> None:
        process = self.processes.pop(role)
        process.kill()
        process.wait()
        process.stdin.close()

    def orphan(self, role: str) -> int:
        """Closes the pipe that a role's parent holds, as its death would; the exit code."""
        process = self.processes.pop(role)
        process.stdin.close()
        return process.wait(90)

    def ask(self, role: str, signal_number: int) -> int:
        """Sends a role a signal; the exit code."""
        process = self.processes.pop(role)
        process.send_signal(signal_number)
        code = process.wait(90)
        process.stdin.close()
        return code

    def twin(self, role: str) -> int:
        """Starts a role a second time, where the first has taken the port; the exit code."""
        first = self.processes.pop(role)
        self.start(role)
        second = self.processes.pop(role)
        self.processes[role] = first
        code = second.wait(90)
        second.stdin.close()
        return code

    def open_assignment(self, *, num_steps: int = 1_000_000) -> str:
        """An assignment of its own for each test; those of earlier tests are cancelled."""
        self._seed += 1
        return self.open_spec(self.make.spec(num_steps=num_steps, rng_seed=self._seed))

    def open_spec(self, spec: ExpertSpec) -> str:
        """An assignment of this spec on the run's text; all others are cancelled."""
        spec = spec.model_copy(update={"train_shard": self.shard.blob.digest})
        self.cancel_all()
        with self.ledger.begin() as connection:
            return queries.add_assignment(
                connection, spec, shard=self.shard.blob, schemes=("a",), now=now()
            )

    def cancel_all(self) -> None:
        """No work is left of earlier tests."""
        with self.ledger.begin() as connection:
            for row in queries.all_assignments(connection):
                if row.state not in FINAL:
                    queries.cancel_assignment(connection, row, reason="next test", now=now())

    def row(self, assignment: str) -> queries.AssignmentRow:
        with self.ledger.read() as connection:
            return queries.get_assignment(connection, assignment)

    def state(self, assignment: str) -> str:
        return self.row(assignment).state.value

    def told_step(self, assignment: str) -> int:
        """The step that its holder last told, 0 without one."""
        with self.ledger.read() as connection:
            return max(
                (one.step for one in queries.live_attempts(connection, [assignment])), default=0
            )

    def durable_step(self, assignment: str) -> int:
        with self.ledger.read() as connection:
            return queries.durable_steps(connection).get(assignment, 0)

    def entries(self, assignment: str) -> list[str]:
        """The kinds of the ledger's entries about an assignment, with a release's reason."""
        with self.ledger.read() as connection:
            return [
                f"{entry.kind}:{ended_because(entry)}" if entry.kind == "release" else entry.kind
                for entry in queries.read_entries(connection)
                if entry.facts.get("assignment") == assignment
            ]

    def stop(self) -> None:
        for role in tuple(self.processes):
            self.kill(role)
        self.ledger.close()


def ended_because(entry: queries.Entry) -> str:
    """Why the attempt ended that an entry ends."""
    (reason,) = (row.values["reason"] for row in entry.rows if row.table == "attempts")
    return str(reason)


@pytest.fixture(scope="session")
def roles(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]], make: Any
) -> Any:
    """A coordinator that serves for all tests of this folder."""
    roles = Roles(tmp_path_factory.mktemp("roles"), free_ports(3), make)
    try:
        roles.start("api")
        roles.start("network")
        wait_for("api and network serve", roles.ready, seconds=240)
        yield roles
    finally:
        roles.stop()


class Volunteer:
    """An agent in this process, with a folder of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        url: str,
        http_only: bool = False,
        own_texts: tuple[OwnText, ...] = (),
        **manners: Any,
    ) -> None:
        self.folder = WorkerFolder(folder)
        self.said = Said()
        settings = JoinSettings(
            url=url,
            folder=folder,
            name=folder.name,
            num_threads=1,
            listen=("/ip4/127.0.0.1/tcp/0",),
            http_only=http_only,
            own_texts=own_texts,
            niceness=0,
            **manners,
        )
        self.agent = Agent(settings, self.folder, self.said)
        self.task = asyncio.create_task(self.agent.run())

    @property
    def peer_id(self) -> str:
        return self.folder.identity.peer_id

    async def stop(self) -> int:
        """Ends it in good order; its exit code."""
        self.agent.stop()
        try:
            return await asyncio.wait_for(self.task, 60)
        finally:
            self.folder.close()


@pytest.fixture
async def volunteers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, roles: Any, make: Any) -> Any:
    """Starts agents in this process; measuring is left out, its figure is given."""
    probed = Probed(make.capability())
    monkeypatch.setattr("worker.capability.probe", lambda **_: probed)
    started: list[Volunteer] = []

    def start(name: str, **changes: Any) -> Volunteer:
        facts = {"url": roles.url, **changes}
        started.append(Volunteer(tmp_path / name, **facts))
        return started[-1]

    yield start
    for volunteer in started:
        volunteer.task.cancel()
        await asyncio.gather(volunteer.task, return_exceptions=True)
        volunteer.folder.close()


class Command:
    """`hdee-worker join` as a process; what it prints is kept."""

    def __init__(self, folder: Path, url: str, capability: Any, flags: tuple[str, ...]) -> None:
        folder.parent.mkdir(exist_ok=True)
        self.output = folder.with_suffix(".out")
        self.folder = folder
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", GIVEN_CAPABILITY, capability.model_dump_json()),
                    *("join", url, "--yes", "--folder", str(folder), "--threads", "1"),
                    *("--listen", "/ip4/127.0.0.1/tcp/0", "--nice", "0", *flags),
                ],
                stdout=output,
                stderr=output,
            )

    @property
    def said(self) -> str:
        return self.output.read_text()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def commands(tmp_path: Path, make: Any) -> Any:
    """Starts `hdee-worker` processes and ends them, and their trainers, after the test."""
    started: list[Command] = []

    def start(name: str, url: str, *flags: str) -> Command:
        started.append(Command(tmp_path / name, url, make.capability(), flags))
        return started[-1]

    yield start
    for command in started:
        if command.process.poll() is None:
            command.kill()
    assert trainers(tmp_path) == []


def trainers(folder: Path) -> list[int]:
    """Process ids of the trainers that work under `folder`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "worker.trainer" in words and any(str(folder) in word for word in words):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
    return found


def steps_done(folder: Path) -> int:
    """The newest step of which a trainer's checkpoint lies under a worker's folder."""
    states = (folder / "work").glob("*/checkpoints/step-*/state.json")
    steps = [0]
    for state in states:
        with contextlib.suppress(OSError):
            steps.append(json.loads(state.read_bytes())["step"])
    return max(steps)


@pytest.fixture
def tools() -> Any:
    """The functions above, for tests, which cannot import from here."""

    class Tools:
        wait_for = staticmethod(wait_for)
        until = staticmethod(until)
        trainers = staticmethod(trainers)
        steps_done = staticmethod(steps_done)
        given_capability = GIVEN_CAPABILITY
        kill = staticmethod(lambda pid: os.kill(pid, signal.SIGKILL))

    return Tools
