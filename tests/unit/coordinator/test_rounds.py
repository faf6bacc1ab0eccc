"""What a run does next, from any state that a run can be in."""

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.ledger.assignments import AssignmentRow
from coordinator.ledger.domains import DomainRow
from coordinator.ledger.results import RunSnapshot
from coordinator.lifecycle import Assignment
from coordinator.rounds import (
    Classify,
    Finished,
    PlanExperts,
    PlanSeeds,
    Score,
    Wait,
    next_action,
)
from protocol.assignments import FINAL, TRANSITIONS, AssignmentEvent, AssignmentState
from protocol.blobs import BlobRef
from protocol.specs import ExpertSpec, ModelShape, TrainSpec

DOMAINS = ("go", "python", "geography")
SHARD = BlobRef(digest="a" * 64, size=10)
SHAPE = ModelShape(
    vocab_size=256, hidden_size=32, num_layers=2, num_heads=2, ffn_width=64, context_length=32
)
TRAIN = TrainSpec(
    num_steps=10,
    schedule_steps=10,
    warmup_steps=1,
    peak_learning_rate=1e-3,
    final_learning_rate=1e-4,
    micro_batch=2,
    accumulation=1,
    sequence_length=32,
    clip_norm=1.0,
    rng_seed=0,
    compile=False,
)


@cache
def seed_spec():
    return ExpertSpec(
        kind="seed",
        domain="general",
        shape=SHAPE,
        nested_widths=(),
        train_shard=SHARD.digest,
        parent=None,
        trains="all",
        train=TRAIN,
    )


@cache
def expert_spec(domain):
    return seed_spec().model_copy(
        update={"kind": "expert", "domain": domain, "parent": seed_spec().digest}
    )


def row(spec, state=AssignmentState.OPEN, reason=""):
    return AssignmentRow(
        standing=Assignment(assignment=f"assignment of {spec.domain}", state=state),
        spec=spec,
        shard=SHARD,
        schemes=(),
        reason=reason,
        created_at=0.0,
        changed_at=0.0,
    )


def snapshot(*rows, phase="preparing", classified=()):
    domains = [DomainRow("general", None, None, {})]
    domains += [
        DomainRow(name, "easy" if name in classified else None, None, {}) for name in DOMAINS
    ]
    return RunSnapshot(
        phase=phase, domains=tuple(domains), assignments=rows, evaluations=(), results=None
    )


def decide(state):
    return next_action(state, domains=DOMAINS)


SEED_DONE = row(seed_spec(), AssignmentState.ACCEPTED)


def test_a_new_run_plans_its_seeds():
    assert decide(snapshot()) == PlanSeeds()


def test_seeds_are_waited_for():
    assert decide(snapshot(row(seed_spec(), AssignmentState.RUNNING))) == Wait(
        "seeding", "0 of 1 seeds accepted, 1 running"
    )


def test_accepted_seeds_lead_to_classes_and_the_general_text_has_none():
    assert decide(snapshot(SEED_DONE)) == Classify()
    assert decide(snapshot(SEED_DONE, classified=DOMAINS[:2])) == Classify()
    assert decide(snapshot(SEED_DONE, classified=DOMAINS)) == PlanExperts()


def test_scores_come_when_every_expert_is_accepted():
    experts = [row(expert_spec(name), AssignmentState.ACCEPTED) for name in DOMAINS]
    assert decide(snapshot(SEED_DONE, *experts, classified=DOMAINS)) == Score()
    waiting = [*experts[:2], row(expert_spec("geography"), AssignmentState.SUBMITTED)]
    assert decide(snapshot(SEED_DONE, *waiting, classified=DOMAINS)) == Wait(
        "training", "2 of 3 experts accepted, 1 submitted"
    )


def test_a_finished_run_stays_finished():
    assert decide(snapshot(phase="finished")) == Finished()


@pytest.mark.parametrize("state", [AssignmentState.FAILED, AssignmentState.CANCELLED])
def test_a_run_that_nobody_can_finish_says_why(state):
    lost = row(expert_spec("go"), state, reason="out of memory on two workers")
    action = decide(snapshot(SEED_DONE, lost, classified=DOMAINS))
    assert isinstance(action, Wait)
    assert action.phase == "stalled"
    assert lost.assignment in action.reason
    assert "out of memory on two workers" in action.reason


EVENTS = [event for event in AssignmentEvent if event not in ("fail", "cancel")]


def carry_out(action, state):
    """What the scorer does to the ledger, as a function of the snapshot."""
    match action:
        case PlanSeeds():
            return replace(state, phase="seeding", assignments=(row(seed_spec()),))
        case Classify():
            classes = snapshot(classified=DOMAINS).domains
            return replace(state, phase="planning", domains=classes)
        case PlanExperts():
            experts = tuple(row(expert_spec(name)) for name in DOMAINS)
            assignments = (*state.assignments, *experts)
            return replace(state, phase="training", assignments=assignments)
        case Score():
            return replace(state, phase="finished")
        case _:
            return state


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_every_run_finishes_and_plans_everything_once(data):
    state, actions = snapshot(), []
    for step in range(400):
        action = decide(state)
        assert action == decide(state), "the same ledger gives the same answer"
        if isinstance(action, Finished):
            break
        if not isinstance(action, Wait):
            actions.append(type(action))
            killed = data.draw(st.booleans(), label="killed before it was written")
            if not killed:
                state = carry_out(action, state)
            else:
                actions.pop()
            continue
        index = data.draw(st.integers(0, len(state.assignments) - 1))
        chosen = state.assignments[index]
        if chosen.state in FINAL:
            index = next(i for i, r in enumerate(state.assignments) if r.state not in FINAL)
            chosen = state.assignments[index]
        # After a while workers only make progress, so that every run ends.
        forward = ("offer", "acknowledge", "submit", "accept")
        events = [e for e in EVENTS if (chosen.state, e) in TRANSITIONS]
        if step > 100:
            events = [e for e in events if e in forward]
        event = data.draw(st.sampled_from(events))
        after = row(chosen.spec, TRANSITIONS[chosen.state, event])
        rows = (*state.assignments[:index], after, *state.assignments[index + 1 :])
        state = replace(state, assignments=rows)
    assert state.phase == "finished"
    assert actions == [PlanSeeds, Classify, PlanExperts, Score]
