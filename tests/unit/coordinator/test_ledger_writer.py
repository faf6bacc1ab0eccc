"""Writes that share a commit: nobody is told too early, and nobody pays for another's mistake."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading

import pytest
from sqlalchemy import create_engine, text

from coordinator.ledger import Ledger, LedgerBusy, LedgerError, LedgerUnavailable
from coordinator.ledger import writer as writer_module
from coordinator.ledger.tables import nonces
from coordinator.ledger.writer import GroupWriter

TOLD = 200
WRITES_FOREVER = """
import asyncio, sys
from coordinator.ledger import Ledger
from coordinator.ledger.tables import nonces
from coordinator.ledger.writer import GroupWriter

def adding(nonce):
    return lambda connection: connection.execute(
        nonces.insert(), {"nonce": nonce, "expires_at": 1.0}
    ).rowcount

async def tell(writer, caller):
    number = 0
    while True:
        nonce = f"{caller}-{number}"
        await writer.write(adding(nonce), urgent=caller % 2 == 0)
        print(nonce, flush=True)
        number += 1

async def main():
    async with GroupWriter(Ledger(sys.argv[1])) as writer:
        await asyncio.gather(*(tell(writer, caller) for caller in range(8)))

asyncio.run(main())
"""


@pytest.fixture
def opened(prepared_database):
    ledger = Ledger(prepared_database)
    yield ledger
    ledger.close()


@pytest.fixture
async def writer(opened):
    async with GroupWriter(opened) as running:
        yield running


def adding(nonce: str):
    """A work that adds a row and returns how many rows it sees then."""

    def work(connection):
        connection.execute(nonces.insert(), {"nonce": nonce, "expires_at": 1.0})
        return len(connection.execute(nonces.select()).all())

    return work


def present(ledger: Ledger) -> set[str]:
    with ledger.read() as connection:
        return {row.nonce for row in connection.execute(nonces.select())}


@contextlib.asynccontextmanager
async def held_back(ledger: Ledger):
    """While it lasts, no batch begins; what is written within is one batch afterwards."""
    with ledger.begin():
        yield
        await settled()


@pytest.fixture
def one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that waits is one batch, however slow this machine is."""
    monkeypatch.setattr(writer_module, "URGENT_SECONDS", 60.0)


