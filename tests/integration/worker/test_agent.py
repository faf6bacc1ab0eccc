"""The real agent, its real trainers, and a coordinator's real roles: what may happen to a lease."""

from pathlib import Path
from typing import Any

import pytest

from coordinator.ledger import queries
from coordinator.ledger.tables import presence
from protocol.manifests import CheckpointManifest
from shared.clock import now

pytestmark = pytest.mark.timeout(300)
"""Trainers and workers take seconds to load torch, more where others compute as well."""


async def test_an_agent_joins_trains_submits_and_ends_in_good_order(
    roles: Any, volunteers: Any, tools: Any, tmp_path: Path
) -> None:
    assignment = roles.open_assignment(num_steps=30)
    anna = volunteers("anna")
    await tools.until("submitted", lambda: roles.state(assignment) == "submitted")
    await tools.until("collected", lambda: roles.row(assignment).standing.expires_at is None)
    assert await anna.stop() == 0
    with roles.ledger.read() as connection:
        [row] = queries.durable_submissions(connection)
    assert (row.worker, row.assignment) == (anna.peer_id, assignment)
    assert isinstance(row.manifest, CheckpointManifest)
    assert all(roles.store.verify(file.blob.digest) for file in row.manifest.files)
    assert f"submitted {assignment} (python)" in anna.said
    assert not (tmp_path / "anna" / "offer.json").exists()
    assert "route=direct" in (roles.folders.logs / "network.log").read_text()


async def test_a_longer_training_of_a_curve_starts_where_the_shorter_one_stopped(
    roles: Any, volunteers: Any, tools: Any, make: Any
) -> None:
    spec = make.spec(rng_seed=77)

    def stopping_at(num_steps: int) -> str:
        train = spec.train.model_copy(update={"num_steps": num_steps, "schedule_steps": 60})
        return roles.open_spec(spec.model_copy(update={"train": train}))

    shorter = stopping_at(20)
    anna = volunteers("anna")
    await tools.until("submitted", lambda: roles.state(shorter) == "submitted")
    await tools.until("collected", lambda: roles.row(shorter).standing.expires_at is None)
    longer = stopping_at(40)
    await tools.until("submitted too", lambda: roles.state(longer) == "submitted")
    await tools.until("collected too", lambda: roles.row(longer).standing.expires_at is None)
    assert "going on from step 20, where a shorter training stopped here" in anna.said
    with roles.ledger.read() as connection:
        manifest = {row.assignment: row for row in queries.durable_submissions(connection)}[
            longer
        ].manifest
    with roles.ledger.read() as connection:
        attempt = queries.newest_attempts(connection, [longer])[longer]
    assert (attempt.resumed_step, attempt.resumed_from) == (20, anna.peer_id)
    assert [point.step for point in manifest.curve] == list(range(1, 41))
    assert await anna.stop() == 0


async def test_an_expired_token_is_replaced_without_anybody_noticing(
    roles: Any, volunteers: Any, tools: Any
) -> None:
    assignment = roles.open_assignment()
    anna = volunteers("anna")
    await tools.until("training", lambda: anna.said.step > 0)
    with roles.ledger.begin() as connection:
        mine = presence.c.worker == anna.peer_id
        connection.execute(
            presence.update()
            .where(mine)
            .values(token_digest="0" * 64, token_expires_at=now() - 1, maddrs="[]")
        )

    def renewed() -> bool:
        with roles.ledger.read() as connection:
            return queries.find_worker(connection, anna.peer_id).token_expires_at > now()

    await tools.until("registered again", renewed)
    with roles.ledger.read() as connection:
        assert queries.find_worker(connection, anna.peer_id).maddrs
    before = anna.said.step
    await tools.until("training goes on", lambda: anna.said.step > before)
    assert roles.row(assignment).standing.fencing == 1
    assert await anna.stop() == 0


async def test_a_lost_lease_ends_its_trainer_and_the_agent_asks_for_other_work(
    roles: Any, volunteers: Any, tools: Any, tmp_path: Path
) -> None:
    roles.open_assignment()
    anna = volunteers("anna")
    await tools.until("training", lambda: anna.said.step > 0)
    [trainer] = tools.trainers(tmp_path)
    following = roles.open_assignment()
    await tools.until("the lease is gone", lambda: "is gone" in anna.said)
    assert trainer not in tools.trainers(tmp_path)
    await tools.until("other work", lambda: roles.state(following) == "running")
    assert await anna.stop() == 0
    assert tools.trainers(tmp_path) == []


async def test_a_killed_trainer_is_started_again_from_its_newest_checkpoint_under_the_same_lease(
    roles: Any, volunteers: Any, tools: Any, tmp_path: Path
) -> None:
    assignment = roles.open_assignment()
    anna = volunteers("anna")
    await tools.until("a checkpoint", lambda: tools.steps_done(tmp_path / "anna") > 0)
    [trainer] = tools.trainers(tmp_path)
    tools.kill(trainer)
    await tools.until("another one", lambda: tools.trainers(tmp_path) not in ([], [trainer]))
    done = tools.steps_done(tmp_path / "anna")
    await tools.until("it trains", lambda: tools.steps_done(tmp_path / "anna") > done)
    assert "exit code -9; see" in "".join(anna.said.lines)
    assert f"starting it again from step-{done:08d}" in anna.said
    assert roles.row(assignment).standing.fencing == 1
    assert not any(entry.startswith("release") for entry in roles.entries(assignment))
    assert await anna.stop() == 0


async def test_what_was_trained_while_the_coordinator_was_away_is_handed_in_by_the_next_start(
    roles: Any, volunteers: Any, tools: Any, tmp_path: Path
) -> None:
    assignment = roles.open_assignment(num_steps=500)
    anna = volunteers("anna")
    await tools.until("training", lambda: tools.trainers(tmp_path))
    roles.kill("api")
    try:
        expert = tmp_path / "anna" / "work" / assignment / "expert" / "model.safetensors"
        await tools.until("trained", lambda: expert.exists() and not tools.trainers(tmp_path))
        assert await anna.stop() == 0
        assert "the next start goes on with this lease" in anna.said
        assert (tmp_path / "anna" / "offer.json").exists()
    finally:
        roles.start("api")
    await tools.until("the api is back", roles.ready)
    with roles.ledger.begin() as connection:
        queries.extend_leases(connection, 60.0)
    anna = volunteers("anna")
    await tools.until("submitted", lambda: roles.state(assignment) == "submitted")
    assert roles.row(assignment).standing.fencing == 1
    assert await anna.stop() == 0
