"""Who gets in: nonces, signatures, certificates, versions, invites, bans and tokens."""

import secrets

import httpx
import pytest
from sqlalchemy import select

from coordinator.api.auth import invite_token
from coordinator.ledger import queries, tables
from protocol import PROTOCOL_VERSION
from protocol.errors import ErrorCode
from protocol.messages import (
    HeartbeatAnswer,
    RunInfo,
    WorkerHeartbeat,
)
from protocol.versions import HEADER, KEPT
from shared.identity import certificate_valid
from shared.version import SOFTWARE_VERSION
from tests.integration.api.volunteer import refusal


async def test_a_certificate_from_registration_is_the_coordinators(api, anna):
    signed = (await anna.register()).certificate
    known = {"coordinator": api.identity.peer_id, "run": "test", "now": api.clock()}
    assert certificate_valid(signed, peer=anna.identity.peer_id, **known)
    assert not certificate_valid(signed, peer=api.identity.peer_id, **known)
    forged = signed.model_copy(update={"signature": "0" * 128})
    assert not certificate_valid(forged, peer=anna.identity.peer_id, **known)


async def test_a_replayed_nonce_is_refused(anna):
    request = await anna.registration()
    assert (await anna.send("POST", "/v1/workers/register", request)).status_code == 200
    refusal(await anna.send("POST", "/v1/workers/register", request), ErrorCode.UNKNOWN_NONCE)


async def test_a_nonce_lives_for_a_minute(api, anna):
    request = await anna.registration()
    api.clock.advance(60.0)
    refusal(await anna.send("POST", "/v1/workers/register", request), ErrorCode.UNKNOWN_NONCE)


async def test_a_forged_signature_is_refused_and_writes_nothing(api, anna, bert):
    def written():
        with api.ledger.read() as connection:
            nonces = set(connection.execute(select(tables.nonces.c.nonce)).scalars())
            return nonces, queries.last_number(connection)

    before = written()
    stolen = await anna.registration(worker=bert.identity.peer_id)
    for _ in range(2):
        refusal(await anna.send("POST", "/v1/workers/register", stolen), ErrorCode.BAD_SIGNATURE)
    assert written() == before
    assert stolen.nonce not in before[0]


async def test_a_nonce_that_the_api_did_not_make_is_refused(anna):
    request = await anna.registration(nonce=secrets.token_hex(32))
    refusal(await anna.send("POST", "/v1/workers/register", request), ErrorCode.UNKNOWN_NONCE)


async def test_a_registration_signed_for_another_run_is_refused(anna):
    request = await anna.registration(signed_run="other")
    refusal(await anna.send("POST", "/v1/workers/register", request), ErrorCode.BAD_SIGNATURE)


async def test_another_protocol_version_is_told_what_to_install(anna):
    request = await anna.registration(protocol_version=PROTOCOL_VERSION + 1)
    body = refusal(
        await anna.send("POST", "/v1/workers/register", request), ErrorCode.PROTOCOL_VERSION
    )
    assert f"pip install 'hdee=={SOFTWARE_VERSION}'" in body.message


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (str(PROTOCOL_VERSION + 1), ErrorCode.PROTOCOL_VERSION),
        ("latest", ErrorCode.BAD_REQUEST),
    ],
)
async def test_every_request_is_checked_for_the_version_that_it_names(api, anna, header, code):
    for method, path in (("POST", "/v1/assignments/lease"), ("GET", "/v1/domains")):
        answer = await api.http.request(method, path, headers={HEADER: header})
        assert "rotocol" in refusal(answer, code).message
    info = await api.http.get("/v1/run", headers={HEADER: header})
    assert RunInfo.model_validate_json(info.content).protocol_version == PROTOCOL_VERSION


