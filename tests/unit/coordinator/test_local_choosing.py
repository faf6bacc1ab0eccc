"""What a trainer of this machine takes next, how far the run is, and what keeps it back."""

from dataclasses import replace
from typing import Any

import pytest

from coordinator.ledger.assignments import AssignmentRow
from coordinator.lifecycle import Assignment
from coordinator.local.choosing import choose, is_waiting, obstacles
from coordinator.local.tally import line_of, tally
from protocol.assignments import AssignmentState
from protocol.specs import ExpertSpec

PARENT = "0" * 64
HERE = ("here-1", "here-2")
NOW = 100.0


def spec_of(make: Any, domain: str, num_steps: int, *, schedule: int = 50) -> ExpertSpec:
    spec = make.spec(domain=domain, parent=PARENT)
    train = spec.train.model_copy(update={"num_steps": num_steps, "schedule_steps": schedule})
    return spec.model_copy(update={"train": train})


def row(
    make: Any, domain: str, num_steps: int, *, schedule: int = 50, **standing: Any
) -> AssignmentRow:
    return AssignmentRow(
        standing=Assignment(assignment=f"{domain}-{num_steps}", **standing),
        spec=spec_of(make, domain, num_steps, schedule=schedule),
        shard=make.blob("shard"),
        schemes=(),
        reason="why",
        created_at=0.0,
        changed_at=0.0,
    )


def chosen(rows: list[AssignmentRow], *, accepted: tuple[str, ...] = (PARENT,)) -> str | None:
    found = choose(rows, accepted=accepted, workers=HERE, now=NOW)
    return None if found is None else found.assignment


def test_the_shorter_training_of_the_longest_curve_comes_first(make: Any) -> None:
    rows = [row(make, "drama", 40), row(make, "python", 50), row(make, "python", 30)]
    assert chosen(rows) == "python-30"


@pytest.mark.parametrize("state", [AssignmentState.RUNNING, AssignmentState.OFFERED])
def test_a_longer_training_waits_for_the_shorter_one_under_way_here(
    make: Any, state: AssignmentState
) -> None:
    under_way = row(make, "python", 30, state=state, worker="here-1")
    rows = [under_way, row(make, "python", 50)]
    assert chosen(rows) is None
    assert is_waiting(rows, accepted=[PARENT], workers=HERE)
    assert chosen([*rows, row(make, "drama", 10)]) == "drama-10"
    elsewhere = replace(under_way, standing=replace(under_way.standing, worker="elsewhere"))
    assert chosen([elsewhere, rows[1]]) == "python-50"


def test_specs_with_schedules_of_their_own_do_not_wait_for_each_other(make: Any) -> None:
    first = row(make, "python", 30, schedule=30, state=AssignmentState.RUNNING, worker="here-1")
    assert chosen([first, row(make, "python", 50)]) == "python-50"


def test_text_of_another_machine_is_not_trained_on_here(make: Any) -> None:
    owned = row(make, "recipes", 90, owner="elsewhere")
    assert chosen([owned, row(make, "python", 30)]) == "python-30"
    assert not is_waiting([owned], accepted=[PARENT], workers=HERE)


def test_nothing_is_taken_before_its_parent_is_accepted_or_its_pause_is_over(make: Any) -> None:
    waits = row(make, "python", 30, not_before=NOW + 1)
    assert chosen([waits]) is None
    assert is_waiting([waits], accepted=[PARENT], workers=HERE)
    orphan = row(make, "python", 30)
    assert chosen([orphan], accepted=()) is None
    assert not is_waiting([orphan], accepted=[], workers=HERE)


def test_what_one_trainer_was_refused_for_no_other_of_the_machine_gets(make: Any) -> None:
    refused = row(make, "python", 30, excluded=frozenset({"here-2"}))
    assert chosen([refused]) is None
    assert not is_waiting([refused], accepted=[PARENT], workers=HERE)
    assert obstacles([refused], workers=HERE) == ("64-wide python expert (python-30): why",)
    assert obstacles([row(make, "python", 30)], workers=HERE) == ()


def test_backups_are_not_for_this_machine(make: Any) -> None:
    assert chosen([replace(row(make, "python", 30), backup_of="another")]) is None


def test_a_prefix_that_specs_share_counts_once(make: Any) -> None:
    rows = [
        row(make, "python", 30, state=AssignmentState.ACCEPTED),
        row(make, "python", 50, state=AssignmentState.RUNNING, worker="here-1"),
        row(make, "drama", 40),
        row(make, "manuals", 40, state=AssignmentState.CANCELLED),
    ]
    before = tally(rows, {})
    assert (before.steps, before.num_steps, before.trained, before.planned) == (30, 90, 1, 3)
    now = tally(rows, {"python-50": 40})
    assert now.steps == 40
    assert now.num_flops == pytest.approx(90 * now.flops / 40)
    event = {"step": 40, "loss": 2.0}
    assert line_of("training", now, 25.0, [(rows[1], event)]) == (
        "training: 1 of 3 trained, step 40 of 90, about 25 s left of what is planned, "
        "64-wide python expert 40/50 loss 2.000"
    )
    assert line_of("preparing", tally([], {}), None, []) == "preparing"
