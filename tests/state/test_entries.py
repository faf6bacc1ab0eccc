"""The chain of entries names the first of its members that was tampered with."""

from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from coordinator.ledger import LedgerError, queries
from coordinator.ledger.entries import FIRST_PREVIOUS, Row, _body, _digest, added, changed, record
from coordinator.ledger.tables import domains, entries, run

NUM_ENTRIES = 5


@pytest.fixture
def written(ledger):
    with ledger.begin() as connection:
        for number in range(NUM_ENTRIES):
            row = added(domains, domain=f"d{number}")
            record(connection, "shard", row, facts={"number": number}, now=number + 0.1)
    return ledger


def tamper(ledger, statement: str, **values: object) -> None:
    """What somebody with the database and an editor could do."""
    with ledger.begin() as connection:
        if connection.dialect.name == "sqlite":
            for verb in ("update", "delete"):
                connection.execute(text(f"DROP TRIGGER IF EXISTS entries_no_{verb}"))
        else:
            connection.execute(text("ALTER TABLE entries DISABLE TRIGGER ALL"))
        connection.execute(text(statement), values)


def verdict(ledger):
    with ledger.read() as connection:
        return queries.verify_ledger(connection)


def test_an_untouched_chain_holds(written):
    with written.read() as connection:
        assert queries.verify_chain(connection) is None
        read = queries.read_entries(connection)
        assert queries.last_number(connection) == NUM_ENTRIES
    assert [entry.number for entry in read] == [1, 2, 3, 4, 5]
    assert read[0].previous == FIRST_PREVIOUS
    assert all(b.previous == a.digest for a, b in pairwise(read))


def test_an_entry_holds_the_rows_that_it_wrote(written):
    with written.begin() as connection:
        row = changed(domains, domain="d2", difficulty="easy")
        number = record(connection, "classify", row, now=9.0)
        (entry,) = queries.read_entries(connection, after=number - 1)
    assert entry.rows == (Row("domains", {"domain": "d2", "difficulty": "easy"}),)
    assert (entry.kind, entry.at, entry.facts) == ("classify", 9.0, {})
    found = verdict(written)
    assert (found.num_entries, found.head) == (number, entry.digest)
    assert found.rows["domains"] == NUM_ENTRIES


def test_entries_are_read_in_parts(written):
    with written.read() as connection:
        part = queries.read_entries(connection, after=2, limit=2)
    assert [entry.number for entry in part] == [3, 4]


def test_a_row_that_is_not_there_cannot_be_changed_and_no_entry_says_so(written):
    with (
        pytest.raises(LedgerError, match="no such row"),
        written.begin() as connection,
    ):
        record(connection, "classify", changed(domains, domain="none", difficulty="x"), now=1.0)
    with written.read() as connection:
        assert queries.last_number(connection) == NUM_ENTRIES


def test_only_state_tables_are_written_through_entries(written):
    with pytest.raises(LedgerError, match="'nonces'"), written.begin() as connection:
        record(connection, "plan", Row("nonces", {"nonce": "x"}, new=True), now=1.0)


@pytest.mark.parametrize(
    "statement", ["UPDATE entries SET kind = 'accept' WHERE number = 2", "DELETE FROM entries"]
)
def test_the_database_refuses_to_change_entries(written, statement):
    with (
        pytest.raises(DBAPIError, match="append-only"),
        written.begin() as connection,
    ):
        connection.execute(text(statement))


@pytest.mark.tampers
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE entries SET kind = 'accept' WHERE number = 3", "does not give its digest"),
        ("UPDATE entries SET at = 99 WHERE number = 3", "does not give its digest"),
        ("UPDATE entries SET body = '{}' WHERE number = 3", "does not give its digest"),
        ("UPDATE entries SET previous = 'x' WHERE number = 3", "before it"),
        ("DELETE FROM entries WHERE number = 3", "missing"),
    ],
)
def test_the_first_broken_entry_is_named(written, change, reason):
    tamper(written, change)
    broken = verdict(written).broken
    assert broken is not None
    assert broken.number == 3
    assert reason in broken.reason


