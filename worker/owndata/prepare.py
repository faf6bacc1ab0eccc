"""The reading child: own text to shards in a folder. It has no network.

`python -m worker.owndata.prepare --domain NAME --path PATH --tokenizer FILE --terms JSON --into
FOLDER` prints the DomainOffer as one JSON line, or {"error"} with exit code 1. The shards are named
by what they hold: the same text gives the same digests.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from protocol.owndata import DomainOffer, OwnDataTerms, OwnShard
from shared.blobs.pieces import piece_list_of
from shared.files import sync_folder
from shared.shards import ShardError, write_shard
from shared.text.documents import Document, split_documents
from shared.text.encoding import encode_documents
from shared.text.errors import PrepareError
from shared.text.vocabulary import Vocabulary, open_vocabulary
from worker.owndata.reading import OwnTextError, read_own_text
from worker.owndata.texts import DEV, TRAIN, OwnText

MAX_DEV_BYTES = 500_000
"""Held back at most: two models are measured on it, on the CPU."""


def prepare_own_text(
    text: OwnText, *, tokenizer: Path, terms: OwnDataTerms, into: Path
) -> DomainOffer:
    """Write the train and the dev shard of own text into the new folder `into`.

    Raises OwnTextError for text that cannot be used or is too little, PrepareError for a tokenizer
    that cannot be used, OSError.
    """
    documents = read_own_text(text.path).documents
    vocabulary = open_vocabulary(tokenizer.read_bytes())
    held_back = _held_back(documents)
    splits = {
        "train": [one for one in documents if one.digest not in held_back],
        "dev": [one for one in documents if one.digest in held_back],
    }
    draft = into.with_name(f".{into.name}.writing")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True, mode=0o700)
    try:
        train, dev = (
            _shard(draft / name, splits[split], vocabulary, terms.vocab_size)
            for name, split in ((TRAIN, "train"), (DEV, "dev"))
        )
        if train.num_tokens < terms.min_train_tokens:
            raise OwnTextError(
                f"{text.path}: {train.num_tokens} train tokens in {train.num_documents} documents, "
                f"expected at least {terms.min_train_tokens} for {terms.num_steps} steps; give it "
                "more text"
            )
        offer = DomainOffer(domain=text.domain, train=train, dev=dev)
        shutil.rmtree(into, ignore_errors=True)
        draft.rename(into)
        sync_folder(into.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return offer


def _held_back(documents: list[Document]) -> set[bytes]:
    """Digests of the dev documents: of those that the usual split names, up to MAX_DEV_BYTES."""
    chosen: set[bytes] = set()
    num_bytes = 0
    for document in split_documents(documents, split_key=None)["dev"]:
        num_bytes += document.num_bytes
        if chosen and num_bytes > MAX_DEV_BYTES:
            break
        chosen.add(document.digest)
    return chosen


def _shard(
    path: Path, documents: list[Document], vocabulary: Vocabulary, vocab_size: int
) -> OwnShard:
    encoded = encode_documents(vocabulary, documents, told=lambda _share: None)
    write_shard(path, encoded, vocab_size=vocab_size)
    os.chmod(path, 0o600)
    return OwnShard(
        blob=piece_list_of(path).ref(),
        num_documents=len(documents),
        num_tokens=sum(len(tokens) for tokens, _ in encoded),
    )


def main(arguments: Sequence[str]) -> int:
    """Prints the offer or the error; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker.owndata.prepare")
    for name in ("--domain", "--path", "--tokenizer", "--terms", "--into"):
        parser.add_argument(name, required=True)
    options = parser.parse_args(arguments)
    try:
        offer = prepare_own_text(
            OwnText(options.domain, Path(options.path)),
            tokenizer=Path(options.tokenizer),
            terms=OwnDataTerms.model_validate_json(options.terms),
            into=Path(options.into),
        )
    except (OwnTextError, PrepareError, ShardError, ValidationError, OSError) as error:
        _print(json.dumps({"error": str(error)}))
        return 1
    _print(offer.model_dump_json())
    return 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
