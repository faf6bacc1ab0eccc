"""Own text at a real worker: an expert leaves it, and nobody gets the text by asking for it."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.ledger import queries
from coordinator.pretrained.making import keep_made
from protocol.blobs import BlobRef
from protocol.owndata import OwnDataTerms
from shared import model as models
from shared.clock import now
from shared.exchange.exchange import Exchange, FetchFailed
from shared.exchange.rates import Bucket
from shared.exchange.sources import Source, Tier
from shared.exchange.streams import StreamSource
from shared.identity import Identity, sign_certificate
from shared.shards import Shard
from shared.text.tokenizer import learn
from worker.errors import Refused
from worker.owndata.texts import OwnText

VOCAB, STEPS = 320, 12
PATIENT = {"seconds": 180.0}
WORDS = "quince pear medlar hedge ladder basket frost bloom graft root press barrel valley slope"

FINDS = """
import json, pathlib, sys
needles = [bytes.fromhex(one) for one in json.loads(sys.argv[1])]
for place in map(pathlib.Path, sys.argv[2:]):
    for path in [place, *place.rglob("*")]:
        if path.is_file() and any(needle in path.read_bytes() for needle in needles):
            print(path)
"""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def own_text(tmp_path: Path) -> OwnText:
    draw = random.Random(3)
    folder = tmp_path / "quinces"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.txt").write_text(" ".join(draw.choices(WORDS.split(), k=60)))
    return OwnText("quinces", folder)


@pytest.fixture
def seed(roles: Any, make: Any, tmp_path: Path) -> Any:
    """A seed that is there, and the terms of a run that takes own data."""
    plain = make.spec()
    spec = plain.model_copy(
        update={
            "kind": "pretrained",
            "origin": "0" * 64,
            "train_shard": roles.shard.blob.digest,
            "shape": plain.shape.model_copy(update={"vocab_size": VOCAB}),
            "train": plain.train.model_copy(update={"num_steps": 0}),
        }
    )
    weights = tmp_path / "seed.safetensors"
    models.save(models.build(spec.shape, rng_seed=0), weights)
    text = [" ".join(random.Random(one).choices(WORDS.split(), k=60)) for one in range(200)]
    tokenizer = roles.store.add_bytes(learn(text, vocab_size=VOCAB))
    terms = OwnDataTerms(
        tokenizer=tokenizer,
        vocab_size=VOCAB,
        ffn_width=spec.shape.ffn_width,
        num_steps=STEPS,
        min_train_tokens=65,
        harm_percent=5.0,
        max_domains=9,
        reserved=("python",),
    )
    with roles.ledger.begin() as connection:
        made = keep_made(
            roles.store, spec, weights, coordinator=queries.get_run(connection).coordinator
        )
        queries.add_made(
            connection,
            spec,
            manifest=made.manifest,
            manifest_ref=made.manifest_ref,
            shard=roles.shard.blob,
            now=now(),
        )
        queries.set_own_data_terms(connection, terms, now=now())
    yield spec
    with roles.ledger.begin() as connection:
        queries.set_own_data_terms(connection, None, now=now())


def own_domain(roles: Any) -> Any:
    with roles.ledger.read() as connection:
        return next(iter(queries.all_own_domains(connection)), None)


async def ask_over_libp2p(roles: Any, swarm: Any, volunteer: Any, ref: BlobRef) -> str:
    """What a member of the swarm gets that asks the volunteer's peer for a blob."""
    coordinator = Identity.load(roles.folders.coordinator_key)
    with roles.ledger.read() as connection:
        run = queries.get_run(connection)
    certificate = sign_certificate(
        coordinator,
        peer=swarm.identity("stranger").peer_id,
        run="tiny",
        expires_at=int(now()) + 600,
    )
    stranger = await swarm.start(
        "stranger",
        coordinator=coordinator.peer_id,
        run="tiny",
        certificate=certificate,
        bootstrap=run.maddrs,
    )
    assert await stranger.providers(ref.digest) == []
    peer = volunteer.agent._member._presence.peer

    async def holder() -> list[Source]:
        opener = stranger.opener(volunteer.peer_id, peer.maddrs)
        return [StreamSource(opener, peer=volunteer.peer_id, route="peer", down=Bucket())]

    with pytest.raises(FetchFailed) as refused:
        await Exchange(swarm.store("stranger")).fetch(ref, [Tier("peer", holder)])
    return refused.value.reason


