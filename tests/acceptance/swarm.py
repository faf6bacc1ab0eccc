"""A whole swarm as real processes in a temporary folder: start, watch, kill, clean up."""

import contextlib
import json
import os
import pydoc_data.topics
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

BIN = Path(sys.executable).parent
POLL = threading.Event()
"""Never set: waiting on it spaces two looks at a condition."""

RUN_FILE = """\
[run]
name = "small"
folder = "."
[listen]
api_port = {api}
network_port = {network}
libp2p_port = {libp2p}
{listen}
[timing]
heartbeat_seconds = 1
checkpoint_seconds = 1
[tokenizer]
vocab_size = 512
[shape]
hidden_size = 32
num_layers = 2
num_heads = 2
context_length = 64
[widths]
S = 48
M = 64
L = 80
[general]
max_bytes = 400_000
[[general.sources]]
path = "{stdlib}/email/*.py"
document = "paragraphs:2000"
[domains.processes]
max_bytes = 250_000
[[domains.processes.sources]]
path = "{stdlib}/multiprocessing/*.py"
document = "paragraphs:500"
[domains.asyncio]
max_bytes = 250_000
[[domains.asyncio.sources]]
path = "{stdlib}/asyncio/*.py"
document = "paragraphs:500"
[domains.topics]
max_bytes = 250_000
[[domains.topics.sources]]
path = "topics/*.txt"
document = "paragraphs:500"
[seed]
kind = "nested"
[seed.recipe]
num_steps = 300
warmup_steps = 20
peak_learning_rate = 1e-2
final_learning_rate = 1e-3
micro_batch = 8
sequence_length = 64
[recipe]
warmup_steps = 5
peak_learning_rate = 4e-3
final_learning_rate = 1e-3
micro_batch = 8
sequence_length = 64
max_epochs = 1000
schedule_steps = {schedule_steps}
[plan]
schemes = {schemes}
homogeneous_steps = {steps}
"""


class Swarm:
    """One run and its processes. Use as a context manager; leaving it ends every process."""

    listen = ""
    """More lines of the run file's [listen]."""

    schemes = '["MHo-IHo", "MHe-IHo"]'
    worker_listen = "/ip4/127.0.0.1/tcp/0"

    def __init__(self, folder: Path, *, steps: int) -> None:
        self.folder = folder
        self.run_folder = folder / "run"
        self.steps = steps
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.prefixes: dict[str, list[str]] = {}
        self.ports = _free_ports()
        self.url = f"http://127.0.0.1:{self.ports['api']}"
        self.http = httpx.Client(transport=self.transport(), timeout=10)

    def __enter__(self) -> "Swarm":
        subprocess.run(
            [str(BIN / "hdee-coordinator"), "init", str(self.run_folder)],
            check=True,
            capture_output=True,
        )
        topics = self.run_folder / "topics"
        topics.mkdir()
        for name, text in pydoc_data.topics.topics.items():
            (topics / f"{name.replace('/', '_')}.txt").write_text(text)
        self.run_file.write_text(
            RUN_FILE.format(
                stdlib=sysconfig.get_paths()["stdlib"],
                listen=self.listen,
                schemes=self.schemes,
                steps=self.steps,
                schedule_steps=2 * self.steps,
                **self.ports,
            )
        )
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
        self.http.close()

    def transport(self) -> httpx.HTTPTransport:
        """How this process reaches the api: a new connection for each request."""
        return httpx.HTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))

    @property
    def run_file(self) -> Path:
        return self.run_folder / "run.toml"

    def serve(self, *flags: str) -> None:
        self.start("coordinator", "hdee-coordinator", "serve", str(self.run_file), *flags)
        self.wait_for("the coordinator is ready", self.ready, seconds=240)

    def ready(self) -> bool:
        try:
            return self.http.get(f"{self.url}/readyz", timeout=2).is_success
        except httpx.HTTPError:
            return False

    def join(self, name: str, *flags: str) -> None:
        self.start(
            name,
            *("hdee-worker", "join", self.url, "--yes", "--name", name, "--threads", "1"),
            *("--folder", str(self.folder / name)),
            *(() if "--http-only" in flags else ("--listen", self.worker_listen)),
            *flags,
        )

    def start(self, name: str, command: str, *arguments: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                [*self.prefixes.get(name, ()), str(BIN / command), *arguments],
                stdout=output,
                stderr=output,
            )

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def kill_role(self, role: str) -> int:
        """SIGKILL to one role of the coordinator; returns the pid that died."""
        pid = self.role_pid(role)
        os.kill(pid, signal.SIGKILL)
        return pid

    def role_pid(self, role: str) -> int:
        return int(json.loads((self.run_folder / "state" / "roles.json").read_text())[role])

    def get(self, path: str) -> Any:
        return self.http.get(self.url + path).raise_for_status().json()

    def assignments(self) -> list[dict[str, Any]]:
        with contextlib.suppress(httpx.HTTPError):
            return list(self.get("/v1/assignments"))
        return []

    def names(self) -> dict[str, str]:
        return {view["worker"]: view["name"] for view in self.get("/v1/workers")}

    def finished(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return bool(self.get("/v1/status")["phase"] == "finished")
        return False

    def wait_for(self, what: str, condition: Callable[[], Any], *, seconds: float) -> Any:
        """What `condition` returns once it is true; fails with the processes' last words."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = condition()
            if value:
                return value
            for name, process in self.processes.items():
                if process.poll() or (name == "coordinator" and process.poll() is not None):
                    raise AssertionError(f"{name} ended: {what}\n{self.last_words()}")
            POLL.wait(0.2)
        raise AssertionError(f"not within {seconds} s: {what}\n{self.last_words()}")

    def said(self, name: str) -> str:
        """What a process said on its screen."""
        return (self.folder / f"{name}.out").read_text()

    def logged(self, name: str) -> str:
        """The log of a worker."""
        return (self.folder / name / "worker.log").read_text()

    def role_logged(self, role: str) -> str:
        """The log of one role of the coordinator."""
        return (self.run_folder / "state" / "logs" / f"{role}.log").read_text()

    def last_words(self) -> str:
        files = [*self.folder.glob("*.out"), *self.folder.glob("*/worker.log")]
        files += (self.run_folder / "state" / "logs").glob("*.log")
        return "\n".join(f"--- {path}\n{path.read_text()[-1500:]}" for path in files)


def running_in(folder: Path) -> list[str]:
    """The command lines of processes that work in `folder`."""
    lines = (process.info["cmdline"] for process in psutil.process_iter(["cmdline"]))
    return [" ".join(line) for line in lines if any(str(folder) in word for word in line or [])]


def _free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    return dict(zip(("api", "network", "libp2p"), ports, strict=True))
