"""Statements that are built once, compiled once for each database, and run on the driver's cursor.

Building and compiling a statement costs SQLAlchemy many times what SQLite needs to run it (100 and
2 microseconds for the read of one row), and the api runs some thousands a second. Only for
statements whose values need no conversion: numbers, text and None, which is all that the ledger's
tables hold.
"""

from collections import namedtuple
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Executable, Table, and_, bindparam, update
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.elements import ClauseElement


class Prepared:
    """One statement with named parameters (`bindparam`), for every connection."""

    def __init__(self, statement: Executable) -> None:
        self._statement = statement
        self._plans: dict[str, _Plan] = {}

    def all(self, connection: Connection, **values: Any) -> list[Any]:
        """Every row, with the columns as attributes."""
        cursor, plan = self._execute(connection, values)
        try:
            return [plan.row(cursor.description)._make(row) for row in cursor.fetchall()]
        finally:
            cursor.close()

    def one(self, connection: Connection, **values: Any) -> Any | None:
        """The first row, with the columns as attributes; None where there is none."""
        cursor, plan = self._execute(connection, values)
        try:
            row = cursor.fetchone()
            return None if row is None else plan.row(cursor.description)._make(row)
        finally:
            cursor.close()

    def value(self, connection: Connection, **values: Any) -> Any | None:
        """The first column of the first row; None where there is none."""
        cursor, _ = self._execute(connection, values)
        try:
            row = cursor.fetchone()
            return None if row is None else row[0]
        finally:
            cursor.close()

    def run(self, connection: Connection, **values: Any) -> int:
        """Run a statement that returns no rows; how many rows it matched."""
        cursor, _ = self._execute(connection, values)
        try:
            return int(cursor.rowcount)
        finally:
            cursor.close()

    def _execute(self, connection: Connection, values: dict[str, Any]) -> tuple[Any, "_Plan"]:
        dialect = connection.dialect
        plan = self._plans.get(dialect.name)
        if plan is None:
            assert isinstance(self._statement, ClauseElement)
            plan = self._plans[dialect.name] = _Plan(self._statement, dialect)
        cursor = connection.connection.cursor()
        try:
            cursor.execute(plan.sql, plan.parameters(values))
        except dialect.loaded_dbapi.Error as error:
            cursor.close()
            raise DBAPIError.instance(
                plan.sql, values, error, dialect.loaded_dbapi.Error, dialect=dialect
            ) from error
        return cursor, plan


class _Plan:
    """A statement as one database wants it."""

    def __init__(self, statement: ClauseElement, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.sql = str(compiled)
        self._defaults = dict(compiled.params)
        self._order = compiled.positiontup if compiled.positional else None  # type: ignore[attr-defined]
        self._row: Any = None

    def parameters(self, values: dict[str, Any]) -> Any:
        """In the order, or under the names, that the driver expects."""
        if self._order is None:
            return {**self._defaults, **values}
        defaults = self._defaults
        return [values[name] if name in values else defaults[name] for name in self._order]

    def row(self, description: Any) -> Any:
        """The class of the rows."""
        if self._row is None:
            self._row = _row_class([column[0] for column in description])
        return self._row


def _row_class(names: list[str]) -> Any:
    return namedtuple("Row", names, rename=True)


@lru_cache(maxsize=256)
def insert_into(table: Table, names: tuple[str, ...]) -> Prepared:
    """The statement that adds a row with values for these columns, under their own names."""
    return Prepared(table.insert().values({name: bindparam(name) for name in names}))


@lru_cache(maxsize=256)
def update_by_key(table: Table, names: tuple[str, ...]) -> Prepared:
    """The statement that changes the columns `names` of the row with this key.

    Parameters: `key_` and the name of each column of the primary key, `new_` and each other name.
    """
    matches = and_(*(column == bindparam(f"key_{column.name}") for column in table.primary_key))
    return Prepared(
        update(table).where(matches).values({name: bindparam(f"new_{name}") for name in names})
    )