async def test_an_expert_of_own_text_is_handed_in_and_nothing_else_leaves(
    roles: Any,
    volunteers: Any,
    tools: Any,
    make: Any,
    seed: Any,
    own_text: OwnText,
    loopback_swarm: Any,
) -> None:
    roles.cancel_all()
    volunteer = volunteers("gardener", own_texts=(own_text,))
    row = await tools.until("the domain is offered", lambda: own_domain(roles), **PATIENT)
    assert (row.worker, row.offer.domain) == (volunteer.peer_id, "quinces")
    spec = make.spec(domain="quinces", parent=seed.digest, num_steps=STEPS)
    spec = spec.model_copy(update={"train_shard": row.offer.train.blob.digest, "shape": seed.shape})
    with roles.ledger.begin() as connection:
        assignment = queries.plan_own_expert(connection, row, spec, now=now())
    await tools.until("it is handed in", lambda: roles.state(assignment) == "submitted", **PATIENT)
    await tools.until("it is reported", lambda: own_domain(roles).report, **PATIENT)
    await tools.until("it is held", lambda: held(roles, assignment), **PATIENT)
    assert "announce" not in roles.entries(assignment)
    assert roles.durable_step(assignment) == 0

    # The token files lie in the worker's folder, and nowhere among what was stored or announced.
    own = volunteer.folder.root / "own" / "quinces"
    for name, shard in (("train", row.offer.train), ("dev", row.offer.dev)):
        tokens = Shard.read(own / f"{name}.safetensors", vocab_size=VOCAB).tokens
        needles = [
            np.asarray(tokens[start : start + 24]).tobytes()
            for start in range(1, len(tokens) - 24, len(tokens) // 5)
        ]
        stored = [path for path in roles.root.rglob("*") if path.is_file()]
        blobs = volunteer.folder.blobs
        stored += [blobs.path(digest) for digest in blobs.digests()]
        assert files_with(needles, own) == [own / f"{name}.safetensors"]
        assert stored
        assert files_with(needles, *stored) == []
        assert shard.blob.digest not in blobs.digests()
        member = volunteer.agent._member
        answer = await member.client.http.get(
            f"{roles.url}/v1/blobs/{shard.blob.digest}", headers=member.client.headers
        )
        assert answer.status_code == 404

    reason = await ask_over_libp2p(roles, loopback_swarm, volunteer, row.offer.train.blob)
    assert "does not have" in reason or "unknown" in reason.lower(), reason


def files_with(needles: list[bytes], *places: Path) -> list[Path]:
    """The files, also in folders, that hold one of them: read by a process of its own.

    Closing a file of a SQLite database that this process has open would drop its locks on it.
    """
    words = [json.dumps([needle.hex() for needle in needles]), *map(str, places)]
    found = subprocess.run(
        [sys.executable, "-c", FINDS, *words], capture_output=True, text=True, check=True
    )
    return [Path(line) for line in found.stdout.splitlines()]


def held(roles: Any, assignment: str) -> bool:
    with roles.ledger.read() as connection:
        waiting = queries.durable_submissions(connection)
    return any(one.assignment == assignment for one in waiting)


async def test_a_run_without_own_data_and_a_name_that_is_taken_end_the_worker_with_words(
    roles: Any, volunteers: Any, own_text: OwnText, seed: Any
) -> None:
    taken = volunteers("taken", own_texts=(OwnText("python", own_text.path),))
    with pytest.raises(Refused, match="python: the run has this name, choose another one"):
        await taken.task
    with roles.ledger.begin() as connection:
        queries.set_own_data_terms(connection, None, now=now())
    refused = volunteers("refused", own_texts=(own_text,))
    with pytest.raises(Refused, match="own data: this run takes none"):
        await refused.task
