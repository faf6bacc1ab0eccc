"""A run that an operator prepared and serves, and workers that ask for work and do none."""

import os
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load.ground import seed_spec
from coordinator.folders import RunFolders
from coordinator.ledger import Ledger, queries
from protocol import PROTOCOL_VERSION
from protocol.blobs import BlobRef
from protocol.capability import Capability
from protocol.digests import digest_value
from protocol.messages import LeaseRequest, RegisterRequest, RegistrationStatement
from shared.identity import Identity

PROGRAM = Path(sys.executable).with_name("hdee-coordinator")
POLL = threading.Event()
"""Never set: waiting on it spaces two looks at a condition."""
RUN_FILE = """
[run]
name = "operated"
[listen]
api_port = {port}
[timing]
heartbeat_seconds = 60
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
sources = [{{path = "general.txt", document = "paragraphs:300"}}]
[domains.cooking]
sources = [{{path = "cooking.txt", document = "split:(?m)^#"}}]
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
schemes = ["MHo-IHo"]
homogeneous_steps = 8
"""
WORDS = {
    "general": "the land has a river and people who trade in the town by the sea",
    "cooking": "stir the onion with salt and oil then add water to the pan",
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def write_run(folder: Path) -> Path:
    """A run file, its keys, and as much text as a run must have."""
    subprocess.run([PROGRAM, "init", folder], check=True, capture_output=True)
    draw = random.Random(7)
    for name, words in WORDS.items():
        documents = [
            f"# {number} " + " ".join(draw.choices(words.split(), k=30)) for number in range(600)
        ]
        separator = "\n\n" if name == "general" else "\n"
        (folder / f"{name}.txt").write_text(separator.join(documents))
    run_file = folder / "run.toml"
    run_file.write_text(RUN_FILE.format(port=free_port()))
    return run_file


def wait_for(condition: Callable[[], Any], *, seconds: float = 90.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        POLL.wait(0.05)
    return found


@dataclass
class Run:
    """A prepared run, whose api is served until the end of the module."""

    run_file: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        (line,) = [
            line for line in self.run_file.read_text().splitlines() if line.startswith("api_port")
        ]
        return f"http://127.0.0.1:{line.split('= ')[1]}"

    @property
    def folders(self) -> RunFolders:
        return RunFolders(self.run_file.parent)

    def prepare(self) -> None:
        subprocess.run(
            [PROGRAM, "serve", self.run_file, "--role", "prepare"],
            check=True,
            capture_output=True,
            env={**os.environ, **self.environment},
        )

    def serve(self) -> None:
        with (self.run_file.parent / "out").open("ab") as out:
            self.process = subprocess.Popen(
                [PROGRAM, "serve", self.run_file, "--role", "api"],
                stdout=out,
                stderr=out,
                env={**os.environ, **self.environment},
            )
        wait_for(self.answers)

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.run_file.parent / "out").read_text()
        try:
            return httpx.get(f"{self.url}/healthz").is_success
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(90)

    def join(self, name: str, **changes: object) -> "Worker":
        identity = Identity(Path("nowhere"), secrets.token_bytes(32))
        capability = Capability.model_validate(
            {
                "device": "cpu",
                "device_name": "test",
                "num_threads": 1,
                "total_memory_bytes": 40 * 10**9,
                "free_memory_bytes": 20 * 10**9,
                "free_disk_bytes": 100 * 10**9,
                "flops_per_second": 1e10,
                "bfloat16": False,
                **changes,
            }
        )
        coordinator = httpx.get(f"{self.url}/v1/run").json()["coordinator"]
        nonce = httpx.post(f"{self.url}/v1/workers/challenge").json()["nonce"]
        statement = RegistrationStatement(
            purpose="hdee-register-v1",
            coordinator=coordinator,
            run="operated",
            worker=identity.peer_id,
            nonce=nonce,
            capability=digest_value(capability),
            protocol_version=PROTOCOL_VERSION,
        )
        request = RegisterRequest(
            worker=identity.peer_id,
            nonce=nonce,
            capability=capability,
            protocol_version=PROTOCOL_VERSION,
            software_version="1.0",
            maddrs=(),
            signature=identity.sign(statement.signed_bytes()),
            name=name,
        )
        answer = httpx.post(
            f"{self.url}/v1/workers/register",
            content=request.model_dump_json(),
            headers={"Content-Type": "application/json"},
        )
        return Worker(self.url, identity.peer_id, capability, answer.json()["token"])

    def add_work(self, count: int) -> list[str]:
        ledger = Ledger(self.environment.get("HDEE_DATABASE", self.folders.ledger_url))
        with ledger.begin() as connection:
            added = [
                queries.add_assignment(
                    connection,
                    spec := seed_spec(number),
                    shard=BlobRef(digest=spec.train_shard, size=1),
                    schemes=(),
                    now=float(number),
                )
                for number in range(count)
            ]
        ledger.close()
        return added


@dataclass
class Worker:
    """A worker that asks for work and does none."""

    url: str
    id: str
    capability: Capability
    token: str

    def lease(self) -> dict[str, Any]:
        request = LeaseRequest(request_id=secrets.token_hex(16), capability=self.capability)
        response = httpx.post(
            f"{self.url}/v1/assignments/lease",
            content=request.model_dump_json(),
            headers={
                "Authorization": f"Bearer {self.token}",
                "Content-Type": "application/json",
            },
        )
        return response.json()
