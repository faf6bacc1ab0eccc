"""What the volunteer offers, and the shards that were made of it: files under `own/`, no blobs."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from protocol.messages import Offer
from protocol.owndata import DomainOffer, OwnDataTerms
from protocol.values import Value
from shared.files import write_atomic

TRAIN, DEV, NOTE = "train.safetensors", "dev.safetensors", "own.json"


@dataclass(frozen=True)
class OwnText:
    """A domain of the volunteer's: its name, and the file or folder with its text."""

    domain: str
    path: Path


class OwnNote(Value):
    """What lies in a domain's folder, written last: the offer, and the terms it was made for."""

    offer: DomainOffer
    terms: OwnDataTerms


class OwnTexts:
    """The shards of own domains. Only domains in `offered` count: the volunteer's word of today."""

    def __init__(self, root: Path, offered: tuple[OwnText, ...] = ()) -> None:
        self._root = root / "own"
        self._offered = offered

    @property
    def offered(self) -> tuple[OwnText, ...]:
        """The domains that the volunteer offers now."""
        return self._offered

    def folder(self, domain: str) -> Path:
        """Where a domain's shards lie."""
        return self._root / domain

    def keep(self, note: OwnNote) -> None:
        """Note that a domain's shards are complete, and for what they were made."""
        path = self.folder(note.offer.domain) / NOTE
        write_atomic(path, note.model_dump_json(indent=1).encode())

    def note(self, domain: str) -> OwnNote | None:
        """What lies here of a domain; None: nothing whole."""
        try:
            return OwnNote.model_validate_json((self.folder(domain) / NOTE).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def forget(self, domain: str) -> None:
        """Delete what was made of a domain's text; the text itself stays."""
        shutil.rmtree(self.folder(domain), ignore_errors=True)

    def notes(self) -> tuple[OwnNote, ...]:
        """What lies here of the domains that are offered now."""
        found = (self.note(text.domain) for text in self._offered)
        return tuple(note for note in found if note is not None)

    def digests(self) -> tuple[str, ...]:
        """The train shards that are here, as a request for work names them."""
        return tuple(note.offer.train.blob.digest for note in self.notes())

    def note_of(self, digest: str) -> OwnNote | None:
        """The domain whose train shard has this digest; None: no own text does."""
        return next((note for note in self.notes() if note.offer.train.blob.digest == digest), None)

    def twin_of(self, offer: DomainOffer) -> str | None:
        """Another domain that is offered with the very same text; None: there is none."""
        note = self.note_of(offer.train.blob.digest)
        return None if note is None or note.offer.domain == offer.domain else note.offer.domain

    def train_shard(self, digest: str) -> Path | None:
        """The file of the own train shard with this digest; None: it is none of ours."""
        note = self.note_of(digest)
        return None if note is None else self.folder(note.offer.domain) / TRAIN

    def problem_of(self, offer: Offer) -> str | None:
        """Why the own text that an offer names is not for it, in words; None: it is, or names none.

        The volunteer agreed to one expert of a stated size and length on it, and to nothing else.
        """
        note = self.note_of(offer.shard.digest)
        return None if note is None else broken_promise(offer, note)


def broken_promise(offer: Offer, note: OwnNote) -> str | None:
    """What of an offer on own text is not as the run's terms said; None: all is. Pure."""
    spec, terms = offer.spec, note.terms
    for what, found, expected in (
        ("kind", spec.kind, "expert"),
        ("domain", spec.domain, note.offer.domain),
        ("FFN width", spec.shape.ffn_width, terms.ffn_width),
        ("steps", spec.train.num_steps, terms.num_steps),
        ("train shard", spec.train_shard, note.offer.train.blob.digest),
    ):
        if found != expected:
            return f"{what} {found} on your own data: expected {expected}, as was agreed"
    return None
