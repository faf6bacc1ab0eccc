"""A small simulated fleet under the real scheduler and lifecycle, and the bounds it is held to."""

import random

import pytest

from benchmarks.fleet.bounds import find_bounds
from benchmarks.fleet.hardware import draw_fleet
from benchmarks.fleet.pieces import draw_pieces
from benchmarks.fleet.policies import AnyFeasible, FirstComeFirstServed, TargetFinish
from benchmarks.fleet.report import judge
from benchmarks.fleet.simulation import Simulation

WORKERS, SPECS = 120, 600


@pytest.fixture(scope="module")
def pieces():
    return draw_pieces(specs=SPECS, random=random.Random("pieces-2"))


def draw(pieces, churn: float):
    def fleet(churn: float, span: float):
        return draw_fleet(
            workers=WORKERS,
            churn=churn,
            span_seconds=span,
            stragglers=0.1,
            random=random.Random("fleet-2"),
        )

    return fleet(churn, find_bounds(pieces, fleet(0.0, 0.0)).best)


def simulate(policy, pieces, fleet, *, stop_after: float = 1.6):
    bounds = find_bounds(pieces, fleet)
    simulation = Simulation(pieces, fleet, policy, random.Random("events-2"))
    tally = simulation.run(stop_at=stop_after * bounds.best, progress=lambda _: None)
    return judge("a policy", tally, [1e-3], bounds=bounds, fleet=fleet)


@pytest.mark.parametrize(("churn", "most"), [(0.0, 1.15), (0.2, 1.25)])
def test_the_scheduler_ends_near_the_bound_and_both_baselines_far_from_it(pieces, churn, most):
    fleet = draw(pieces, churn)
    ours = simulate(TargetFinish(patience_seconds=360.0), pieces, fleet)
    assert ours.accepted == SPECS
    assert 1.0 <= ours.ratio <= most
    assert ours.utilisation <= 1.0
    for baseline in (FirstComeFirstServed(), AnyFeasible(random.Random(2))):
        theirs = simulate(baseline, pieces, fleet, stop_after=1.05)
        assert theirs.ratio > 1.3 * ours.ratio


def test_a_seed_decides_the_whole_run(pieces):
    once, again = (
        simulate(TargetFinish(patience_seconds=360.0), pieces[:300], draw(pieces[:300], 0.2))
        for _ in range(2)
    )
    assert once == again


def test_the_linear_program_does_not_undercut_the_area(pieces):
    bounds = find_bounds(pieces, draw(pieces, 0.0))
    assert bounds.linear is not None
    assert bounds.linear >= bounds.area * (1.0 - 1e-6)
    assert bounds.longest < bounds.best


def test_under_churn_the_bound_counts_the_capacity_that_was_there(pieces):
    fleet = draw(pieces, 0.0)
    still = find_bounds(pieces, fleet)
    for machine in fleet:
        machine.joins_at = 100.0
    late = find_bounds(pieces, fleet)
    assert late.linear is None
    assert late.area == pytest.approx(still.area + 100.0)
    fleet[0].leaves_at = 0.0
    assert find_bounds(pieces, fleet).area > late.area


def test_a_piece_that_fits_no_machine_is_refused(pieces):
    with pytest.raises(ValueError, match="fits no machine"):
        find_bounds(pieces, draw(pieces, 0.0)[:1])
