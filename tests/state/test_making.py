"""Checkpoints that the coordinator made: accepted at once, by nobody's lease."""

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from coordinator.ledger import Ledger, LedgerError, queries
from coordinator.ledger.schema import MIGRATIONS
from protocol.assignments import AssignmentState
from protocol.specs import ExpertSpec

COORDINATOR = "12D3KooW" + "C" * 44


def made_spec(make, **changes: object) -> ExpertSpec:
    plain = make.spec()
    train = plain.train.model_copy(update={"num_steps": 0})
    values = {
        "kind": "pretrained",
        "origin": "ab" * 32,
        "train": train,
        "nested_widths": (48, 64),
        **changes,
    }
    return ExpertSpec.model_validate({**dict(plain), **values})


@pytest.fixture
def add(ledger, make):
    """Add a made checkpoint as the coordinator of a run would."""
    with ledger.begin() as connection:
        queries.create_run(connection, run="r", coordinator=COORDINATOR, now=1.0)
        queries.add_shard(connection, make.shard("python", "train"), now=1.0)

    def tell(spec: ExpertSpec, *, worker: str = COORDINATOR, shard: str = "python train") -> str:
        manifest = make.manifest(spec, worker)
        with ledger.begin() as connection:
            return queries.add_made(
                connection,
                spec,
                manifest=manifest,
                manifest_ref=make.blob(f"{spec.digest} manifest"),
                shard=make.blob(shard),
                now=2.0,
            )

    return tell


def test_a_made_checkpoint_is_accepted_and_shown_as_the_coordinators(ledger, add, make):
    spec = made_spec(make)
    assignment = add(spec)
    with ledger.read() as connection:
        row = queries.get_assignment(connection, assignment)
        held = queries.accepted_of(connection, spec.digest)
        (view,) = queries.assignment_views(connection, now=3.0)
        (expert,) = queries.expert_views(connection)
        states = queries.count_by_state(connection, kind="pretrained")
        file = held.manifest.blob("model.safetensors").digest
        anyone_reads = queries.may_read(connection, file, "12D3KooW" + "A" * 44)
        owners = [one.words for one in queries.belongings(connection) if one.needed]
        receipts = queries.receipts_of(connection, COORDINATOR)
        workers = queries.some_workers(connection)
        unneeded = queries.unneeded(connection, [file])
    assert (row.state, row.standing.worker) == (AssignmentState.ACCEPTED, COORDINATOR)
    assert held.worker == expert.worker == view.worker == COORDINATOR
    assert (view.kind, view.reason) == ("pretrained", "made by the coordinator")
    assert states == {"accepted": 1}
    assert anyone_reads
    assert sum("accepted expert" in words for words in owners) == 2
    assert (receipts, workers, unneeded) == ([], (), ())


def test_a_checkpoint_is_made_once(ledger, add, make):
    spec = made_spec(make)
    assert add(spec) == add(spec)
    other = made_spec(make, origin="cd" * 32)
    assert add(other) != add(spec)
    with ledger.read() as connection:
        entries = queries.read_entries(connection)
        assert set(queries.accepted(connection)) == {spec.digest, other.digest}
    assert [entry.kind for entry in entries].count("make") == 2


def test_what_is_made_is_what_its_spec_says(add, make):
    spec = made_spec(make)
    with pytest.raises(LedgerError, match="'seed': expected one of"):
        add(make.spec())
    with pytest.raises(LedgerError, match="expected"):
        add(spec, worker="12D3KooW" + "A" * 44)
    with pytest.raises(LedgerError, match="expected the spec's own"):
        add(spec, shard="python dev")


def test_a_ledger_of_the_first_schema_takes_longer_kinds(database, make):
    ledger = Ledger(database)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with ledger.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(text("INSERT INTO specs VALUES ('s', '{}')"))
        for name, original in (("a1", "NULL"), ("a2", "'a1'")):
            connection.execute(
                text(
                    "INSERT INTO assignments (assignment, spec, kind, backup_of, shard, schemes, "
                    "state, fencing, not_before, num_returns, excluded, reason, created_at, "
                    f"changed_at) VALUES ('{name}', 's', 'seed', {original}, '', '[]', 'open', 0, "
                    "0, 0, '[]', '', 1, 1)"
                )
            )
    ledger.create()
    with ledger.begin() as connection:
        connection.execute(text("UPDATE assignments SET kind = 'pretrained' WHERE fencing = 0"))
        kinds = connection.execute(text("SELECT kind, backup_of FROM assignments ORDER BY 1, 2"))
        assert sorted(map(str, kinds)) == ["('pretrained', 'a1')", "('pretrained', None)"]
    ledger.close()
