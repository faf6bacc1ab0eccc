"""Nothing runs on unseen, and nothing fails unheard."""

import asyncio

import pytest

from worker.tasks import Turns, background, unless_stopped


async def forever():
    await asyncio.Event().wait()


async def fail():
    raise ValueError("no")


async def test_what_is_done_before_the_stop_is_returned():
    assert await unless_stopped(asyncio.Event(), asyncio.sleep(0, result=5)) == 5


async def test_a_stop_cancels_what_is_under_way():
    stopping = asyncio.Event()
    asyncio.get_running_loop().call_soon(stopping.set)
    assert await asyncio.wait_for(unless_stopped(stopping, forever()), 5) is None


async def test_what_fails_is_raised():
    with pytest.raises(ValueError, match="no"):
        await unless_stopped(asyncio.Event(), fail())


async def test_a_background_task_that_fails_is_in_the_log(caplog):
    seen = asyncio.Event()
    async with background(fail()):
        asyncio.get_running_loop().call_later(0.01, seen.set)
        await asyncio.wait_for(seen.wait(), 5)
    assert "a background task failed" in caplog.text


async def test_a_background_task_ends_with_its_block():
    ended = asyncio.Event()

    async def until_cancelled():
        try:
            await forever()
        finally:
            ended.set()

    async with background(until_cancelled()):
        await asyncio.sleep(0)
    assert ended.is_set()


async def test_turns_are_one_at_a_time_for_a_name_and_others_do_not_wait():
    turns, order = Turns(), []

    async def work(name, word):
        async with turns.at(name):
            order.append(f"{word} begins")
            await asyncio.sleep(0.01)
            order.append(f"{word} ends")

    await asyncio.gather(work("a", "one"), work("a", "two"))
    assert order == ["one begins", "one ends", "two begins", "two ends"]
    async with turns.at("a"):
        await asyncio.wait_for(work("b", "three"), 5)
