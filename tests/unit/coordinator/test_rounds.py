"""What a run does next, from any state that a run can be in, with every scheme there is."""

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import CLASSES, SCHEMES, lineages_of, prepared_for, run_of

from coordinator.ledger.assignments import AssignmentRow
from coordinator.ledger.domains import DomainRow
from coordinator.ledger.failing import Failing
from coordinator.ledger.snapshot import RunSnapshot
from coordinator.lifecycle import Assignment
from coordinator.planning.measured import Measured
from coordinator.planning.plan import make_plan
from coordinator.planning.recipes import seed_specs
from coordinator.rounds import (
    AddWork,
    Classify,
    Finished,
    Measure,
    PlanSeeds,
    Score,
    Wait,
    next_action,
    standard_of,
)
from protocol.assignments import FINAL, TRANSITIONS, AssignmentEvent, AssignmentState
from protocol.blobs import BlobRef

SHARD = BlobRef(digest="a" * 64, size=10)
RUN = run_of(lineages_of(), dense={"learning_rates": [1e-3, 2e-3], "trial_steps": 50})


@cache
def prepared():
    return prepared_for(RUN)


@cache
def seeds():
    return seed_specs(RUN, prepared())


def row(spec, state=AssignmentState.OPEN, reason="", schemes=()):
    return AssignmentRow(
        standing=Assignment(assignment=f"a{spec.digest[:16]}", state=state),
        spec=spec,
        shard=SHARD,
        schemes=schemes,
        reason=reason,
        created_at=0.0,
        changed_at=0.0,
    )


def snapshot(*rows, phase="preparing", classified=()):
    return RunSnapshot(
        phase=phase,
        domains=tuple(
            DomainRow(name, CLASSES[name] if name in classified else None, None, {})
            for name in CLASSES
        ),
        assignments=rows,
        evaluations=(),
        results=None,
    )


def plan_in(state, losses=()):
    """As the scorer makes it: none before every trained domain has its class."""
    if any(domain.difficulty is None for domain in state.domains):
        return None
    return plan_after(frozenset(dict(losses).items()))


@cache
def plan_after(losses):
    return make_plan(RUN, prepared(), seeds(), CLASSES, Measured(dict(losses), {}))


def decide(state, losses=()):
    return next_action(state, plan_in(state, losses))


SEED_DONE = row(seeds()["M"], AssignmentState.ACCEPTED)


def planned(losses=(), state=AssignmentState.ACCEPTED):
    plan = plan_in(snapshot(classified=CLASSES), losses)
    return [row(spec, state, schemes=served) for spec, served in plan.assignments()]


def test_a_new_run_plans_its_seeds():
    assert decide(snapshot()) == PlanSeeds()


def test_seeds_are_waited_for():
    assert decide(snapshot(row(seeds()["M"], AssignmentState.RUNNING))) == Wait(
        "seeding", "0 of 1 seeds accepted, 1 running"
    )


def test_accepted_seeds_lead_to_classes_and_those_to_work():
    assert decide(snapshot(SEED_DONE)) == Classify()
    assert decide(snapshot(SEED_DONE, classified=list(CLASSES)[:2])) == Classify()
    assert decide(snapshot(SEED_DONE, classified=CLASSES)) == AddWork()


def test_work_that_serves_one_more_scheme_is_added_again():
    rows = planned()
    less = replace(rows[0], schemes=rows[0].schemes[:-1])
    assert decide(snapshot(SEED_DONE, less, *rows[1:], classified=CLASSES)) == AddWork()


def test_what_the_plan_waits_for_is_measured_as_soon_as_it_is_there():
    rows = planned()
    probe = next(index for index, one in enumerate(rows) if "probe" in one.schemes)
    others = [replace(one, standing=row(one.spec).standing) for one in rows]
    assert decide(snapshot(SEED_DONE, *others, classified=CLASSES)) == Wait(
        "training", f"0 of {len(rows)} experts accepted, {len(rows)} open"
    )
    others[probe] = rows[probe]
    wanted = decide(snapshot(SEED_DONE, *others, classified=CLASSES))
    assert wanted == Measure(((rows[probe].spec.digest, rows[probe].spec.domain),), ())


