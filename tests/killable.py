"""An api over SQLite that dies between any two statements, and its callers.

The real handlers, writer, scheduler and ledger; only sockets are left out. Once a fuse has burnt
through, the database takes no further statement of this "process": what was not committed is lost,
as after a SIGKILL.
"""

import asyncio
import os
import signal
import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from sqlalchemy import Connection, event

from coordinator.api.app import ApiSettings, create_app, tick
from coordinator.ledger import Ledger
from shared.identity import Identity

T = TypeVar("T")


class Killed(Exception):
    """The process is dead: nobody gets an answer any more."""


class Fuse:
    """Burns through at the n-th statement from when it was lit, or right after the n-th commit."""

    def __init__(self) -> None:
        self.statements: int | None = None
        self.commits: int | None = None
        self.burnt = False
        self.count = 0

    def light(self, *, statements: int | None = None, commits: int | None = None) -> None:
        """Die before the n-th statement from now on, or after the n-th commit."""
        self.statements, self.commits = statements, commits

    def before_statement(self) -> None:
        self.count += 1
        if self.statements is not None:
            self.statements -= 1
            self.burnt = self.burnt or self.statements < 0
        if self.burnt:
            self.die()

    def after_commit(self) -> None:
        if self.commits is not None:
            self.commits -= 1
            if self.commits < 0:
                self.die()

    def die(self) -> None:
        self.burnt = True
        raise Killed


class DeadlyFuse(Fuse):
    """Kills this process for real."""

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def attach(ledger: Ledger, fuse: Fuse) -> None:
    """Have every statement of this ledger's connections, commits included, burn down `fuse`."""

    class Cursor(sqlite3.Cursor):
        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            fuse.before_statement()
            return super().execute(*arguments)

    class Raw(sqlite3.Connection):
        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            fuse.before_statement()
            return super().execute(*arguments)

        def commit(self) -> None:
            fuse.before_statement()
            super().commit()
            fuse.after_commit()

    def connect(_dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
        parameters["factory"] = Raw

    for engine in (ledger._backend.reader, ledger._backend.writer):
        event.listen(engine, "do_connect", connect)


class KillableApi:
    """One life of an api process over the ledger at `url`. Ended by `end`, dead or alive."""

    def __init__(
        self,
        url: str,
        *,
        identity: Identity,
        settings: ApiSettings,
        now: Callable[[], float],
        fuse: Fuse | None = None,
    ) -> None:
        self.fuse = fuse or Fuse()
        self.ledger = Ledger(url)
        attach(self.ledger, self.fuse)
        app = create_app(ledger=self.ledger, identity=identity, settings=settings, now=now)
        self.context = app.state.context
        self._loop = asyncio.new_event_loop()
        self.context.writer.start()

    def call(self, *calls: Coroutine[Any, Any, Any]) -> list[Any]:
        """Answers, or the errors instead, of handlers that are called at once.

        Raises Killed when the process died on the way.
        """

        async def together() -> list[Any]:
            return await asyncio.gather(*calls, return_exceptions=True)

        answers = self._loop.run_until_complete(together())
        if self.fuse.burnt:
            raise Killed
        return answers

    def write(self, work: Callable[[Connection], T]) -> T:
        """Another role's transaction. Raises Killed when it died on the way."""
        with self.ledger.begin() as connection:
            return work(connection)

    def tick(self) -> None:
        """What the api does by itself, once a second or so."""
        write = self.context.writer.write
        context = self.context
        (outcome,) = self.call(write(lambda connection: tick(connection, context)))
        if isinstance(outcome, BaseException):
            raise outcome
        (outcome,) = self.call(
            write(lambda connection: context.look_around(connection, context.now()))
        )
        if isinstance(outcome, BaseException):
            raise outcome

    def end(self) -> None:
        self._loop.run_until_complete(self.context.writer.stop())
        self._loop.close()
        self.ledger.close()
