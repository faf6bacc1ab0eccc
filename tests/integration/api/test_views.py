"""What anybody may see of a run, and what every refusal looks like."""

import pytest

from coordinator.ledger import queries
from protocol.errors import ErrorCode
from protocol.messages import RunInfo, WorkerHeartbeat
from protocol.views import ResultTable, StatusView, TableRow
from tests.integration.api.volunteer import add_work, finish, refusal


async def test_the_public_views_show_the_run(api, make, anna, bert):
    seed = add_work(api, make)
    await finish(api, make, anna, seed)
    api.pass_time(1.0)
    expert = add_work(api, make, parent=seed.digest)
    await bert.start()
    table = ResultTable(
        columns=("seed",),
        rows=(TableRow(domain="python", perplexity={"seed": 9.0}, bits_per_byte={"seed": 1.5}),),
    )
    refusal(await anna.send("GET", "/v1/results"), ErrorCode.NOT_FOUND)
    with api.ledger.begin() as connection:
        queries.record_results(connection, table, api.clock())
        queries.set_domain_class(connection, "python", "easy", 12.5, now=api.clock())
        for split, perplexity in (("dev", 12.5), ("test", 99.0)):
            queries.record_evaluation(
                connection,
                spec_digest=seed.digest,
                shard_digest=make.shard("python", split).blob.digest,
                mean_log_likelihood=-2.5,
                perplexity=perplexity,
                bits_per_byte=1.5,
                now=api.clock(),
            )
        queries.set_phase(connection, "scoring", "all accepted", api.clock())
    anna.token = bert.token = None
    info = RunInfo.model_validate_json((await anna.send("GET", "/v1/run")).content)
    assert (info.run, info.coordinator) == ("test", api.identity.peer_id)
    view = StatusView.model_validate_json((await anna.send("GET", "/v1/status")).content)
    assert (view.phase, view.experts_accepted, view.experts_planned) == ("scoring", 0, 1)
    assert view.assignments == {"accepted": 1, "running": 1}
    assert view.workers == {"idle": 1, "working": 1}
    assert (view.phase_age_seconds, view.results_age_seconds, view.round) == (0.0, 0.0, 1)
    assert [(row.checkpoint, row.domain, row.perplexity) for row in view.perplexities] == [
        (f"seed-ffn64-{seed.digest[:8]}", "python", 12.5)
    ]
    assert view.results == table
    assert view.eta_seconds is not None
    assert (await anna.send("GET", "/v1/results")).json()["columns"] == ["seed"]
    by_id = {row["worker"]: row for row in (await anna.send("GET", "/v1/workers")).json()}
    assert by_id[anna.identity.peer_id]["accepted"] == 1
    domains = (await anna.send("GET", "/v1/domains")).json()
    assert {row["domain"]: row["difficulty"] for row in domains} == {
        "python": "easy",
        "manuals": None,
    }
    rows = (await anna.send("GET", "/v1/assignments")).json()
    assert {row["spec"] for row in rows} == {seed.digest, expert.digest}
    assert [row["assignment"] for row in rows] == sorted(row["assignment"] for row in rows)


async def test_ready_means_that_every_role_is_alive(api):
    assert (await api.http.get("/healthz")).status_code == 200
    body = refusal(await api.http.get("/readyz"), ErrorCode.NOT_READY)
    assert "scorer" in body.message
    with api.ledger.begin() as connection:
        queries.beat_role(connection, "scorer", api.clock())
    assert (await api.http.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "content", "code"),
    [
        ("GET", "/v1/nothing", None, ErrorCode.NOT_FOUND),
        ("DELETE", "/v1/run", None, ErrorCode.NOT_FOUND),
        ("POST", "/v1/workers/register", b"{", ErrorCode.BAD_REQUEST),
        ("POST", "/v1/workers/register", b'{"worker": 1}', ErrorCode.BAD_REQUEST),
        ("POST", "/v1/workers/register", b" " * 65_537, ErrorCode.BODY_TOO_LARGE),
        ("POST", "/v1/assignments/lease", b"{}", ErrorCode.UNKNOWN_TOKEN),
    ],
)
async def test_every_refusal_has_an_error_body(api, method, path, content, code):
    headers = {"Content-Type": "application/json"}
    refusal(await api.http.request(method, path, content=content, headers=headers), code)


async def test_a_bad_field_is_named_with_its_value_and_what_was_expected(api, anna):
    beat = WorkerHeartbeat(capability=anna.capability, maddrs=())
    body = beat.model_dump_json().replace('"num_threads":1', '"num_threads":0')
    response = await api.http.post(
        "/v1/workers/heartbeat",
        content=body,
        headers={"Authorization": f"Bearer {anna.token}", "Content-Type": "application/json"},
    )
    message = refusal(response, ErrorCode.BAD_REQUEST).message
    assert message.startswith("body.capability.num_threads: 0: ")
    assert "greater than or equal to 1" in message


async def test_an_unexpected_failure_shows_no_internals(api, anna, caplog):
    with api.ledger.begin() as connection:
        connection.exec_driver_sql("DROP TABLE nonces")
    request = await anna.registration()
    body = refusal(await anna.send("POST", "/v1/workers/register", request), ErrorCode.INTERNAL)
    assert "nonces" not in body.message
