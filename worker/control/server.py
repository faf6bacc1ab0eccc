"""Answers the verbs: one line in, one line out, within bounds of size, time and number."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from worker.control.messages import (
    MAX_REQUEST_BYTES,
    Answer,
    BadMessage,
    Refusal,
    Reply,
    Request,
    encode,
    read_request,
)
from worker.control.place import NoPlace, bind, remove, runtime_folder

log = logging.getLogger(__name__)

READ_SECONDS = 5.0
WRITE_SECONDS = 5.0
MAX_CONNECTIONS = 8


class Controls(Protocol):
    """What the verbs can ask for."""

    async def answer(self, request: Request) -> Answer:
        """Does what is asked, and says how things stand then."""

    def after(self, request: Request) -> None:
        """Called once the answer is sent."""


@contextlib.asynccontextmanager
async def serving(
    root: Path, controls: Controls, *, runtime: Path | None = None
) -> AsyncIterator[str]:
    """Answers verbs for the worker in `root` as long as the block lasts.

    Where there can be no socket, nothing is answered: gives why, in words; else an empty text.
    """
    try:
        listening, path = bind(root, runtime=runtime or runtime_folder())
    except NoPlace as error:
        log.warning("no control socket: %s", error)
        yield str(error)
        return
    server = _Server(controls)
    try:
        async with await asyncio.start_unix_server(
            server.connected, sock=listening, limit=MAX_REQUEST_BYTES
        ):
            try:
                yield ""
            finally:
                await server.close()
    finally:
        remove(root, path)


class _Server:
    def __init__(self, controls: Controls) -> None:
        self._controls = controls
        self._tasks: set[asyncio.Task[None]] = set()

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request, reply = await self._reply(reader)
            # A client that is gone or does not read misses its answer; what it asked for is done.
            with contextlib.suppress(OSError, TimeoutError):
                writer.write(encode(reply))
                await asyncio.wait_for(writer.drain(), WRITE_SECONDS)
            if request is not None and isinstance(reply, Answer):
                self._controls.after(request)
        finally:
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader) -> tuple[Request | None, Reply]:
        if len(self._tasks) > MAX_CONNECTIONS:
            return None, Refusal(code="busy", message="too many verbs ask at once; try again")
        try:
            request = read_request(await _line(reader))
        except BadMessage as bad:
            return None, bad.refusal
        try:
            return request, await self._controls.answer(request)
        except Exception as error:
            log.exception("verb %s failed", request.verb)
            return request, Refusal(code="failed", message=f"{type(error).__name__}: {error}")


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Raises BadMessage if it is too long, comes too slowly, or its end is missing."""
    try:
        return await asyncio.wait_for(reader.readuntil(b"\n"), READ_SECONDS)
    except TimeoutError:
        words = f"no whole line came in {READ_SECONDS:.0f} s"
        raise BadMessage(Refusal(code="too_slow", message=words)) from None
    except asyncio.LimitOverrunError:
        words = f"a request is one line of at most {MAX_REQUEST_BYTES} bytes"
        raise BadMessage(Refusal(code="too_long", message=words)) from None
    except (asyncio.IncompleteReadError, OSError):
        words = "the line does not end"
        raise BadMessage(Refusal(code="bad_request", message=words)) from None
