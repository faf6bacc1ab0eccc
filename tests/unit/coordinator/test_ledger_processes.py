"""Several processes write one ledger: all get their turn, and the entries stay one chain."""

import subprocess
import sys

import pytest
from sqlalchemy import func, select

from coordinator.ledger import Ledger
from coordinator.ledger.entries import verify_chain
from coordinator.ledger.tables import entries, nonces

TRANSACTIONS = 150
TURNS = 10

WRITES = """
import sys, threading
from coordinator.ledger import Ledger
from coordinator.ledger.entries import record
from coordinator.ledger.tables import nonces

url, name, transactions = sys.argv[1], sys.argv[2], int(sys.argv[3])
ledger = Ledger(url)

def write(thread):
    for number in range(transactions):
        with ledger.begin() as connection:
            nonce = f"{name}-{thread}-{number}"
            record(connection, "phase", facts={"nonce": nonce}, now=1.0)
            connection.execute(nonces.insert(), {"nonce": nonce, "expires_at": 1.0})

threads = [threading.Thread(target=write, args=(thread,)) for thread in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""

HOGS = """
import sys
from coordinator.ledger import Ledger
from coordinator.ledger.tables import nonces

ledger = Ledger(sys.argv[1])
with ledger.begin() as connection:
    rows = [{"nonce": f"hog-{number}", "expires_at": 1.0} for number in range(1000)]
    connection.execute(nonces.insert(), rows)
print("begun", flush=True)
while True:
    with ledger.begin() as connection:
        for _ in range(10):
            connection.execute(nonces.update().values(expires_at=nonces.c.expires_at + 1))
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_write_one_chain_and_none_is_turned_away(prepared_database):
    started = [start(WRITES, prepared_database, name, str(TRANSACTIONS)) for name in ("a", "b")]
    for process in started:
        _, errors = process.communicate(timeout=50)
        assert process.returncode == 0, errors
    ledger = Ledger(prepared_database)
    with ledger.read() as connection:
        assert verify_chain(connection) is None
        last, count = connection.execute(
            select(func.max(entries.c.number), func.count(entries.c.number))
        ).one()
        rows = connection.execute(select(func.count(nonces.c.nonce))).scalar()
    assert (last, count, rows) == (4 * TRANSACTIONS,) * 3
    ledger.close()


def wait_for_more(ledger: Ledger) -> None:
    """Until the other process has written once more."""
    query = select(nonces.c.expires_at).where(nonces.c.nonce == "hog-0")
    seen = set()
    while len(seen) < 2:
        with ledger.read() as connection:
            seen.add(connection.execute(query).scalar())


@pytest.mark.timeout(180)
def test_a_process_that_never_stops_writing_starves_no_other(prepared_database):
    hog = start(HOGS, prepared_database)
    try:
        hog.stdout.readline()
        ledger = Ledger(prepared_database)
        for number in range(TURNS):
            wait_for_more(ledger)
            with ledger.begin() as connection:
                connection.execute(nonces.insert(), {"nonce": str(number), "expires_at": 1.0})
        assert hog.poll() is None
        ledger.close()
    finally:
        hog.kill()
        hog.communicate()