@pytest.mark.parametrize("version", range(max(1, PROTOCOL_VERSION - KEPT), PROTOCOL_VERSION + 1))
async def test_a_worker_of_a_version_that_is_kept_registers(anna, version):
    request = await anna.registration(protocol_version=version, signed_version=version)
    assert (await anna.send("POST", "/v1/workers/register", request)).status_code == 200


@pytest.mark.parametrize(
    "api_settings", [{"enrolment": "invite"}], indirect=True, ids=["by invite"]
)
async def test_a_run_by_invite_wants_the_invite(api, volunteer):
    worker = volunteer("stranger")
    for invite in (None, "guess"):
        request = await worker.registration(invite=invite)
        response = await worker.send("POST", "/v1/workers/register", request)
        refusal(response, ErrorCode.INVITE_REQUIRED)
    request = await worker.registration(invite=invite_token(api.identity))
    assert (await worker.send("POST", "/v1/workers/register", request)).status_code == 200


async def test_a_banned_worker_is_told_so(api, anna):
    with api.ledger.begin() as connection:
        queries.mark_worker(connection, anna.identity.peer_id, "ban", reason="", now=api.clock())
    beat = WorkerHeartbeat(capability=anna.capability, maddrs=())
    refusal(await anna.send("POST", "/v1/workers/heartbeat", beat), ErrorCode.BANNED)
    request = await anna.registration()
    refusal(await anna.send("POST", "/v1/workers/register", request), ErrorCode.BANNED)


async def test_members_that_can_be_dialled_are_named_to_members_only(api, anna):
    own = (f"/ip4/192.0.2.1/tcp/4001/p2p/{api.identity.peer_id}",)
    with api.ledger.begin() as connection:
        queries.set_network(connection, maddrs=own, blob_url="http://a", now=api.clock())
    there = f"/ip4/192.0.2.2/tcp/4001/p2p/{anna.identity.peer_id}"
    elsewhere = f"/ip4/192.0.2.3/tcp/4001/p2p/{api.identity.peer_id}"

    async def named_after(maddrs):
        beat = WorkerHeartbeat(capability=anna.capability, maddrs=maddrs)
        assert (await anna.send("POST", "/v1/workers/heartbeat", beat)).status_code == 200
        run = await anna.send("GET", "/v1/run")
        return RunInfo.model_validate_json(run.content).bootstrap

    assert await named_after(()) == own
    assert await named_after((there,)) == (*own, there)
    assert (await anna.register()).bootstrap == own, "a registration names nobody yet"
    assert await named_after((elsewhere,)) == own
    assert await named_after((there,)) == (*own, there)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=api.app)) as stranger:
        run = await stranger.get("http://api/v1/run")
    assert RunInfo.model_validate_json(run.content).bootstrap == own
    api.clock.advance(3 * 10 + 1)
    run = await anna.send("GET", "/v1/run")
    assert RunInfo.model_validate_json(run.content).bootstrap == own


async def test_registering_again_replaces_the_token(anna):
    old = anna.token
    await anna.register()
    new, anna.token = anna.token, old
    beat = WorkerHeartbeat(capability=anna.capability, maddrs=())
    refusal(await anna.send("POST", "/v1/workers/heartbeat", beat), ErrorCode.UNKNOWN_TOKEN)
    anna.token = new
    assert (await anna.send("POST", "/v1/workers/heartbeat", beat)).status_code == 200


async def test_a_token_expires_unless_heartbeats_prolong_it(api, anna):
    beat = WorkerHeartbeat(capability=anna.capability, maddrs=())
    certificates = []
    for _ in range(3):
        api.clock.advance(1500.0)
        response = await anna.send("POST", "/v1/workers/heartbeat", beat)
        certificates.append(HeartbeatAnswer.model_validate_json(response.content).certificate)
    assert certificates[0] is None
    assert certificates[1] is not None
    api.clock.advance(3600.0)
    refusal(await anna.send("POST", "/v1/workers/heartbeat", beat), ErrorCode.EXPIRED_TOKEN)
