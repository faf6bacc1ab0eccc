"""What a report is made of: tables, figures, sections. The page and report.json come from these.

A number stands here once, in full precision. How many digits people see is `forms`' business.
"""

from dataclasses import dataclass
from typing import Literal

Form = Literal[
    "text", "count", "perplexity", "bits", "points", "flops", "ratio", "share", "loss", "digest"
]
"""How a column is written. points: 100 times nats per label. share: of 1, written in percent."""

Mark = Literal["best", "better", "worse", "unclear", "tie", "bound"]
"""What a cell is known to be: by an interval or by construction, never by the number alone.

bound: no method, but what choosing with knowledge of the test text could give.
"""


@dataclass(frozen=True)
class Column:
    """`key` is the name of its values in report.json, `title` what people read."""

    key: str
    title: str
    form: Form = "text"


@dataclass(frozen=True)
class Cell:
    """None: there is no such value."""

    value: str | int | float | None
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Row:
    """One cell for each column. `is_group`: over a group of domains, set apart from single ones."""

    cells: tuple[Cell, ...]
    is_group: bool = False


@dataclass(frozen=True)
class Table:
    """`name` is unique in a report. `is_folded`: closed until the reader opens it."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""
    is_folded: bool = False

    def records(self) -> list[dict[str, object]]:
        """The rows for programs: column keys to values, and `marks` where a cell has some."""
        return [_record(self.columns, row) for row in self.rows]


@dataclass(frozen=True)
class Figure:
    """A PNG. `alt` says in words what it shows, `tables` hold the numbers behind it."""

    name: str
    title: str
    alt: str
    note: str
    png: bytes
    tables: tuple[Table, ...]

    @property
    def file(self) -> str:
        """Where it lies, relative to the report's folder."""
        return f"figures/{self.name}.png"


@dataclass(frozen=True)
class Section:
    """A part of the page: what to know, then its figures, then its tables."""

    name: str
    title: str
    paragraphs: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()

    def all_tables(self) -> tuple[Table, ...]:
        """Its tables, and those behind its figures."""
        return (*(table for figure in self.figures for table in figure.tables), *self.tables)


@dataclass(frozen=True)
class Report:
    """`summary` are whole sentences, each claim with its numbers; `commands` make it all again."""

    title: str
    subtitle: str
    summary: tuple[str, ...]
    summary_tables: tuple[Table, ...]
    sections: tuple[Section, ...]
    commands: tuple[str, ...]
    software: str

    def all_tables(self) -> tuple[Table, ...]:
        """Every table of the page, in its order."""
        behind = (table for section in self.sections for table in section.all_tables())
        return (*self.summary_tables, *behind)

    def all_figures(self) -> tuple[Figure, ...]:
        """Every figure of the page, in its order."""
        return tuple(figure for section in self.sections for figure in section.figures)


def row(*values: str | int | float | None, is_group: bool = False) -> Row:
    """A row of unmarked cells."""
    return Row(cells=cells(*values), is_group=is_group)


def cells(*values: str | int | float | None) -> tuple[Cell, ...]:
    """Unmarked cells."""
    return tuple(Cell(value) for value in values)


def _record(columns: tuple[Column, ...], row: Row) -> dict[str, object]:
    pairs = list(zip(columns, row.cells, strict=True))
    found: dict[str, object] = {column.key: cell.value for column, cell in pairs}
    marks = {column.key: list(cell.marks) for column, cell in pairs if cell.marks}
    return {**found, "marks": marks} if marks else found