def test_only_what_is_measured_alone_may_be_no_better_than_what_it_branched_from():
    assert standard_of(()) == standard_of(("MHo-IHo",)) == standard_of(("dense",)) == "better"
    assert standard_of(("probe", "MHo-IHe")) == standard_of(("dense trial", "dense")) == "better"
    assert standard_of(("probe",)) == standard_of(("dense trial",)) == "any"


TRIALS = run_of(lineages_of(["MHo-IHo"]), dense={"learning_rates": [1e-3, 2e-3], "trial_steps": 50})


def after_trials(*states, reason=""):
    """What is next, and the plan, once all but the trials is accepted; they are in `states`."""
    texts = prepared_for(TRIALS)
    seed = seed_specs(TRIALS, texts)
    lost, losses = set(), {}
    rows = {seed["M"].digest: row(seed["M"], AssignmentState.ACCEPTED)}
    for _ in range(9):
        plan = make_plan(TRIALS, texts, seed, CLASSES, Measured(losses, {}, lost))
        found = snapshot(*rows.values(), classified=CLASSES)
        action = next_action(replace(found, diverged=frozenset(lost)), plan)
        if isinstance(action, Measure):
            losses |= {want: 2 + int(want[0][:6], 16) / 16**6 for want in action.losses}
        elif isinstance(action, AddWork):
            state_of = {spec.digest: state for spec, state in zip(plan.trials, states, strict=True)}
            for spec, served in plan.assignments():
                state = state_of.get(spec.digest, AssignmentState.ACCEPTED)
                rows[spec.digest] = row(spec, state, reason, served)
            if not reason:
                lost = {one for one, state in state_of.items() if state is AssignmentState.FAILED}
        else:
            return action, plan
    raise AssertionError("there is always something to do")


def test_a_trial_that_diverged_has_lost_and_the_run_goes_on_with_the_others():
    action, plan = after_trials(AssignmentState.FAILED, AssignmentState.ACCEPTED)
    assert action == Score()
    assert plan.dense is not None
    assert plan.dense.train.peak_learning_rate == 2e-3
    lineup = plan.lineup(seed_specs(TRIALS, prepared_for(TRIALS))["M"])
    assert lineup.others == (plan.trials[1].digest,), (
        "nothing is there to be shown of what diverged"
    )
    assert [cost.diverged for cost in lineup.search] == [(1e-3,)]


def test_a_trial_that_failed_for_another_reason_holds_the_run_up():
    states = AssignmentState.FAILED, AssignmentState.ACCEPTED
    action, plan = after_trials(*states, reason="out of memory")
    words = f"assignment a{plan.trials[0].digest[:16]} is failed: out of memory"
    assert action == Wait("stalled", words)


def test_a_run_whose_every_trial_diverged_says_so():
    action, plan = after_trials(AssignmentState.FAILED, AssignmentState.FAILED)
    assert isinstance(action, Wait)
    assert action.phase == "stalled"
    assert "diverged at each of dense.learning_rates [0.001, 0.002]" in action.reason
    assert not plan.is_complete


def test_a_finished_run_stays_finished():
    assert decide(snapshot(phase="finished")) == Finished()


@pytest.mark.parametrize("state", [AssignmentState.FAILED, AssignmentState.CANCELLED])
def test_a_run_that_nobody_can_finish_says_why(state):
    rows = planned(state=AssignmentState.OPEN)
    lost = row(rows[0].spec, state, "out of memory on two workers", rows[0].schemes)
    action = decide(snapshot(SEED_DONE, lost, *rows[1:], classified=CLASSES))
    assert isinstance(action, Wait)
    assert action.phase == "stalled"
    assert lost.assignment in action.reason
    assert "out of memory on two workers" in action.reason


