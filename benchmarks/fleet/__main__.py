"""`python -m benchmarks.fleet`: the command line of the fleet simulator."""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable

from benchmarks.fleet.bounds import Bounds, find_bounds
from benchmarks.fleet.hardware import Machine, draw_fleet
from benchmarks.fleet.pieces import Piece, draw_pieces
from benchmarks.fleet.policies import AnyFeasible, FirstComeFirstServed, Policy, TargetFinish
from benchmarks.fleet.report import Outcome, as_text, as_values, judge
from benchmarks.fleet.simulation import Simulation
from benchmarks.fleet.state import Trouble

PATIENCE_HEARTBEATS = 3
POLICIES = ("target", "fcfs", "any")

_DESCRIPTION = """\
Simulate a fleet of volunteers under the real scheduler, in virtual time.

Draws machines from a mix of real hardware and pieces of work from real model shapes, plays joins,
heartbeats, transfers, stalls and departures, and compares the time until the last piece is accepted
with what no schedule could beat. The same machines and pieces are given to two simpler policies:
the oldest piece that fits (fcfs), and any piece that fits (any), as BOINC does.
"""

_EPILOG = """\
examples:
  python -m benchmarks.fleet --workers 200 --specs 1000          some seconds, with the LP bound
  python -m benchmarks.fleet --workers 10000 --specs 50000       some minutes
  python -m benchmarks.fleet --workers 10000 --specs 50000 --churn 0.2 --format json

Read "over bound": 1.05 means that the run took 5 % longer than a bound that no schedule can beat.
"> 4.0" means that the run was stopped (--stop-after) and at least one piece would end that late.
"""


def main() -> None:
    """Parses, simulates each policy, prints."""
    options = _parse()
    fleet, pieces = _draw(options)
    bounds = find_bounds(pieces, fleet)
    outcomes = [_run(name, options, fleet, pieces, bounds) for name in options.policies]
    if options.format == "json":
        print(json.dumps({"options": vars(options), **as_values(outcomes, bounds)}, indent=2))
    else:
        print(as_text(outcomes, bounds))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workers", type=_positive, default=200, metavar="N", help="machines at the start (200)")
    add("--specs", type=_positive, default=1000, metavar="N", help="pieces of work (1000)")
    add(
        "--churn",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="share that leaves for good, "
        "uniformly over the time that a fleet without churn needs at best; as many join (0)",
    )
    add(
        "--stragglers",
        type=_share,
        default=0.1,
        metavar="SHARE",
        help="share that reaches only 30 to 80 %% of its calibrated speed (0.1)",
    )
    add(
        "--stalls",
        type=_share,
        default=0.02,
        metavar="SHARE",
        help="share of attempts whose training stands still for 20 minutes on average (0.02)",
    )
    add(
        "--heartbeat",
        type=_positive,
        default=120,
        metavar="SECONDS",
        help="heartbeat interval (120)",
    )
    add(
        "--stop-after",
        type=float,
        default=3.0,
        metavar="FACTOR",
        help="stop a run at this many times the bound (3)",
    )
    add(
        "--policies",
        nargs="+",
        choices=POLICIES,
        default=list(POLICIES),
        metavar="POLICY",
        help="which to run, of: target fcfs any (all)",
    )
    add("--seed", type=int, default=1, help="everything random follows from it (1)")
    add("--format", choices=("text", "json"), default="text", help="how to print (text)")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"{text}: expected a share from 0 to 1")
    return number


def _draw(options: argparse.Namespace) -> tuple[list[Machine], list[Piece]]:
    def draw(churn: float, span: float) -> list[Machine]:
        return draw_fleet(
            workers=options.workers,
            churn=churn,
            span_seconds=span,
            stragglers=options.stragglers,
            random=random.Random(f"fleet-{options.seed}"),
        )

    pieces = draw_pieces(specs=options.specs, random=random.Random(f"pieces-{options.seed}"))
    fleet = draw(0.0, 0.0)
    if options.churn:
        fleet = draw(options.churn, find_bounds(pieces, fleet).best)
    return fleet, pieces


def _run(
    name: str,
    options: argparse.Namespace,
    fleet: list[Machine],
    pieces: list[Piece],
    bounds: Bounds,
) -> Outcome:
    policy = _policy(name, options)
    simulation = Simulation(
        pieces,
        fleet,
        policy,
        random.Random(f"events-{options.seed}"),
        heartbeat_seconds=float(options.heartbeat),
        trouble=Trouble(stall_share=options.stalls),
    )
    tally = simulation.run(
        stop_at=options.stop_after * bounds.best, progress=_progress(name, len(pieces))
    )
    seconds = policy.seconds if isinstance(policy, TargetFinish) else []
    return judge(name, tally, seconds, bounds=bounds, fleet=fleet)


def _policy(name: str, options: argparse.Namespace) -> Policy:
    if name == "fcfs":
        return FirstComeFirstServed()
    if name == "any":
        return AnyFeasible(random.Random(f"any-{options.seed}"))
    return TargetFinish(patience_seconds=float(PATIENCE_HEARTBEATS * options.heartbeat))


def _progress(name: str, total: int) -> Callable[[Simulation], None]:
    started = shown = time.monotonic()

    def show(simulation: Simulation) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < 5.0:
            return
        shown, done = now, simulation.tally.accepted
        left = f"{(now - started) * (total - done) / done:.0f} s left" if done else "starting"
        print(
            f"{name}: {done} of {total} accepted, {simulation.now / 3600:.1f} h simulated, "
            f"{left if done < 0.99 * total else 'the last ones'}",
            file=sys.stderr,
        )

    return show


if __name__ == "__main__":
    main()
