"""Which blobs the api gives and takes, and from whom."""

from coordinator.ledger import queries
from protocol.errors import ErrorCode
from protocol.messages import (
    AssignmentHeartbeatAnswer,
    BlobUrl,
)
from tests.integration.api.volunteer import add_work, allowed, refusal


async def test_a_sealed_blob_is_given_to_nobody(api, make, anna):
    add_work(api, make)
    await anna.start()
    for split in ("gate", "test"):
        digest = make.shard("python", split).blob.digest
        refusal(await anna.send("GET", f"/v1/blobs/{digest}"), ErrorCode.UNKNOWN_BLOB)
        refusal(await anna.send("GET", f"/v1/blobs/{digest}/upload"), ErrorCode.UNKNOWN_BLOB)


async def test_a_checkpoint_that_names_a_sealed_blob_does_not_open_it(api, make, anna):
    spec = add_work(api, make)
    offer = await anna.start()
    sealed = make.shard("python", "gate").blob
    honest = make.manifest(spec, anna.identity.peer_id, step=4)
    first, *others = honest.files
    crafted = honest.model_copy(
        update={"files": (first.model_copy(update={"blob": sealed}), *others)}
    )
    await anna.beat(offer, 4, make.blob("four"))
    with api.ledger.begin() as connection:
        (row,) = queries.announced_checkpoints(connection)
        queries.mark_durable(connection, row.checkpoint_id, crafted, api.clock())
    assert allowed(api, others[0].blob.digest, anna)
    assert not allowed(api, sealed.digest, anna)


async def test_a_public_shard_is_behind_a_signed_url_and_a_token(api, make, anna):
    digest = make.shard("python", "train").blob.digest
    response = await anna.send("GET", f"/v1/blobs/{digest}")
    assert response.status_code == 307
    assert response.headers["location"].startswith(f"http://127.0.0.1:9/blobs/{digest}?")
    anna.token = None
    refusal(await anna.send("GET", f"/v1/blobs/{digest}"), ErrorCode.UNKNOWN_TOKEN)


async def test_only_the_asked_worker_may_upload_a_wanted_blob(api, make, anna, bert):
    add_work(api, make)
    offer = await anna.start()
    await anna.beat(offer, 4, make.blob("four"))
    with api.ledger.begin() as connection:
        (row,) = queries.announced_checkpoints(connection)
        queries.want_blobs(connection, row.checkpoint_id, [row.manifest], api.clock())
    response = AssignmentHeartbeatAnswer.model_validate_json((await anna.beat(offer, 5)).content)
    assert response.wanted == (make.blob("four"),)
    path = f"/v1/blobs/{make.blob('four').digest}/upload"
    BlobUrl.model_validate_json((await anna.send("GET", path)).content)
    refusal(await bert.send("GET", path), ErrorCode.UNKNOWN_BLOB)