async def settled() -> None:
    """Let tasks that were just made run until they wait."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_works_of_a_kind_are_done_in_order(opened, writer):
    async with held_back(opened):
        tasks = [asyncio.create_task(writer.write(adding(str(i)))) for i in range(50)]
    assert await asyncio.gather(*tasks) == list(range(1, 51))


async def test_what_a_work_raises_undoes_that_work_alone(opened, writer):
    def fails(connection):
        adding("half")(connection)
        raise LookupError("no such thing")

    async with held_back(opened):
        works = [adding("first"), fails, adding("first"), adding("last")]
        tasks = [asyncio.create_task(writer.write(work)) for work in works]
    first, failed, doubled, last = await asyncio.gather(*tasks, return_exceptions=True)
    assert (first, last) == (1, 2)
    assert isinstance(failed, LookupError)
    assert "unique" in str(doubled).lower()
    assert present(opened) == {"first", "last"}


async def test_a_work_that_swallows_an_error_spoils_no_other(opened, writer):
    def swallows(connection):
        with contextlib.suppress(Exception):
            connection.execute(text("SELECT nothing FROM nowhere"))
        return "done"

    async with held_back(opened):
        works = [adding("before"), swallows, adding("after")]
        tasks = [asyncio.create_task(writer.write(work)) for work in works]
    await asyncio.gather(*tasks, return_exceptions=True)
    assert present(opened) == {"before", "after"}


async def test_a_work_may_raise_stop_iteration(writer):
    with pytest.raises(RuntimeError, match="StopIteration"):
        await writer.write(lambda _connection: next(iter(())))


def test_nothing_is_told_before_it_is_durable(prepared_database):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES_FOREVER, prepared_database], stdout=subprocess.PIPE, text=True
    )
    told = {process.stdout.readline().strip() for _ in range(TOLD)}
    process.send_signal(signal.SIGKILL)
    told |= {line.strip() for line in process.stdout.read().splitlines(keepends=True)[:-1]}
    process.stdout.close()
    process.wait()
    ledger = Ledger(prepared_database)
    assert len(told) >= TOLD
    assert told <= present(ledger)
    ledger.close()


async def test_nobody_is_told_while_the_batch_still_runs(opened, writer, one_batch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(_connection):
        begun.set()
        go_on.wait(10)

    async with held_back(opened):
        tasks = [asyncio.create_task(writer.write(work)) for work in (adding("early"), slow)]
    await asyncio.to_thread(begun.wait, 10)
    await settled()
    assert not tasks[0].done()
    assert present(opened) == set()
    go_on.set()
    assert await asyncio.gather(*tasks) == [1, None]
    assert present(opened) == {"early"}


async def test_a_failed_commit_reaches_every_caller_and_leaves_nothing(opened, writer, one_batch):
    with opened.begin() as connection:
        connection.execute(text("CREATE TABLE parents (n INTEGER PRIMARY KEY)"))
        checked_late = "n INTEGER REFERENCES parents (n) DEFERRABLE INITIALLY DEFERRED"
        connection.execute(text(f"CREATE TABLE children ({checked_late})"))
    forgotten = []
    writer.on_failure(lambda: forgotten.append(threading.current_thread().name))

    def orphan(connection):
        connection.execute(text("INSERT INTO children VALUES (1)"))

    def refused(_connection):
        raise LookupError("after what the others wrote")

    async with held_back(opened):
        works = [adding("a"), orphan, refused, adding("b")]
        tasks = [asyncio.create_task(writer.write(work)) for work in works]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [LedgerUnavailable] * 4
    assert "foreign key" in str(answers[0]).lower()
    assert forgotten == ["ledger-writer"]
    assert present(opened) == set()
    assert await writer.write(adding("c")) == 1


async def test_a_callback_that_fails_does_not_end_the_writer(opened, writer):
    def fails():
        raise RuntimeError

    forgotten = []
    writer.on_failure(fails)
    writer.on_failure(lambda: forgotten.append(True))

    def leaves_the_transaction(connection):
        connection.exec_driver_sql("ROLLBACK")

    with pytest.raises(LedgerUnavailable):
        await writer.write(leaves_the_transaction)
    assert forgotten == [True]
    assert await writer.write(adding("a")) == 1


async def test_urgent_works_come_before_patient_ones(opened, writer):
    order = []
    async with held_back(opened):
        tasks = [
            asyncio.create_task(
                writer.write(lambda _connection, i=i: order.append(i), urgent=i % 2 == 0)
            )
            for i in range(10)
        ]
        await settled()
        assert (writer.pending(urgent=True), writer.pending(urgent=False)) == (5, 5)
    await asyncio.gather(*tasks)
    assert order == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    assert (writer.pending(urgent=True), writer.pending(urgent=False)) == (0, 0)


async def test_a_batch_ends_when_its_time_for_patient_works_is_over(opened, writer, monkeypatch):
    monkeypatch.setattr(writer_module, "PATIENT_SECONDS", 0.0)

    def committed_before(connection):
        connection.execute(nonces.insert(), {"nonce": str(len(present(opened))), "expires_at": 1.0})

    async with held_back(opened):
        tasks = [
            asyncio.create_task(writer.write(committed_before, urgent=False)) for _ in range(4)
        ]
    await asyncio.gather(*tasks)
    assert present(opened) == {"0", "1", "2", "3"}


async def test_a_caller_that_left_before_its_turn_leaves_nothing(opened, writer):
    async with held_back(opened):
        tasks = [asyncio.create_task(writer.write(adding(name))) for name in ("a", "b", "c")]
        await settled()
        tasks[1].cancel()
    assert await asyncio.gather(tasks[0], tasks[2]) == [1, 2]
    assert present(opened) == {"a", "c"}


async def test_a_caller_that_leaves_during_its_turn_spoils_no_other(opened, writer):
    begun, go_on = threading.Event(), threading.Event()

    def slow(connection):
        begun.set()
        go_on.wait(10)
        return adding("slow")(connection)

    async with held_back(opened):
        tasks = [asyncio.create_task(writer.write(work)) for work in (slow, adding("next"))]
    await asyncio.to_thread(begun.wait, 10)
    tasks[0].cancel()
    await settled()
    go_on.set()
    assert await tasks[1] == 2
    assert present(opened) == {"slow", "next"}


async def test_stopping_does_and_delivers_what_waits(opened):
    writer = GroupWriter(opened)
    writer.start()
    async with held_back(opened):
        tasks = [asyncio.create_task(writer.write(adding(str(i)), urgent=i < 5)) for i in range(10)]
        await settled()
        stopping = asyncio.create_task(writer.stop())
        await settled()
        with pytest.raises(LedgerError, match="stopping"):
            await writer.write(adding("late"))
    await stopping
    assert all(task.done() for task in tasks)
    assert present(opened) == {str(i) for i in range(10)}


async def test_a_writer_that_was_not_started_refuses(opened):
    writer = GroupWriter(opened)
    with pytest.raises(LedgerError, match="not started"):
        await writer.write(adding("a"))
    await writer.stop()


async def test_a_running_writer_is_not_started_again(writer):
    with pytest.raises(LedgerError, match="runs already"):
        writer.start()


async def test_a_stopped_writer_starts_again(opened):
    writer = GroupWriter(opened)
    for name in ("a", "b"):
        async with writer:
            await writer.write(adding(name))
    assert present(opened) == {"a", "b"}


async def test_too_many_waiting_writes_are_refused_at_once(opened, writer, monkeypatch):
    monkeypatch.setattr(writer_module, "MAX_WAITING", 3)
    async with held_back(opened):
        tasks = [asyncio.create_task(writer.write(adding(str(i)), urgent=False)) for i in range(3)]
        await settled()
        with pytest.raises(LedgerBusy, match="3 writes wait already"):
            await writer.write(adding("more"), urgent=False)
        tasks.append(asyncio.create_task(writer.write(adding("urgent"))))
    assert len(await asyncio.gather(*tasks)) == 4


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
async def test_a_ledger_that_cannot_be_written_is_told_to_all_who_wait(database, monkeypatch):
    monkeypatch.setattr("coordinator.ledger.sqlite.BUSY_TIMEOUT_MILLISECONDS", 50)
    ledger = Ledger(database)
    ledger.create()
    with contextlib.closing(create_engine(database).connect()) as shell:
        shell.exec_driver_sql("BEGIN IMMEDIATE")
        async with GroupWriter(ledger) as writer:
            works = [writer.write(adding(str(i)), urgent=i < 2) for i in range(4)]
            answers = await asyncio.gather(*works, return_exceptions=True)
    assert [type(answer) for answer in answers] == [LedgerUnavailable] * 4
    assert "locked" in str(answers[0])
    shell.engine.dispose()
    ledger.close()


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
async def test_a_lost_connection_fails_its_batch_and_no_later_one(opened, writer):
    def cut(connection):
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar()
        with opened.read() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        connection.execute(nonces.select())

    async with held_back(opened):
        tasks = [
            asyncio.create_task(writer.write(work)) for work in (adding("a"), cut, adding("b"))
        ]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(answer) for answer in answers[:2]} == {LedgerUnavailable}
    assert await writer.write(adding("c")) >= 1
    assert "a" not in present(opened)