EVENTS = [event for event in AssignmentEvent if event not in ("fail", "cancel")]


def carry_out(action, state, losses):
    """What the scorer does to the ledger, as a function of the snapshot."""
    match action:
        case PlanSeeds():
            return replace(state, phase="seeding", assignments=(row(seeds()["M"]),))
        case Classify():
            return replace(state, domains=snapshot(classified=CLASSES).domains)
        case AddWork():
            known = {one.spec.digest: one for one in state.assignments}
            for spec, served in plan_in(state, losses).assignments():
                before = known.get(spec.digest, row(spec))
                known[spec.digest] = replace(before, schemes=served)
            return replace(state, phase="training", assignments=tuple(known.values()))
        case Measure(wanted, _):
            for digest, domain in wanted:
                losses[digest, domain] = 2 + int(digest[:6], 16) / 16**6
            return state
        case Score():
            return replace(state, phase="finished")
        case _:
            return state


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_run_finishes_and_ends_with_all_schemes(data):
    state, losses, last = snapshot(), {}, None
    for step in range(2000):
        action = decide(state, losses)
        if isinstance(action, Finished):
            break
        last = action if not isinstance(action, Wait) else last
        if not isinstance(action, Wait):
            if not data.draw(st.booleans(), label="killed before it was written"):
                state = carry_out(action, state, losses)
            continue
        running = [i for i, one in enumerate(state.assignments) if one.state not in FINAL]
        index = data.draw(st.sampled_from(running))
        chosen = state.assignments[index]
        # After a while workers only make progress, so that every run ends.
        forward = ("offer", "acknowledge", "submit", "accept")
        events = [e for e in EVENTS if (chosen.state, e) in TRANSITIONS]
        if step > 60:
            events = [e for e in events if e in forward]
        event = data.draw(st.sampled_from(events))
        after = row(chosen.spec, TRANSITIONS[chosen.state, event], schemes=chosen.schemes)
        rows = (*state.assignments[:index], after, *state.assignments[index + 1 :])
        state = replace(state, assignments=rows)
    assert state.phase == "finished"
    assert last == Score()
    plan = plan_in(state, losses)
    assert plan.is_complete
    assert plan.dense is not None
    for scheme in SCHEMES:
        assert set(plan.schemes[scheme]) == set(CLASSES)
        assert len(plan.members[scheme]) == 3
    known = {one.spec.digest for one in state.assignments}
    assert {spec.digest for spec, _ in plan.assignments()} <= known


def test_work_that_fails_again_and_again_is_told_with_what_the_operator_can_do():
    rows = planned(state=AssignmentState.OPEN)
    bad = rows[0]
    failing = Failing(bad.assignment, "diverged", 3, 1)
    state = replace(snapshot(SEED_DONE, *rows, classified=CLASSES), failing=(failing,))
    action = decide(state)
    assert action.phase == "training", "the others go on"
    for words in (
        f"{bad.spec.domain} {bad.spec.kind} {bad.assignment} failed 3 times (diverged) on 1 worker",
        "let another worker join",
        f"hdee-coordinator fail RUN.toml {bad.assignment}",
        "a lower recipe.peak_learning_rate",
    ):
        assert words in action.reason


def test_a_run_is_stalled_while_all_that_is_left_fails_again_and_again():
    seed = row(seeds()["M"], AssignmentState.RUNNING)
    twice = Failing(seed.assignment, "trainer_failed", 2, 1)
    state = snapshot(seed)
    assert decide(replace(state, failing=(twice,))) == decide(state)
    action = decide(replace(state, failing=(replace(twice, num_attempts=3, num_workers=2),)))
    assert action.phase == "stalled"
    assert "failed 3 times (trainer_failed) on 2 workers" in action.reason
    assert "peak_learning_rate" not in action.reason
    assert decide(replace(snapshot(SEED_DONE), failing=(twice,))) == Classify()
