"""GET /v1/run tells newcomers which steps there are to measure with, read by the real client."""

from coordinator.ledger import queries
from worker.client import CoordinatorClient


async def test_a_newcomer_hears_of_the_cheapest_and_the_dearest_step(api, make):
    client = CoordinatorClient("http://coordinator")
    await client.http.aclose()
    client.http = api.http
    assert (await client.run_info()).on_offer == ()
    specs = [make.spec(ffn_width=width) for width in (64, 32, 96)]
    with api.ledger.begin() as connection:
        for spec in specs:
            shard = make.shard(spec.domain, "train").blob
            queries.add_assignment(connection, spec, shard=shard, schemes=("a",), now=api.clock())
    api.tick()
    narrow, wide = specs[1].step_shape, specs[2].step_shape
    assert (await client.run_info()).on_offer == (narrow, wide)
    with api.ledger.begin() as connection:
        (row,) = (row for row in queries.all_assignments(connection) if row.spec == specs[2])
        queries.cancel_assignment(connection, row, reason="a test", now=api.clock())
    api.tick()
    assert (await client.run_info()).on_offer == (narrow, specs[0].step_shape)
