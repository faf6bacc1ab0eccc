"""`hdee-worker check` as a volunteer types it, against a coordinator that really serves."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from coordinator.ledger import queries, tables
from shared.clock import now
from worker import checks
from worker.check import exit_code
from worker.checks import check_all
from worker.folder import WorkerFolder
from worker.settings import JoinSettings

pytestmark = pytest.mark.timeout(300)

PROGRAM = Path(sys.executable).with_name("hdee-worker")
BEFORE = ["coordinator", "protocol", "clock", "registration"]
MACHINE = (
    *("python", "device", "memory", "compiler", "power", "open files", "folder", "locks", "port"),
    "environment",
)
"""What is looked at before the coordinator; it depends on where this test runs."""
SPEED = "speed"
LISTEN = ("/ip4/127.0.0.1/tcp/0",)


def settings(roles: Any, folder: Path, **changes: Any) -> JoinSettings:
    return JoinSettings(**{"url": roles.url, "folder": folder, "listen": LISTEN, **changes})


def states(rows: Any) -> dict[str, str]:
    return {row.name: row.state for row in rows if row.name not in (*MACHINE, SPEED)}


@pytest.fixture(autouse=True, scope="module")
def dev_shard(roles: Any, make: Any) -> None:
    """With it the run has a domain, whose train shard a check can ask for."""
    with roles.ledger.begin() as connection:
        queries.add_shard(connection, make.shard("python", "dev"), now=now())


def token_digest(roles: Any, worker: str) -> str | None:
    """Of the token that the coordinator takes from this worker; None: it never registered."""
    column = tables.presence.c.token_digest
    with roles.ledger.read() as connection:
        found = connection.execute(select(column).where(tables.presence.c.worker == worker))
        return found.scalar_one_or_none()


def blobs_are_served(roles: Any) -> bool:
    with roles.ledger.read() as connection:
        url = queries.get_run(connection).blob_url
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/blobs/none").status_code >= 400
    return False


def check(*flags: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, [PROGRAM, "check", *flags])),
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_a_machine_that_can_do_everything_is_told_so(roles: Any, tmp_path: Path) -> None:
    done = check(
        *(roles.url, "--folder", tmp_path / "worker"),
        *("--listen", "/ip4/127.0.0.1/tcp/0", "--format", "json"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    found = {row["name"]: row for row in report["rows"]}
    assert report["ok"]
    assert list(found) == [*MACHINE, *BEFORE, SPEED, "http", "libp2p", "reachability"]
    assert {name for name, row in found.items() if row["state"] == "failure"} == set()
    assert {found[name]["state"] for name in found if name not in MACHINE} == {"ok"}
    assert "others can dial this worker at port" in found["reachability"]["found"]
    worker = WorkerFolder(tmp_path / "worker")
    worker.close()
    with roles.ledger.read() as connection:
        row = queries.find_worker(connection, worker.identity.peer_id)
    assert row is not None
    assert row.capability.free_memory_bytes == 0


def test_an_unreachable_machine_is_told_what_to_do_and_may_take_part(
    roles: Any, tmp_path: Path
) -> None:
    done = check(
        *(roles.url, "--folder", tmp_path / "worker"),
        *("--listen", "/ip4/127.0.0.1/tcp/0", "--announce", "127.0.0.1:1"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *_, line, fix = done.stdout.splitlines()
    assert line.split()[:2] == ["warning", "reachability"]
    assert "nobody can open a connection to port 1 of 127.0.0.1: it refuses connections" in line
    assert "fix: it listens for this machine alone: start it with --listen" in fix
    assert "pushes what it makes" in fix


async def test_over_http_alone_libp2p_is_not_asked_for(roles: Any, tmp_path: Path) -> None:
    rows = await check_all(settings(roles, tmp_path / "worker", http_only=True))
    assert states(rows) == dict.fromkeys([*BEFORE, "http"], "ok")


async def test_a_worker_that_runs_keeps_its_token(
    roles: Any, volunteers: Any, tools: Any, tmp_path: Path
) -> None:
    anna = volunteers("anna")
    await tools.until("it is registered", lambda: token_digest(roles, anna.peer_id))
    before = token_digest(roles, anna.peer_id)
    rows = await check_all(settings(roles, tmp_path / "anna"))
    assert states(rows) == {**dict.fromkeys(BEFORE, "ok"), "registration": "warning"}
    assert "a worker runs from this folder" in rows[-1].found
    assert token_digest(roles, anna.peer_id) == before
    assert await anna.stop() == 0


async def test_a_coordinator_without_its_network_role_is_a_failure_with_both_ways_named(
    roles: Any, tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "JOIN_SECONDS", 1.0)
    roles.kill("network")
    try:
        rows = await check_all(settings(roles, tmp_path / "worker"))
    finally:
        roles.start("network")
        await tools.until("the network role is back", lambda: blobs_are_served(roles))
    found = {row.name: row for row in rows}
    assert states(rows) == {
        **dict.fromkeys(BEFORE, "ok"),
        "http": "failure",
        "libp2p": "failure",
        "reachability": "ok",
    }
    assert exit_code(rows) == 1
    assert "open TCP connections to 127.0.0.1:" in found["libp2p"].fix


async def test_a_banned_machine_is_told_by_whom(roles: Any, tmp_path: Path) -> None:
    folder = WorkerFolder(tmp_path / "worker")
    folder.close()
    assert exit_code(await check_all(settings(roles, folder.root, http_only=True))) == 0
    with roles.ledger.begin() as connection:
        queries.treat_worker(connection, folder.identity.peer_id, "ban", reason="a test", now=now())
    rows = await check_all(settings(roles, folder.root))
    assert states(rows)["registration"] == "failure"
    assert "banned" in rows[-1].found
    assert "operator" in rows[-1].fix
    assert exit_code(rows) == 1
