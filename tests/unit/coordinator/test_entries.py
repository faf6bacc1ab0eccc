"""The chain of entries names the first of its members that was tampered with."""

from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from coordinator.ledger import queries
from coordinator.ledger.entries import FIRST_PREVIOUS, append

NUM_ENTRIES = 5


@pytest.fixture
def written(ledger):
    with ledger.begin() as connection:
        for number in range(NUM_ENTRIES):
            append(connection, "plan", facts={"assignment": f"a{number}"}, now=number + 0.1)
    return ledger


def tamper(ledger, statement: str) -> None:
    """What somebody with the file and an editor could do."""
    with ledger.begin() as connection:
        for verb in ("UPDATE", "DELETE"):
            connection.execute(text(f"DROP TRIGGER IF EXISTS entries_no_{verb}"))
        connection.execute(text(statement))


def test_an_untouched_chain_holds(written):
    with written.read() as connection:
        assert queries.verify_chain(connection) is None
        entries = queries.read_entries(connection)
    assert [entry.number for entry in entries] == [1, 2, 3, 4, 5]
    assert entries[0].previous == FIRST_PREVIOUS
    assert all(b.previous == a.digest for a, b in pairwise(entries))


def test_entries_are_read_in_parts(written):
    with written.read() as connection:
        part = queries.read_entries(connection, after=2, limit=2)
    assert [entry.number for entry in part] == [3, 4]


@pytest.mark.parametrize(
    "statement", ["UPDATE entries SET kind = 'accept' WHERE number = 2", "DELETE FROM entries"]
)
def test_the_database_refuses_to_change_entries(written, statement):
    with (
        pytest.raises(IntegrityError, match="append-only"),
        written.begin() as connection,
    ):
        connection.execute(text(statement))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE entries SET kind = 'accept' WHERE number = 3", "does not give its digest"),
        ("UPDATE entries SET at = 99 WHERE number = 3", "does not give its digest"),
        ("UPDATE entries SET facts = '{}' WHERE number = 3", "does not give its digest"),
        ("UPDATE entries SET facts = '{' WHERE number = 3", "not JSON"),
        ("UPDATE entries SET previous = 'x' WHERE number = 3", "before it"),
        ("DELETE FROM entries WHERE number = 3", "missing"),
    ],
)
def test_the_first_broken_entry_is_named(written, change, reason):
    tamper(written, change)
    with written.read() as connection:
        broken = queries.verify_chain(connection)
    assert broken is not None
    assert broken.number == 3
    assert reason in broken.reason


def test_a_forged_entry_with_its_own_right_digest_breaks_the_next_one(written):
    with written.read() as connection:
        third = queries.read_entries(connection, after=2, limit=1)[0]
    tamper(written, "DELETE FROM entries WHERE number >= 3")
    with written.begin() as connection:
        append(connection, "plan", facts={"assignment": "forged"}, now=third.at)
        connection.execute(
            text("INSERT INTO entries VALUES (4, 9, 'plan', '{}', :previous, 'x')"),
            {"previous": third.digest},
        )
    with written.read() as connection:
        broken = queries.verify_chain(connection)
    assert broken is not None
    assert broken.number == 4


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    facts=st.dictionaries(
        st.text(max_size=5),
        st.none() | st.booleans() | st.integers() | st.text(max_size=5)
        | st.floats(allow_nan=False, allow_infinity=False),
        max_size=4,
    ),
    now=st.floats(0, 1e12),
)  # fmt: skip
def test_any_facts_survive_the_way_through_the_database(ledger, facts, now):
    with ledger.begin() as connection:
        entry = append(connection, "plan", facts=facts, now=now)
        read = queries.read_entries(connection, after=entry.number - 1)
        assert read == [entry]
        assert queries.verify_chain(connection) is None


def test_facts_must_be_what_json_can_name(ledger):
    with ledger.begin() as connection, pytest.raises(ValueError, match="JSON"):
        append(connection, "plan", facts={"loss": float("nan")}, now=1.0)
