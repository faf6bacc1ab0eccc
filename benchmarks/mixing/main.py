"""The command line of the mixing benchmarks."""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.load.report import machine
from benchmarks.mixing.dispatch import LAYERS, measure_dispatch
from benchmarks.mixing.experiment import (
    ALL,
    EXPERIMENT,
    SHARED,
    QualityError,
    check_pairs,
    open_regime,
    read_experiment,
)
from benchmarks.mixing.models import OWNED
from benchmarks.mixing.quality import Quality, choose, on_test
from benchmarks.mixing.report import Report, show_dispatch, show_quality, show_speed
from benchmarks.mixing.speed import BenchmarkError, Text, measure_generation
from benchmarks.terminal import carry_out, say
from coordinator.runfile import RunFileError
from protocol.specs import ModelShape
from shared.mixing.ingredients import MixingError

SPEED = """\
Greedy generation: a mixture routed by the prefix to one expert a token, called as its users call
it, beside the posterior ensemble of the same experts. CPU seconds of a whole answer, prompt
included, both in turns in one process; the ratio is of tokens a second, the geometric mean over
pairs, with its 95 % interval by Student's t on the logarithms.
"""

DISPATCH = """\
One layer of experts: unequal widths beside equal ones with the same FLOPs and the same number of
tokens for each expert, forward (inference), then forward and backward (training), in turns.
"""

QUALITY = """\
The experiment of experiment.toml over replicates: every variant on dev text, the chosen ones on
test text once, beside the ensembles, the seed, and the seed given the same extra steps.

Two 95 % intervals stand beside every figure. documents: a paired bootstrap over test documents,
drawn alike for all replicates, of their mean: no noise of training is in it. replicates: Student's
t over the replicates: the choice of documents is not in it.
"""


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixing", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    raw = partial(
        verbs.add_parser, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=True
    )
    speed = raw("speed", description=SPEED, help="generation beside the ensemble")
    dispatch = raw("dispatch", description=DISPATCH, help="unequal widths beside equal ones")
    quality = raw("quality", description=QUALITY, help="the goals over replicates")
    for one in (speed, dispatch):
        one.add_argument("--rounds", type=int, default=30, help="pairs (30)")
    add = speed.add_argument
    add("--experts", type=int, nargs="+", default=[3, 9], help="numbers of experts (3 9)")
    add("--trained", choices=list(OWNED), default=SHARED, help=f"what they trained ({SHARED})")
    add("--hidden", type=int, default=256, help="features, in heads of 32 (256)")
    add("--layers", type=int, default=4, help="(4)")
    add("--ffn", type=int, default=1024, help="width M, a multiple of 4; S and L are 3:4:5 (1024)")
    add("--vocab", type=int, default=4096, help="tokens in the vocabulary (4096)")
    add("--rows", type=int, default=1, help="texts at a time (1)")
    add("--prompt", type=int, default=32, help="tokens of prompt (32)")
    add("--new", type=int, default=32, help="new tokens (32)")
    add = quality.add_argument
    add("--all", type=Path, nargs="+", required=True, help="run files: experts trained everything")
    add("--shared", type=Path, nargs="+", required=True, help=f"run files: trains = {SHARED!r}")
    add("--experiment", type=Path, default=EXPERIMENT, help="(the one beside this module)")
    add("--dev-only", action="store_true", help="leave test text unopened")
    for one in (speed, dispatch, quality):
        one.add_argument("--threads", type=int, default=1, help="(1)")
        one.add_argument("--format", choices=("text", "json"), default="text", help="(text)")
    return parser.parse_args(words)


def _report(options: argparse.Namespace, found: object) -> Report:
    settings = {name: str(value) for name, value in vars(options).items()}
    return Report(settings=settings, machine=machine(), load=os.getloadavg()[0], found=found)


def run_speed(options: argparse.Namespace, _folder: Path) -> Report:
    """Raises BenchmarkError."""
    torch.set_num_threads(options.threads)
    shape = ModelShape(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        num_layers=options.layers,
        num_heads=max(1, options.hidden // 32),
        ffn_width=options.ffn,
        context_length=options.prompt + options.new,
    )
    found = measure_generation(
        shape,
        options.experts,
        text=Text(rows=options.rows, prompt=options.prompt, new=options.new),
        rounds=options.rounds,
        trained=options.trained,
        say=say,
    )
    return _report(options, found)


def run_dispatch(options: argparse.Namespace, _folder: Path) -> Report:
    """All layers."""
    torch.set_num_threads(options.threads)
    return _report(options, measure_dispatch(LAYERS, rounds=options.rounds, say=say))


def run_quality(options: argparse.Namespace, _folder: Path) -> Report:
    """Raises QualityError, MixingError, RunFileError."""
    torch.set_num_threads(options.threads)
    experiment = read_experiment(options.experiment)
    regimes = {
        ALL: open_regime(experiment, options.all, trains=ALL),
        SHARED: open_regime(experiment, options.shared, trains=SHARED),
    }
    check_pairs(regimes[ALL], regimes[SHARED])
    levers = [choose(experiment, name, runs, say=say) for name, runs in regimes.items()]
    if options.dev_only:
        return _report(options, Quality(tuple(levers)))
    return _report(options, on_test(experiment, regimes, levers, say=say))


def main(words: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = _arguments(words)
    if options.verb == "quality":
        try:
            carry_out("mixing", options, run=run_quality, show=show_quality, refused=QualityError)
        except (MixingError, RunFileError) as error:
            raise SystemExit(f"benchmarks.mixing: {error}") from error
        return
    run, show = {
        "speed": (run_speed, show_speed),
        "dispatch": (run_dispatch, show_dispatch),
    }[options.verb]
    carry_out("mixing", options, run=run, show=show, refused=BenchmarkError)
