"""The operator's verbs as an operator types them, against a run that is really served."""

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import text

from benchmarks.load.ground import seed_spec
from coordinator.folders import RunFolders
from coordinator.ledger import Ledger, queries
from coordinator.main import main
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


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Run]:
    made = Run(write_run(tmp_path_factory.mktemp("run")))
    made.prepare()
    made.serve()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def work(run) -> list[str]:
    return sorted(run.add_work(6))


@pytest.fixture(scope="module")
def anna(run, work) -> Worker:
    return run.join("anna")


@pytest.fixture(scope="module")
def bert(run, work) -> Worker:
    return run.join("bert", free_memory_bytes=1000)


@pytest.fixture
def call(monkeypatch, capsys, run):
    """`hdee-coordinator VERB RUN_FILE ...` in this process: exit code, output, errors."""

    def call(verb: str, *arguments: object, run_file: Path | None = None):
        argv = ["hdee-coordinator", *verb.split(), run_file or run.run_file, *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return call


@pytest.fixture
def told(call):
    """As `call --format json`, of a verb that succeeds: the value."""

    def told(verb: str, *arguments: object):
        code, out, err = call(verb, *arguments, "--format", "json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return told


def test_the_program_itself_lists_workers(run, anna, bert):
    done = subprocess.run(
        [PROGRAM, "workers", run.run_file], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    header, *rows, total = done.stdout.splitlines()
    assert header.split()[:5] == ["name", "id", "state", "device", "memory"]
    assert {row.split()[0] for row in rows} == {"anna", "bert"}
    assert total.startswith("2 workers: ")


def test_the_status_is_asked_by_run_file_or_url(call, told, run):
    assert told("status")["run"] == "operated"
    code, out, _ = call("status", run_file=run.url)
    assert (code, out.split(":")[0]) == (0, "run operated")


def test_workers_and_assignments_are_lists_for_programs(told, anna, bert, work):
    assert {view["worker"] for view in told("workers")} == {anna.id, bert.id}
    assert [view["assignment"] for view in told("assignments")] == work
    assert told("assignments", "--state", "failed") == []


def test_assignments_show_how_far_each_is(call, anna, work):
    code, out, _ = call("assignments")
    assert code == 0
    header, *rows, total = out.splitlines()
    assert header.split() == [
        "assignment", "state", "domain", "width", "step", "done", "worker", "since", "reason"
    ]  # fmt: skip
    assert [row.split()[0] for row in rows] == work
    assert "0/1000   0 %" in rows[0]
    assert total == "6 assignments: 6 open"


def test_why_is_a_table_by_assignment(call, bert, work):
    code, out, _ = call("why", "bert", "--limit", "2")
    assert code == 0
    assert out.startswith(f"worker bert ({bert.id}): idle")
    assert f"{work[0]}  512-wide text seed  no" in out
    assert "0 MB" in out
    assert "memory: needs " in out
    assert out.splitlines()[-1] == f"more: --after {work[1]}"


def test_why_is_paged_for_programs(told, bert, work):
    view = told("why", bert.id[-8:], "--after", work[3])
    assert [one["assignment"] for one in view["considered"]] == work[4:]
    assert {one["requirement"] for one in view["considered"]} == {"memory"}
    assert view["next_after"] is None


def test_a_worker_is_banned_by_its_name_and_let_in_again(call, told, run):
    carl = run.join("carl")
    code, out, _ = call("ban", "carl", "--reason", "too loud")
    assert (code, out) == (0, f"worker {carl.id}: banned, not draining\n")
    assert carl.lease()["code"] == "banned"
    assert told("unban", carl.id) == {"worker": carl.id, "banned": False, "draining": False}
    (entry,) = [one for one in told("ledger entries") if one["kind"] == "ban"]
    assert entry["facts"] == {"reason": "too loud"}


def test_a_drained_worker_is_shown_as_such(call, told, run):
    dora = run.join("dora")
    assert told("drain", "dora")["draining"] is True
    code, out, _ = call("workers")
    (row,) = [line for line in out.splitlines() if line.startswith("dora")]
    assert "idle, draining" in row
    assert "no more work" in dora.lease()["reason"]
    code, out, _ = call("why", "dora")
    assert "gets nothing now: the operator asked it to take no more work" in out
    code, out, _ = call("undrain", "dora")
    assert (code, out) == (0, f"worker {dora.id}: not banned, not draining\n")


def test_assignments_are_cancelled_failed_and_opened_again(call, told, work):
    code, out, _ = call("cancel", work[0], "--reason", "a mistake")
    assert (code, out) == (0, f"assignment {work[0]}: cancelled\n")
    assert told("fail", work[1])["state"] == "failed"
    reasons = {view["assignment"]: view["reason"] for view in told("assignments")}
    assert reasons[work[0]] == "cancelled: a mistake"
    for assignment in work[:2]:
        assert told("retry", assignment)["state"] == "open"


def test_a_pause_stops_new_offers_until_it_is_taken_back(call, told, anna):
    code, out, _ = call("pause", "--reason", "lunch")
    assert (code, out) == (0, "run operated makes no new offers; leases go on\n")
    assert "paused" in anna.lease()["reason"]
    assert told("resume") == {"run": "operated", "paused": False}


def test_what_the_coordinator_refuses_ends_with_4_and_its_words(call, work, anna):
    held = anna.lease()["offer"]["assignment"]
    code, out, err = call("retry", held)
    assert (code, out) == (4, "")
    assert err == f"hdee-coordinator: {held} is offered: cannot retry\n"
    assert call("ban", "12D3KooW" + "A" * 44)[0] == 4
    assert call("cancel", f"a{'0' * 16}")[0] == 4


def test_another_runs_token_ends_with_4_and_names_its_file(call, run):
    token = run.folders.admin_token
    before = token.read_text()
    token.write_text("another\n")
    try:
        code, out, err = call("pause")
    finally:
        token.write_text(before)
    assert (code, out) == (4, "")
    assert str(token) in err


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("why", ["nobody"], "`hdee-coordinator workers` lists them"),
        ("ban", ["K"], "hdee-coordinator"),
        ("retry", ["python"], "expected an id such as"),
        ("pause", ["--reason", "x" * 501], "at most 500"),
        ("workers", ["--url", "http://example.org"], "admin token"),
        ("workers", ["--url", "ftp://127.0.0.1"], "expected http"),
        ("workers", ["--url", "http://[::1"], "not a URL"),
        ("why", [], "Usage"),
        ("why", ["anna", "--limit", "0"], "limit"),
        ("assignments", ["--state", "lost"], "state"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_right(call, verb, arguments, words):
    code, out, err = call(verb, *arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_where_nobody_listens_verbs_end_with_3(call, run):
    for verb, arguments in (("workers", []), ("ban", ["anna"]), ("pause", [])):
        code, out, err = call(verb, *arguments, "--url", f"http://127.0.0.1:{free_port()}")
        assert (code, out) == (3, "")
        assert "hdee-coordinator serve" in err


def test_another_run_at_the_same_address_ends_with_3_before_it_sees_the_token(call, run, tmp_path):
    other = write_run(tmp_path / "other")
    code, out, err = call("pause", "--url", run.url, run_file=other)
    assert (code, out) == (3, "")
    assert "serves run 'operated' of coordinator" in err


def test_a_ledger_is_verified_while_it_is_served(call, told, run):
    code, out, _ = call("ledger verify")
    assert code == 0
    first, rows, last = out.splitlines()
    assert str(run.folders.ledger) in first
    assert "domains 2" in rows
    assert last == "the chain is whole, and the tables are what it says"
    facts = told("ledger verify")
    assert facts["holds"] is True
    assert facts["head"] in out
    assert f"{facts['entries']} entries" in first


def test_entries_are_paged(call, told):
    code, out, _ = call("ledger entries", "--limit", 2)
    header, first, _, more = out.splitlines()
    assert (code, first.split()[3]) == (0, "run")
    assert header.split() == ["number", "at", "kind", "digest", "rows", "facts"]
    assert more == "more: --after 2"
    (third,) = told("ledger entries", "--after", 2, "--limit", 1)
    assert third["number"] == 3


def test_a_copy_made_while_serving_is_a_ledger_with_the_same_chain(call, told, tmp_path):
    copy = tmp_path / "copy.sqlite"
    report = told("backup", copy)
    assert report["bytes"] == copy.stat().st_size
    facts = told("ledger verify", "--database", f"sqlite:///{copy}")
    assert (facts["entries"], facts["head"]) == (report["last_entry"], report["last_digest"])
    code, out, err = call("backup", copy)
    assert (code, out) == (1, "")
    assert "exists already" in err


def test_rows_that_somebody_changed_are_shown_and_end_with_1(call, told, tmp_path):
    copy = tmp_path / "copy.sqlite"
    told("backup", copy)
    ledger = Ledger(f"sqlite:///{copy}")
    with ledger.begin() as connection:
        connection.execute(text("UPDATE run SET round = 7"))
        connection.execute(text("DELETE FROM shards WHERE domain = 'cooking' AND split = 'gate'"))
    ledger.close()
    code, out, _ = call("ledger verify", "--database", f"sqlite:///{copy}")
    assert code == 1
    assert "run 1:\n  found     round 7\n  expected  round 1\n" in out
    assert "shards cooking, gate:\n  found     no such row\n  expected  " in out
    assert "BROKEN: 2 row(s) differ" in out
    code, out, _ = call("ledger verify", "--database", f"sqlite:///{copy}", "--format", "json")
    assert code == 1
    assert [one["table"] for one in json.loads(out)["differences"]] == ["run", "shards"]


@pytest.mark.parametrize("verb", ["ledger verify", "ledger entries", "backup"])
def test_a_ledger_that_is_not_there_ends_with_1_and_is_not_made(call, tmp_path, verb):
    missing, other = tmp_path / "missing.sqlite", tmp_path / "other.sqlite"
    target = [tmp_path / "copy"] if verb == "backup" else []
    code, out, err = call(verb, *target, "--database", f"sqlite:///{missing}")
    assert (code, out) == (1, "")
    assert str(missing) in err
    assert not missing.exists()
    other.touch()
    code, out, err = call(verb, *target, "--database", f"sqlite:///{other}")
    assert (code, out) == (1, "")
    assert "entries" in err
    assert "Traceback" not in err


def test_a_ledger_url_that_is_none_is_refused_before_anything_starts(call, run):
    for url in ("mysql://host/db", "sqlite:///relative.sqlite"):
        code, out, err = call("check", "--database", url)
        assert (code, out) == (1, "")
        assert "expected" in err
        code, _, err = call("serve", "--database", url)
        assert code == 1
        assert "expected" in err


def test_check_says_where_the_ledger_is_and_shows_no_password(call, told, run, monkeypatch):
    assert told("check")["ledger"] == run.folders.ledger_url
    monkeypatch.setenv("HDEE_DATABASE", "postgresql+psycopg://hdee:secret@db/hdee")
    code, out, _ = call("check")
    assert code == 0
    assert "ledger postgresql+psycopg://hdee:***@db/hdee" in out
    assert "secret" not in out
    assert told("check", "--database", "sqlite:////srv/l")["ledger"] == "sqlite:////srv/l"


def test_the_run_file_may_name_the_ledger_and_the_command_line_overrules_it(call, run, tmp_path):
    named = run.run_file.with_name("named.toml")
    named.write_text(
        run.run_file.read_text() + '[ledger]\ndatabase = "postgresql+psycopg://a@b/c"\n'
    )
    assert "ledger postgresql+psycopg://a@b/c" in call("check", run_file=named)[1]
    url = f"sqlite:///{tmp_path / 'l'}"
    assert f"ledger {url}" in call("check", "--database", url, run_file=named)[1]


def test_a_run_is_served_from_postgresql(call, postgres_server, run, work, tmp_path, monkeypatch):
    name = postgres_server.create_database()
    url = postgres_server.url(name)
    named = run.run_file.with_name("postgres.toml")
    port = run.url.rpartition(":")[2]
    named.write_text(run.run_file.read_text().replace(port, str(free_port())))
    served = Run(named, {"HDEE_DATABASE": url})
    served.prepare()
    served.serve()
    try:
        (assignment,) = served.add_work(1)
        assert call("cancel", assignment, run_file=named)[0] == 0
        code, out, _ = call("ledger verify", "--database", url, run_file=named)
        assert code == 0
        assert "the chain is whole" in out
        assert f"/{name}" in out
        monkeypatch.setenv("HDEE_DATABASE", url)
        code, out, _ = call("backup", tmp_path / "dump", run_file=named)
        assert (code, (tmp_path / "dump").read_bytes()[:5]) == (0, b"PGDMP")
    finally:
        served.stop()
        postgres_server.drop_database(name)


def test_roles_are_told_the_ledger_where_other_users_cannot_read_it(run, tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    process = subprocess.Popen(
        [PROGRAM, "serve", run.run_file, "--database", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        (child,) = wait_for(psutil.Process(process.pid).children)
        # Between fork and exec a child still has its parent's command line.
        wait_for(lambda: "prepare" in child.cmdline())
        assert url not in " ".join(child.cmdline())
        assert child.environ()["HDEE_DATABASE"] == url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)


def test_a_run_goes_on_from_a_copy_put_in_the_place_of_its_ledger(call, tmp_path):
    lost = Run(write_run(tmp_path / "lost"))
    lost.prepare()
    (kept,) = lost.add_work(1)
    copy = tmp_path / "copy.sqlite"
    assert call("backup", copy, run_file=lost.run_file)[0] == 0
    assert len(lost.add_work(3)) == 3
    for ending in ("", "-wal", "-shm"):
        lost.folders.ledger.with_name(f"ledger.sqlite{ending}").unlink(missing_ok=True)
    copy.rename(lost.folders.ledger)
    assert call("ledger verify", run_file=lost.run_file)[0] == 0
    lost.serve()
    try:
        assert lost.join("anna").lease()["offer"]["assignment"] == kept
        assert call("ledger verify", run_file=lost.run_file)[0] == 0
    finally:
        lost.stop()
