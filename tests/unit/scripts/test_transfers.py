"""What the log of a swarm says of its blobs, read back from lines as the programs write them."""

import logging
import subprocess
import sys
from pathlib import Path

from protocol.blobs import BlobRef
from shared import logs
from shared.identity import Identity
from shared.logs import facts

ROOT = Path(__file__).parents[3]
REF = BlobRef(digest="ab" * 32, size=4_200_000)


def write_log(path: Path, what: str, **more: object) -> None:
    logs.configure(path=path)
    logging.getLogger("shared.exchange.exchange").info(
        "%s %s", what, facts(digest=REF.digest, bytes=REF.size, **more)
    )


def test_every_blob_is_shown_with_its_route_and_names_instead_of_ids(tmp_path: Path) -> None:
    coordinator = Identity.create(tmp_path / "run" / "keys" / "coordinator.key")
    anna = Identity.create(tmp_path / "anna" / "worker.key")
    network = tmp_path / "run" / "state" / "logs" / "network.log"
    write_log(network, "fetched", seconds=1.5, route=f"direct {anna.peer_id}")
    write_log(network, "received", worker=anna.peer_id, route="push")
    worker = tmp_path / "anna" / "worker.log"
    write_log(worker, "fetched", seconds=0.1, route=f"retained {coordinator.peer_id}:1 + http:2")
    write_log(worker, "uploaded", seconds=0.1, route="push")
    logging.getLogger().handlers[0].close()
    shown = subprocess.run(
        [sys.executable, "scripts/transfers.py", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    ).stdout
    lines = (tmp_path / "transfers.log").read_text().splitlines()
    said = {" ".join(line.split()[1:3] + line.split()[6:]) for line in lines}
    assert said == {
        "coordinator fetched direct anna",
        "coordinator received push",
        "anna fetched retained coordinator:1 + http:2",
        "anna uploaded push",
    }
    assert all("ab" * 6 in line and "4200000 bytes" in line for line in lines)
    assert "coordinator fetched" in shown


def test_a_folder_without_transfers_is_no_success(tmp_path: Path) -> None:
    Identity.create(tmp_path / "run" / "keys" / "coordinator.key")
    (tmp_path / "run" / "state" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "state" / "logs" / "network.log").write_text("")
    done = subprocess.run(
        [sys.executable, "scripts/transfers.py", str(tmp_path)],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
