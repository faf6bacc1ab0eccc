"""A real run with one worker, as processes: the two commands that an operator and a volunteer use.

The text is Python's own library. One long seed is trained, then the experts of two domains.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from coordinator.folders import RunFolders
from coordinator.init import init_folder
from coordinator.ledger import Ledger, queries

BIN = Path(sys.executable).parent
READY_SECONDS = 300.0

RUN_FILE = """\
[run]
name = "worker-benchmark"
[listen]
api_port = {api}
network_port = {network}
libp2p_port = {libp2p}
[tokenizer]
vocab_size = 2048
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
max_bytes = 1_000_000
sources = [{{path = "{stdlib}/*.py", document = "paragraphs:2000"}}]
[domains.asyncio]
max_bytes = 250_000
sources = [{{path = "{stdlib}/asyncio/*.py", document = "paragraphs:500"}}]
difficulty = "easy"
[domains.email]
max_bytes = 250_000
sources = [{{path = "{stdlib}/email/*.py", document = "paragraphs:500"}}]
difficulty = "difficult"
[seed]
kind = "nested"
[seed.recipe]
num_steps = {seed_steps}
warmup_steps = 20
peak_learning_rate = 3e-3
final_learning_rate = 3e-4
micro_batch = 4
sequence_length = 256
max_epochs = 1000
[recipe]
warmup_steps = 5
peak_learning_rate = 1e-3
final_learning_rate = 5e-4
micro_batch = 4
sequence_length = 256
schedule_steps = 20_000
max_epochs = 1000
[plan]
schemes = ["MHo-IHo"]
homogeneous_steps = 10_000
"""


class BenchmarkError(Exception):
    """What was to be measured did not come about; the message says what and where to look."""


@dataclass(frozen=True)
class Trained:
    """From the acknowledgement to the submission, by the coordinator's clock, and the training in
    between, by the trainer's: its steps and the local checkpoints between them. Seconds."""

    lease_seconds: float
    train_seconds: float


class Ground:
    """The coordinator and the worker's lives. Leave the context to end every process."""

    def __init__(self, root: Path, *, seed_steps: int) -> None:
        self.root = root
        self.folders = RunFolders(root / "run")
        ports = _free_ports()
        self.url = f"http://127.0.0.1:{ports['api']}"
        init_folder(root / "run")
        self.run_file = root / "run" / "run.toml"
        self.run_file.write_text(
            RUN_FILE.format(seed_steps=seed_steps, stdlib=sysconfig.get_paths()["stdlib"], **ports)
        )
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Ground":
        self._start("coordinator", "hdee-coordinator", "serve", str(self.run_file))
        self.wait_for("the coordinator is ready", self._is_ready)
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            end(process)

    def join(self) -> subprocess.Popen[bytes]:
        """The worker, with one thread; what it says is appended to worker.out."""
        return self._start(
            *("worker", "hdee-worker", "join", self.url, "--yes", "--threads", "1"),
            *("--folder", str(self.root / "worker"), "--listen", "/ip4/127.0.0.1/tcp/0"),
        )

    def said(self) -> str:
        """All that the worker's lives said."""
        path = self.root / "worker.out"
        return path.read_text() if path.exists() else ""

    def seed(self) -> Trained | None:
        """How the accepted seed was trained, once there is one."""
        ledger = Ledger(self.folders.ledger_url)
        try:
            with ledger.read() as connection:
                times = {entry.kind: entry for entry in queries.read_entries(connection)}
                if "accept" not in times:
                    return None
                assignment = times["accept"].facts["assignment"]
                attempt = queries.find_attempt(connection, assignment, fencing=1)
                row = queries.get_assignment(connection, assignment)
            if attempt is None:
                raise BenchmarkError("the seed was not trained in one attempt")
            return Trained(
                lease_seconds=times["submit"].at - times["acknowledge"].at,
                train_seconds=row.spec.train.num_steps
                * row.spec.train.tokens_per_step
                / attempt.tokens_per_second,
            )
        finally:
            ledger.close()

    def wait_for(
        self, what: str, condition: Callable[[], object], *, seconds: float = READY_SECONDS
    ) -> None:
        """Returns when `condition` holds. Raises BenchmarkError."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise BenchmarkError(f"not within {seconds:.0f} s: {what}; see {self.root}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=2).is_success
        return False

    def _start(self, name: str, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.root / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(
                [str(BIN / command), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._processes.append(process)
        return process


def end(process: subprocess.Popen[bytes]) -> None:
    """Asks a process to stop, and kills it if it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def household(worker: subprocess.Popen[bytes]) -> Iterator[psutil.Process]:
    """The agent and its libp2p daemon, without the trainer."""
    agent = psutil.Process(worker.pid)
    yield agent
    for child in agent.children():
        if child.name().startswith("p2pd"):
            yield child


def _free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    return dict(zip(("api", "network", "libp2p"), ports, strict=True))