@pytest.mark.tampers
def test_a_forged_entry_with_its_own_right_digest_breaks_the_next_one(written):
    with written.read() as connection:
        third, fourth = queries.read_entries(connection, after=2, limit=2)
    tamper(written, "DELETE FROM entries WHERE number >= 3")
    with written.begin() as connection:
        record(connection, "plan", facts={"number": "forged"}, now=third.at)
        connection.execute(
            text("INSERT INTO entries VALUES (4, 9, 'plan', '{}', :previous, 'x')"),
            {"previous": fourth.previous},
        )
    broken = verdict(written).broken
    assert broken is not None
    assert broken.number == 4


@pytest.mark.tampers
@pytest.mark.parametrize(
    ("change", "key", "found", "expected"),
    [
        ("UPDATE domains SET difficulty = 'easy' WHERE domain = 'd1'", "d1", "easy", None),
        ("DELETE FROM domains WHERE domain = 'd1'", "d1", "gone", None),
        ("INSERT INTO domains (domain) VALUES ('d9')", "d9", None, "gone"),
    ],
)
def test_a_row_that_no_entry_wrote_is_named(written, change, key, found, expected):
    tamper(written, change)
    shown = verdict(written)
    assert shown.broken is None
    assert not shown.holds
    (difference,) = shown.differences
    assert (difference.table, difference.key) == ("domains", (key,))
    for side, value in ((difference.found, found), (difference.expected, expected)):
        assert "gone" if side is None else side["difficulty"] == value


def test_what_is_marked_volatile_may_change_without_an_entry(written):
    with written.begin() as connection:
        queries.create_run(connection, run="r", coordinator="c", now=1.0)
        connection.execute(run.update().values(phase_reason="all is well"))
    assert verdict(written).holds


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    facts=st.dictionaries(
        st.text(max_size=5, alphabet=st.characters(exclude_categories=["Cs"])),
        st.none() | st.booleans() | st.integers() | st.text(max_size=5)
        | st.floats(allow_nan=False, allow_infinity=False),
        max_size=4,
    ),
    now=st.floats(0, 1e12),
)  # fmt: skip
def test_any_facts_survive_the_way_through_the_database(ledger, facts, now):
    with ledger.begin() as connection:
        number = record(connection, "plan", facts=facts, now=now)
        (read,) = queries.read_entries(connection, after=number - 1)
        assert (read.number, read.at, read.facts) == (number, now, facts)
        assert queries.verify_chain(connection) is None


def test_facts_must_be_what_json_can_name(ledger):
    with pytest.raises(ValueError, match="JSON"), ledger.begin() as connection:
        record(connection, "plan", facts={"loss": float("nan")}, now=1.0)


@pytest.mark.tampers
@pytest.mark.parametrize(
    "row",
    [
        changed(domains, domain="none", difficulty="easy"),
        changed(domains, difficulty="easy"),
        added(domains, domain="d1"),
        added(domains, domain="d9", name="x"),
        added(domains, domain={"d9": 1}),
        Row("songs", {"title": "x"}),
    ],
    ids=["no such row", "no key", "there already", "no such column", "no value", "no such table"],
)
def test_an_entry_in_its_place_whose_rows_cannot_be_written_is_named(written, row):
    body, number = _body({}, [row]), NUM_ENTRIES + 1
    with written.begin() as connection:
        (last,) = queries.read_entries(connection, after=NUM_ENTRIES - 1)
        values = {"number": number, "at": 9.0, "kind": "plan", "body": body}
        digest = _digest(number, 9.0, "plan", body, last.digest)
        connection.execute(entries.insert(), values | {"previous": last.digest, "digest": digest})
    broken = verdict(written).broken
    assert broken is not None
    assert broken.number == number
    assert "its rows cannot be written" in broken.reason
