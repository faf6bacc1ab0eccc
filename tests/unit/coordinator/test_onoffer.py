"""The steps that newcomers measure with: of the work that is left, the cheapest and the dearest."""

import dataclasses

import pytest

from coordinator.api.onoffer import StepsOnOffer
from coordinator.ledger.queries import AssignmentRow
from coordinator.lifecycle import Assignment
from protocol.assignments import FINAL, AssignmentState


@pytest.fixture
def row(make):
    def row(number: int, *, owner: str | None = None, **facts) -> AssignmentRow:
        spec = make.spec(**facts)
        return AssignmentRow(
            standing=Assignment(assignment=f"a{number}", owner=owner),
            spec=spec,
            shard=make.shard(spec.domain, "train").blob,
            schemes=("a",),
            reason="",
            created_at=0.0,
            changed_at=0.0,
        )

    return row


def moved(row: AssignmentRow, state: AssignmentState) -> AssignmentRow:
    return dataclasses.replace(row, standing=dataclasses.replace(row.standing, state=state))


def test_the_cheapest_and_the_dearest_are_named_each_once(row) -> None:
    steps = StepsOnOffer()
    assert steps.ends() == ()
    rows = [row(width, ffn_width=width) for width in (64, 32, 96)]
    steps.put(rows[0])
    assert steps.ends() == (rows[0].spec.step_shape,)
    for one in rows:
        steps.put(one)
    assert steps.ends() == (rows[1].spec.step_shape, rows[2].spec.step_shape)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_what_is_at_an_end_is_on_offer_no_more(row, state) -> None:
    steps = StepsOnOffer()
    narrow, again, wide = (
        row(1, ffn_width=32),
        row(2, ffn_width=32, rng_seed=9),
        row(3, ffn_width=64),
    )
    for one in (narrow, again, wide):
        steps.put(one)
    steps.put(moved(narrow, state))
    assert steps.ends() == (again.spec.step_shape, wide.spec.step_shape)
    steps.put(moved(again, state))
    assert steps.ends() == (wide.spec.step_shape,)
    steps.put(narrow)
    assert steps.ends() == (narrow.spec.step_shape, wide.spec.step_shape)


def test_work_on_somebodys_own_data_is_on_offer_to_nobody_else(row) -> None:
    steps = StepsOnOffer()
    steps.put(row(1, owner="12D3KooWGRUZtZpHdhCmpPHYmHmQ1EhQTpiRQHTJGPNEZxhBhZTM"))
    assert steps.ends() == ()
