"""The children that read and measure own text are guests, too."""

import asyncio
from pathlib import Path

import psutil
import pytest
from pydantic import BaseModel

from worker.manners.watch import Manners
from worker.owndata.children import Guest, OwnDataError, ask_child

DEADLINE_SECONDS = 60.0


def children() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        try:
            if "worker.owndata.prepare" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


async def until(condition) -> None:
    deadline = asyncio.get_running_loop().time() + DEADLINE_SECONDS
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


def arguments(tmp_path: Path) -> list[str]:
    """Of a child that finds no text, once it is there at all."""
    place = str(tmp_path / "nothing")
    return [
        *("--domain", "mine", "--path", place, "--tokenizer", place),
        *("--terms", "{}", "--into", str(tmp_path / "into")),
    ]


def status_of(child: psutil.Process) -> str:
    try:
        return child.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_DEAD


async def test_a_child_gives_way_and_stands_still_while_its_owner_wants_that(tmp_path):
    manners = Manners()
    guest = Guest(niceness=psutil.Process().nice() + 3, manners=manners)
    manners.pause()
    assert not (await manners.look()).may_train
    asking = asyncio.create_task(ask_child("prepare", arguments(tmp_path), BaseModel, guest=guest))
    await until(lambda: children() and status_of(children()[0]) == psutil.STATUS_STOPPED)
    (child,) = children()
    assert child.nice() == guest.niceness
    assert not asking.done()
    manners.resume()
    await manners.look()
    with pytest.raises(OwnDataError, match="--offer-domain: "):
        await asyncio.wait_for(asking, DEADLINE_SECONDS)
    assert children() == []


async def test_who_no_longer_waits_leaves_no_child_not_even_a_halted_one(tmp_path):
    manners = Manners()
    manners.pause()
    await manners.look()
    guest = Guest(manners=manners)
    asking = asyncio.create_task(ask_child("prepare", arguments(tmp_path), BaseModel, guest=guest))
    await until(lambda: children() and status_of(children()[0]) == psutil.STATUS_STOPPED)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert children() == []
