"""A worker asks for work, and says what it holds already."""

import asyncio
from typing import Any

import httpx

from protocol.errors import ErrorBody, ErrorCode
from tests.integration.ledger_side.side import add_work, ask, do_work, kinds
from worker.asking import acknowledge


async def test_a_worker_gets_the_work_whose_shard_or_parent_it_holds(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make, count=2)
    anna = workers("anna")
    member = await anna.join(make.capability())
    seeds = [(await do_work(api, make, member)).spec for _ in range(2)]
    weights = [make.manifest(spec, anna.peer_id).blob("model.safetensors").digest for spec in seeds]
    for domain in ("python", "manuals"):
        for spec in seeds:
            add_work(api, make, count=2, domain=domain, parent=spec.digest)
    for name, digest, spec in zip(("bert", "cleo"), weights, seeds, strict=True):
        offer = await ask(await workers(name).join(make.capability()), make, digest)
        assert offer.spec.parent == spec.digest
        assert offer.parent is not None
        assert offer.parent.manifest.blob("model.safetensors").digest == digest
    for domain in ("python", "manuals"):
        shard = make.shard(domain, "train").blob.digest
        offer = await ask(await workers(domain).join(make.capability()), make, shard)
        assert offer.spec.domain == domain


async def test_a_request_for_work_names_the_inputs_that_lie_here_and_nothing_else(
    make: Any, workers: Any
) -> None:
    anna = workers("anna")
    member = await anna.join(make.capability())
    blobs = [anna.folder.blobs.add_bytes(bytes([number])) for number in range(70)]
    anna.folder.blobs.add_bytes(b"a checkpoint of its own")
    for ref in blobs:
        await member.holdings.fetch_input(ref, public=False, needed=())
    await member.holdings.fetch_input(blobs[0], public=False, needed=())
    member.holdings.drop([blobs[68].digest])
    newest_first = [blobs[0], *blobs[69:0:-1]]
    assert member.cached() == tuple(ref.digest for ref in newest_first[:64])


async def test_an_acknowledgement_is_repeated_while_the_offer_lasts(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    offer = await ask(member, make)
    body = ErrorBody(code=ErrorCode.RATE_LIMITED, message="slow", retry_after_seconds=0.1)
    failed: list[str] = []

    def fail_first(path: str, answer: httpx.Response) -> httpx.Response:
        if path.endswith("/acknowledge") and not failed:
            failed.append(path)
            return httpx.Response(429, content=body.model_dump_json())
        return answer

    anna.line.fault = fail_first
    assert await acknowledge(member, offer, leaving=asyncio.Event())
    assert kinds(api).count("acknowledge") == 1
