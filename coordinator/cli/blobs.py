"""The blobs of a run, served or not: what each belongs to, whether all are whole, what may go.

Exit codes: 0 done, 1 damage found, 2 usage.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from sqlalchemy.exc import SQLAlchemyError

from coordinator.cli.errors import VerbError
from coordinator.cli.ledger import not_a_ledger
from coordinator.cli.options import Database, Format, RunPath
from coordinator.database import open_existing_ledger
from coordinator.folders import RunFolders
from coordinator.ledger import Ledger, queries
from coordinator.network.disposal import sweep
from coordinator.runfile import load_run_file
from coordinator.text.prepared import Prepared, read_prepared
from shared.blobs import BlobMissing, BlobStore
from shared.blobs.upkeep import find_damage, mend
from shared.clock import now
from shared.tables import Progress, show, show_json, show_table
from shared.words import duration

QUIET_SECONDS = 5.0
"""A verb that takes no longer says nothing of how far it is."""

UNNAMED = "nothing names it"

app = typer.Typer(no_args_is_help=True, help="Look after a run's blobs, served or not.")


@dataclass(frozen=True)
class Line:
    """A blob as it is shown. `state`: whole, arriving, missing, or what is wrong with it.

    `at`: since when it is so, seconds since 1970, None if nobody knows.
    """

    digest: str
    store: str
    size: int
    state: str
    at: float | None
    belongs_to: tuple[str, ...]


class Blobs:
    """The stores of a run, and its ledger. The sealed store is looked at where we may enter it."""

    def __init__(self, folders: RunFolders, ledger: Ledger) -> None:
        self.ledger = ledger
        self.prepared = _prepared(folders)
        if not folders.blobs.is_dir():
            raise VerbError(f"{folders.blobs}: there is no such folder; `serve` makes it")
        self.public = BlobStore(folders.blobs)
        may_enter = folders.sealed.is_dir() and os.access(folders.sealed, os.W_OK | os.X_OK)
        self.stores: dict[str, BlobStore] = {"blobs": self.public}
        if may_enter:
            self.stores["sealed"] = BlobStore(folders.sealed)

    def named(self) -> tuple[queries.Belonging, ...]:
        """Everything that the ledger or prepare names."""
        with self.ledger.read() as connection:
            found = queries.belongings(connection)
        if self.prepared is not None:
            found.append(queries.Belonging(self.prepared.tokenizer, "the tokenizer", needed=True))
        return tuple(found)

    def kept(self) -> frozenset[str]:
        """Digests that no sweep may touch, whatever the ledger says."""
        if self.prepared is None:
            return frozenset()
        shards = (shard.blob.digest for shard in self.prepared.shards)
        return frozenset({self.prepared.tokenizer.digest, *shards})

    def missing(self) -> Iterator[Line]:
        """What is needed and not here. Asked twice: a coordinator may just have disposed of it."""
        suspects = {one.blob: _store_of(one) for one in self.named() if self._lacks(one)}
        still = [one for one in self.named() if self._lacks(one)]
        words = _words(still)
        for blob in sorted({one.blob for one in still} & suspects.keys(), key=lambda b: b.digest):
            belongs_to = words[blob.digest]
            yield Line(blob.digest, suspects[blob], blob.size, "missing", None, belongs_to)

    def _lacks(self, one: queries.Belonging) -> bool:
        store = self.stores.get(_store_of(one))
        return one.needed and store is not None and not store.has(one.blob.digest)


@app.command("list")
def list_blobs(run_file: RunPath, database: Database = None, format: Format = "text") -> None:
    """List the blobs, whole and arriving, and what each belongs to."""
    with _opened(run_file, database) as blobs:
        words = _words(blobs.named())
        lines = [*blobs.missing()]
        for name, store in blobs.stores.items():
            lines += _held(name, store, words)
    lines.sort(key=lambda line: (line.belongs_to or (UNNAMED,), line.digest))
    if format == "json":
        show_json([asdict(line) for line in lines])
        return
    show_table(("digest", ">bytes", "since", "state", "store", "belongs to"), map(_row, lines))
    show(f"{len(lines)} blobs, {sum(line.size for line in lines):,} bytes")


@app.command()
def verify(run_file: RunPath, database: Database = None, format: Format = "text") -> None:
    """Hash every blob again, and look whether all are here that the run needs. Changes nothing.

    Exit code 1 if one is damaged or missing; then it is said what it belongs to.
    """
    with _opened(run_file, database) as blobs:
        lines = [*_damaged(blobs), *blobs.missing()]
        stores = ", ".join(str(store.root) for store in blobs.stores.values())
    if format == "json":
        show_json({"holds": not lines, "lines": [asdict(line) for line in lines]})
    else:
        for line in lines:
            kind = "MISSING" if line.state == "missing" else "DAMAGED"
            what = "; ".join(line.belongs_to) or UNNAMED
            detail = "" if line.state == "missing" else f"{line.state}; "
            show(f"{kind} {line.digest} in {line.store}: {detail}{what}")
        show(
            f"every blob in {stores} is what its digest says, and none is missing"
            if not lines
            else "put the files back into `data` from a copy of the run's folder, then verify again"
        )
    if lines:
        raise typer.Exit(1)


@app.command()
def gc(run_file: RunPath, database: Database = None, format: Format = "text") -> None:
    """Mend what a crash left, and delete what nothing names; as the network role does hourly."""
    with _opened(run_file, database) as blobs:
        before = _bytes_on_disk(blobs)
        gone = {digest for store in blobs.stores.values() for digest in mend(store, now=now()).data}
        if blobs.prepared is not None:
            gone |= {*sweep(blobs.ledger, blobs.public, keep=blobs.kept(), now=now())}
        freed = max(0, before - _bytes_on_disk(blobs))
    if format == "json":
        show_json({"deleted": sorted(gone), "bytes_freed": freed})
        return
    for digest in sorted(gone):
        show(f"deleted {digest}")
    show(f"{freed:,} bytes freed")
    if blobs.prepared is None:
        show("the text is not prepared yet: until then, what nothing names stays")


@contextmanager
def _opened(run_file: Path, database: str | None) -> Iterator[Blobs]:
    run = load_run_file(run_file)
    folders = RunFolders(run.folder)
    ledger = open_existing_ledger(run, folders, database)
    try:
        yield Blobs(folders, ledger)
    except SQLAlchemyError as error:
        raise not_a_ledger(ledger, error) from error
    except OSError as error:
        where = error.filename or folders.state
        raise VerbError(
            f"{where}: {error.strerror or error}; run this as the run's user"
        ) from error
    finally:
        ledger.close()


def _prepared(folders: RunFolders) -> Prepared | None:
    found = read_prepared(folders.prepared)
    return None if found is None else found.prepared


def _damaged(blobs: Blobs) -> list[Line]:
    found: list[Line] = []
    words = _words(blobs.named())
    for name, store in blobs.stores.items():
        progress = Progress(f"bytes of {name} hashed", quiet_seconds=QUIET_SECONDS)
        for one in find_damage(store, progress=progress.tell):
            belongs_to = words.get(one.digest, ())
            found.append(Line(one.digest, name, one.num_bytes, one.words, None, belongs_to))
    return found


def _held(name: str, store: BlobStore, words: Mapping[str, tuple[str, ...]]) -> Iterator[Line]:
    for digest in store.digests():
        with suppress(BlobMissing, FileNotFoundError):
            size, at = store.path(digest).stat().st_size, store.complete_since(digest)
            yield Line(digest, name, size, "whole", at, words.get(digest, ()))
    for digest, at in store.partials().items():
        partial = None if store.has(digest) else store.arriving(digest)
        if partial is not None:
            total = len(partial.pieces.pieces)
            state = f"{total - len(partial.missing())} of {total} pieces arrived"
            yield Line(digest, name, partial.ref.size, state, at, words.get(digest, ()))


def _store_of(one: queries.Belonging) -> str:
    return "sealed" if one.sealed else "blobs"


def _words(named: Sequence[queries.Belonging]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for one in named:
        found[one.blob.digest] = (*found.get(one.blob.digest, ()), one.words)
    return found


def _bytes_on_disk(blobs: Blobs) -> int:
    return sum(store.size_on_disk() for store in blobs.stores.values())


def _row(line: Line) -> tuple[str, ...]:
    since = "" if line.at is None else f"{duration(max(0.0, now() - line.at))} ago"
    what = "; ".join(line.belongs_to) or UNNAMED
    return (line.digest[:12], f"{line.size:,}", since, line.state, line.store, what)
