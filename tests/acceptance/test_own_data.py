"""A domain whose text stays with its worker, by real processes: an expert comes of it, no text."""

import json
import mmap
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from swarm import Swarm, running_in

from coordinator.scoring.export import MARKER
from protocol.owndata import DomainOffer, OwnDomainView
from shared.shards import Shard
from shared.text.documents import documents_of

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(2400)]

STEPS = 60
SECRET = "the quince harvest of the seventh valley"
SAMPLE_TOKENS = 16
"""Tokens in a row that no other text has: those that its documents begin with."""

OWN_DATA = f"""
[own_data]
steps = {STEPS}
harm_percent = 300
"""
"""So small a model forgets much in 60 steps; what the bound does is tested elsewhere."""


def write_own_text(folder: Path) -> list[str]:
    """Documents that begin as nobody else's do."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted((library / "http").glob("*.py")) + sorted((library / "logging").glob("*.py"))
    parts = [part for file in files for part in documents_of("paragraphs:500", file.read_bytes())]
    documents = [f"{SECRET}, part {number}: {part}" for number, part in enumerate(parts)]
    folder.mkdir()
    lines = "\n".join(json.dumps({"text": document}) for document in documents[:60])
    (folder / "some.jsonl").write_text(lines)
    for number, document in enumerate(documents[60:]):
        (folder / f"{number}.txt").write_text(document)
    return documents


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    with Swarm(tmp_path, steps=STEPS) as swarm:
        swarm.run_file.write_text(swarm.run_file.read_text() + OWN_DATA)
        yield swarm
    assert running_in(tmp_path) == []


def own_domain(swarm: Swarm) -> OwnDomainView | None:
    views = swarm.get("/v1/own-data/domains")
    return OwnDomainView.model_validate_json(json.dumps(views[0])) if views else None


def state_of(swarm: Swarm) -> str:
    view = own_domain(swarm)
    return "" if view is None else view.state


def reported(swarm: Swarm) -> OwnDomainView | None:
    """The own domain, once its worker has measured it, which it does after handing in."""
    view = own_domain(swarm)
    return None if view is None or view.perplexity_after is None else view


def needles(note: Path) -> list[bytes]:
    """Stretches of what must not leave: of the token files, and of the text itself."""
    found = [SECRET.encode(), *(SECRET.encode(code) for code in ("utf-16-le", "utf-32-le"))]
    for name in ("train", "dev"):
        shard = Shard.read(note.with_name(f"{name}.safetensors"), vocab_size=512)
        for start in shard.document_offsets[:8]:
            stretch = np.asarray(shard.tokens[start + 1 : start + 1 + SAMPLE_TOKENS])
            found += [stretch.astype(dtype).tobytes() for dtype in ("<u2", "<u4", "<i8")]
    return found


def files_with(needles: list[bytes], *roots: Path) -> list[Path]:
    found = []
    for root in roots:
        for path in root.rglob("*"):
            if path.is_file() and path.stat().st_size:
                with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as m:
                    if any(m.find(needle) >= 0 for needle in needles):
                        found.append(path)
    return found


def test_an_own_domain_gets_its_expert_and_its_text_stays_where_it_is(
    swarm: Swarm, tmp_path: Path
) -> None:
    write_own_text(tmp_path / "quinces")
    swarm.serve()
    swarm.join("gardener", "--offer-domain", f"quinces={tmp_path / 'quinces'}")
    swarm.join("helper")
    swarm.wait_for("its expert is accepted", lambda: state_of(swarm) == "accepted", seconds=900)
    view = swarm.wait_for("its worker says how good it is", lambda: reported(swarm), seconds=600)
    assert view.perplexity_after < view.perplexity_before
    assert "What leaves it" in swarm.said("gardener")

    # The worker's own copy has what is looked for: not finding it elsewhere means something.
    note = swarm.folder / "gardener" / "own" / "quinces" / "own.json"
    offer = DomainOffer.model_validate(json.loads(note.read_text())["offer"], strict=False)
    wanted = needles(note)
    assert files_with(wanted, note.parent) != []
    blobs = swarm.folder / "gardener" / "blobs"
    helper = swarm.folder / "helper"
    assert files_with(wanted, swarm.run_folder, blobs, helper) == []

    (own,) = [one for one in swarm.assignments() if one["domain"] == "quinces"]
    assert own["worker"] == view.worker
    assert swarm.names()[view.worker] == "gardener"

    # Nobody gets it by asking for it, either.
    for digest in (offer.train.blob.digest, offer.dev.blob.digest):
        assert swarm.http.get(f"{swarm.url}/v1/blobs/{digest}").status_code in (401, 404)
        assert not any(digest in path.name for path in blobs.rglob("*"))

    swarm.wait_for("the run is finished", swarm.finished, seconds=900)
    status = swarm.get("/v1/status")
    assert status["experts_planned"] == status["experts_accepted"]
    assert [one["domain"] for one in status["own_domains"]] == ["quinces"]
    assert "quinces" not in json.dumps(status["results"])
    marked = [one["domain"] for one in swarm.get("/v1/experts") if one["self_reported"]]
    assert marked == ["quinces"]
    assert (swarm.run_folder / view.folder / "model.safetensors").exists()
    assert f"worker {view.worker}" in (swarm.run_folder / view.folder / MARKER).read_text()
    folder = swarm.run_folder / view.folder
    assert [path.parent for path in folder.parent.glob(f"*/{MARKER}")] == [folder]
