"""The command line of the transfer benchmark."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load.report import machine
from benchmarks.terminal import carry_out, say
from benchmarks.transfer.methods import BY_NAME, RAW
from benchmarks.transfer.processes import ProcessError
from benchmarks.transfer.report import Report, show
from benchmarks.transfer.rounds import Ground, Plan, measure_slowdown, measure_transfers

DESCRIPTION = """\
How fast our exchange moves a file between two real peers on this machine, what that costs in CPU
seconds and memory, and how much of its speed training keeps while its agent serves.

Every side is a process of its own, with its own libp2p daemon where it has one; libp2p runs over
TCP on loopback. All methods take turns in every round, in a random order, after one round that is
not counted. What is compared with ours neither hashes nor verifies, and syncs its file once in the
end, as ours does.

Memory: by how much the resident set of the fetching process grew at its peak, by Linux's high-
water mark, which is reset before each transfer, after unused memory was given back to the system;
the most of all rounds.
"""


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transfer",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--megabytes", type=int, default=256, help="of the file, in MiB (256)")
    add("--rounds", type=int, default=7, help="that count (7)")
    add(
        "--methods",
        nargs="*",
        choices=list(BY_NAME),
        default=list(BY_NAME),
        help="to compare with the raw stream, which always takes part (all)",
    )
    add("--training-rounds", type=int, default=10, help="idle and serving; 0: not measured (10)")
    add("--training-seconds", type=float, default=4.0, help="of each half of them (4)")
    add("--up", type=float, default=2.0, help="MB/s at which the agent may serve then (2)")
    add("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="of all (asyncio)")
    add("--folder", type=Path, help="where temporary files go (the system's temporary folder)")
    add("--format", choices=("text", "json"), default="text", help="of standard output (text)")
    return parser.parse_args(words)


def run(options: argparse.Namespace, folder: Path) -> Report:
    """The whole benchmark in the empty folder. Raises ProcessError."""
    names = [name for name in BY_NAME if name in options.methods or name == RAW.name]
    plan = Plan(
        num_bytes=options.megabytes * 2**20,
        rounds=options.rounds,
        methods=tuple(BY_NAME[name] for name in names),
        training_rounds=options.training_rounds,
        training_seconds=options.training_seconds,
        up=options.up * 1e6,
        loop=options.loop,
    )
    with Ground(folder, plan) as ground:
        transfers = measure_transfers(ground, plan, say)
        training = measure_slowdown(ground, plan, say) if plan.training_rounds else None
    return Report(
        settings={**vars(options), "folder": str(folder)},
        machine=machine(),
        load=os.getloadavg()[0],
        transfers=transfers,
        training=training,
    )


def main(words: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = _arguments(words)
    carry_out("transfer", options, run=run, show=show, refused=ProcessError, within=options.folder)
