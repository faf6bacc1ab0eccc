"""Receipts reach their worker once, and are kept, whatever became of the ledger."""

import asyncio
from pathlib import Path
from typing import Any

from coordinator.api.app import create_app
from coordinator.ledger import Ledger, queries
from coordinator.ledger.backup import backup
from protocol.receipts import SignedReceipt
from tests.integration.ledger_side.side import (
    accept,
    add_work,
    do_work,
    lease_of,
    start,
    submission,
    until,
)
from worker.deliveries import Deliveries
from worker.shelf import Named
from worker.tasks import background


async def test_both_heartbeats_bring_receipts_and_each_comes_once(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make, count=3)
    anna = workers("anna")
    member = await anna.join(make.capability())
    first = await do_work(api, make, member)
    await member.beat()
    second = await do_work(api, make, member)
    async with background(lease_of(member, await start(member, make)).beats()):
        await until("the lease's heartbeat", lambda: anna.line.paths[-1].endswith("/heartbeat"))
    folder = anna.folder.root / "receipts" / api.identity.peer_id
    kept = [SignedReceipt.model_validate_json(path.read_bytes()) for path in folder.iterdir()]
    done = sorted((one.receipt for one in kept), key=lambda receipt: receipt.entry)
    assert [receipt.assignment for receipt in done] == [first.assignment, second.assignment]
    with api.ledger.read() as connection:
        entries = {entry.number: entry for entry in queries.read_entries(connection)}
    assert all(entries[receipt.entry].digest == receipt.entry_digest for receipt in done)
    lines = [line for line in anna.said.lines if line.startswith("receipt: entry ")]
    assert len(lines) == 2
    answer = await member.beat()
    assert answer.receipts == ()
    again = await anna.join(make.capability())
    assert len((await again.beat()).receipts) == 1, "to see that the ledger still has it"
    assert (await again.beat()).receipts == ()
    assert sum("receipt: entry" in line for line in anna.said.lines) == 2


async def test_receipts_of_before_and_after_a_restored_backup_are_kept(
    api: Any, make: Any, workers: Any, tmp_path: Path
) -> None:
    add_work(api, make, count=4)
    anna = workers("anna")
    member = await anna.join(make.capability())
    await do_work(api, make, member)
    backup(api.ledger, tmp_path / "copy.sqlite", lambda _: None)
    await do_work(api, make, member)
    await member.beat()
    assert len(list(member.receipts.folder.iterdir())) == 2

    restored = Ledger(f"sqlite:///{tmp_path / 'copy.sqlite'}")
    try:
        api.ledger, api.clock.seconds = restored, api.clock.seconds + 100.0
        app = create_app(
            ledger=restored, identity=api.identity, settings=api.settings, now=api.clock
        )
        async with app.state.context.writer:
            anna.line.app = app
            member = await anna.join(make.capability())
            await member.beat()
            assert "does not hold entry" in anna.said
            await do_work(api, make, member)
            await member.beat()
            await member.beat()
            with restored.read() as connection:
                *_, newest = queries.receipts_of(connection, anna.peer_id)
            assert member.receipts.after == newest.entry
    finally:
        restored.close()
    assert len(list(member.receipts.folder.iterdir())) == 3


async def test_who_leaves_with_its_work_done_waits_for_the_receipt_but_not_for_ever(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    deliveries = Deliveries(member)
    await deliveries.await_receipts(0.0)
    assert "receipt" not in anna.said
    offer = await start(member, make)
    ref = anna.folder.blobs.add_bytes(b"expert")
    sent = submission(make, offer)
    await member.client.submit(offer.assignment, sent)
    deliveries.add(offer.assignment, Named(ref, make.manifest(offer.spec, anna.peer_id), 0.0), sent)
    await deliveries.await_receipts(0.0)
    assert "the receipt for the work handed in last comes with the next join" in anna.said
    waiting = asyncio.create_task(deliveries.await_receipts(60.0))
    await until("it asks", lambda: anna.line.paths[-1].endswith("/heartbeat"))
    assert not waiting.done()
    accept(api, make, offer, anna.peer_id)
    await asyncio.wait_for(waiting, 60)
    assert member.receipts.holds(offer.assignment)
    assert sum("comes with the next join" in line for line in anna.said.lines) == 1
