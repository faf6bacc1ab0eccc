"""`hdee-worker blobs`: what lies in a worker's folder, whether it is whole, and what may go.

All of it may run while an agent works in the folder. Exit codes: 0 done, 1 damage found, 2 usage.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from shared.blobs import BlobMissing, BlobStore
from shared.blobs.upkeep import Damage, drop_idle, find_damage, mend
from shared.clock import now
from shared.tables import Progress, show, show_json, show_table
from shared.words import duration
from worker.folder import FolderInUse, WorkerFolder
from worker.notes import Purpose, deliveries_in, inputs_in, purposes
from worker.settings import BadSetting, default_folder

QUIET_SECONDS = 5.0
"""A verb that takes no longer says nothing of how far it is."""

WORDS: dict[Purpose | None, str] = {
    "made": "made here, and the coordinator does not hold it yet",
    "lease": "input of the lease that is worked on",
    "input": "input kept for the next lease",
    None: "nothing needs it",
}

Folder = Annotated[
    Path | None,
    typer.Option("--folder", help="The worker's folder [the only one in ~/.local/share/hdee]"),
]
Format = Annotated[Literal["text", "json"], typer.Option("--format", help="text or json")]

app = typer.Typer(no_args_is_help=True, help="Look after the blobs in a worker's folder.")


@dataclass(frozen=True)
class Held:
    """A blob that is here. `at`: since when, or when a piece arrived last; seconds since 1970."""

    digest: str
    size: int
    at: float
    purpose: Purpose | None
    public: bool
    num_pieces: int
    num_missing: int


@app.command("list")
def list_blobs(folder: Folder = None, format: Format = "text") -> None:
    """List the blobs, whole and arriving, and why each is here."""
    root = find_root(folder)
    blobs = BlobStore(root / "blobs")
    found = sorted(_held(root, blobs), key=lambda one: (WORDS[one.purpose], one.at))
    total = blobs.size_on_disk()
    if format == "json":
        show_json(
            {
                "folder": str(root),
                "bytes_on_disk": total,
                "blobs": [asdict(one) for one in found],
            }
        )
        return
    show_table(("digest", ">bytes", "since", "state", "what"), map(_row, found))
    show(f"{len(found)} blobs, {total:,} bytes on disk in {root / 'blobs'}")


@app.command()
def verify(folder: Folder = None, format: Format = "text") -> None:
    """Hash every blob again. Exit code 1 if one is damaged.

    A damaged input is deleted, so that it is fetched again when a lease needs it. What this worker
    made and nobody else holds yet is left as it is, and named.
    """
    root = find_root(folder)
    blobs = BlobStore(root / "blobs")
    progress = Progress("bytes hashed", quiet_seconds=QUIET_SECONDS)
    damage = find_damage(blobs, progress=progress.tell)
    why = purposes(root, blobs)
    deleted = [one.digest for one in damage if why.get(one.digest) in ("input", "lease")]
    for digest in deleted:
        blobs.delete(digest)
    gone = _owed_and_gone(root, blobs)
    if format == "json":
        rows = [
            {**asdict(one), "purpose": why.get(one.digest), "deleted": one.digest in deleted}
            for one in damage
        ]
        show_json({"folder": str(root), "damaged": rows, "missing": gone})
    else:
        for one in damage:
            show(_damage_line(one, why.get(one.digest)))
        for digest in gone:
            show(f"MISSING {digest}: it was handed in, and the coordinator does not hold it yet")
        if not damage and not gone:
            show(f"every blob in {root / 'blobs'} is what its digest says")
    if damage or gone:
        raise typer.Exit(1)


@app.command()
def gc(folder: Folder = None, format: Format = "text") -> None:
    """Mend what a crash left, and delete what nothing needs; never what only this worker has.

    While an agent works in the folder, only what no agent uses goes: remains of a crash, and
    arrivals without news for a day.
    """
    root = find_root(folder)
    blobs = BlobStore(root / "blobs")
    before = blobs.size_on_disk()
    gone = _sweep(root)
    running = gone is None
    if gone is None:
        mended = mend(blobs, now=now())
        idle = drop_idle(blobs, keep=purposes(root, blobs), now=now())
        gone = tuple(sorted({*mended.data, *idle}))
    freed = max(0, before - blobs.size_on_disk())
    if format == "json":
        facts = {"deleted": gone, "bytes_freed": freed, "agent_running": running}
        show_json({"folder": str(root), **facts})
        return
    for digest in gone:
        show(f"deleted {digest}")
    show(f"{freed:,} bytes freed in {root / 'blobs'}")
    if running:
        show("an agent works in the folder: what only its end makes unneeded is still there")


def find_root(folder: Path | None) -> Path:
    """The worker's folder that is meant. Raises BadSetting, naming those that there are."""
    if folder is not None:
        if not (folder / "blobs").is_dir():
            raise BadSetting(f"--folder {folder}: no hdee-worker has worked there")
        return folder
    base = default_folder("").parent
    known = sorted(path.parent for path in base.glob("*/blobs") if path.is_dir())
    if len(known) == 1:
        return known[0]
    names = ", ".join(map(str, known)) or f"there is none in {base}"
    raise BadSetting(f"--folder: expected one of the worker's folders: {names}")


def _sweep(root: Path) -> tuple[str, ...] | None:
    """What the agent deletes when it starts; None while one is running."""
    try:
        folder = WorkerFolder(root)
    except FolderInUse:
        return None
    with contextlib.closing(folder):
        return folder.sweep()


def _held(root: Path, blobs: BlobStore) -> Iterator[Held]:
    why, inputs = purposes(root, blobs), inputs_in(root)
    for digest in blobs.digests():
        with contextlib.suppress(BlobMissing, FileNotFoundError):
            yield Held(
                digest=digest,
                size=blobs.path(digest).stat().st_size,
                at=blobs.complete_since(digest),
                purpose=why.get(digest),
                public=digest in inputs and inputs[digest].public,
                num_pieces=0,
                num_missing=0,
            )
    for digest, at in blobs.partials().items():
        partial = None if blobs.has(digest) else blobs.arriving(digest)
        if partial is not None:
            yield Held(
                digest=digest,
                size=partial.ref.size,
                at=at,
                purpose=why.get(digest),
                public=False,
                num_pieces=len(partial.pieces.pieces),
                num_missing=len(partial.missing()),
            )


def _row(one: Held) -> tuple[str, ...]:
    arrived = one.num_pieces - one.num_missing
    return (
        one.digest[:12],
        f"{one.size:,}",
        f"{duration(max(0.0, now() - one.at))} ago",
        f"{arrived} of {one.num_pieces} pieces arrived" if one.num_pieces else "whole",
        WORDS[one.purpose] + (", served on to others" if one.public else ""),
    )


def _owed_and_gone(root: Path, blobs: BlobStore) -> list[str]:
    """Blobs of deliveries that are not here; read twice, as an agent may just have settled one."""
    suspects = {one for each in deliveries_in(root).values() for one in each.blobs}
    suspects = {digest for digest in suspects if not blobs.has(digest)}
    still = {one for each in deliveries_in(root).values() for one in each.blobs}
    return sorted(suspects & still)


def _damage_line(one: Damage, purpose: Purpose | None) -> str:
    line = f"DAMAGED {one.digest}: {one.words}; {WORDS[purpose]}"
    if purpose == "made":
        return (
            f"{line}: the work in it is lost unless the checkpoints in `work` are whole; check "
            "this machine's disk and memory"
        )
    return f"{line}: " + ("`blobs gc` deletes it" if purpose is None else "deleted, to fetch anew")
