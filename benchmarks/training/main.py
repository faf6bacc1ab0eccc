"""The command line of the training benchmark."""

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load.report import machine
from benchmarks.terminal import carry_out, say
from benchmarks.training.report import Report, rows, show
from benchmarks.training.rounds import BenchmarkError, Plan, measure
from benchmarks.training.sides import TITLES
from protocol.specs import ModelShape

DESCRIPTION = """\
How many tokens our trainer learns from in a second of CPU time, beside Hugging Face's Trainer and
a loop written by hand: the same Llama, the same batches, the same number of threads.

In every round each side makes some steps, one side after the other in a random order. Every side
is a process of its own; processes begin anew from time to time. CPU seconds are those of all
threads of a side's process. What comes before the first round (imports, compilation, eight steps)
is not counted, and is shown beside. Ours over a peer is the geometric mean of the rounds' ratios,
with its 95 % interval by Student's t on their logarithms.

The losses of the first steps must agree to 1e-4, or the sides did not do the same work: then there
are no figures.
"""


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--compiled", action="store_true", help="with torch.compile, all sides (eager)")
    add("--sides", nargs="+", choices=list(TITLES)[1:], default=list(TITLES)[1:], help="(both)")
    add("--rounds", type=int, default=36, help="that count (36)")
    add("--steps", type=int, default=4, help="of each side in a round (4)")
    add("--lives", type=int, default=3, help="of the processes (3)")
    add("--threads", type=int, default=1, help="of each process (1)")
    add("--hidden", type=int, default=128, help="features, in heads of 32 (128)")
    add("--layers", type=int, default=4, help="(4)")
    add("--ffn", type=int, default=512, help="width (512)")
    add("--vocab", type=int, default=4096, help="tokens in the vocabulary (4096)")
    add("--context", type=int, default=256, help="tokens in a sequence (256)")
    add("--batch", type=int, default=4, help="sequences a step (4)")
    add("--format", choices=("text", "json"), default="text", help="of standard output (text)")
    return parser.parse_args(words)


def run(options: argparse.Namespace, folder: Path) -> Report:
    """The whole benchmark in the empty folder. Raises BenchmarkError."""
    if options.compiled and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise BenchmarkError("torch.compile needs a C++ compiler, and this machine has none")
    plan = Plan(
        shape=ModelShape(
            vocab_size=options.vocab,
            hidden_size=options.hidden,
            num_layers=options.layers,
            num_heads=max(1, options.hidden // 32),
            ffn_width=options.ffn,
            context_length=options.context,
        ),
        batch=options.batch,
        compiled=options.compiled,
        num_threads=options.threads,
        sides=("ours", *options.sides),
        lives=options.lives,
        rounds=options.rounds,
        steps=options.steps,
        warm_up=8,
    )
    courses = measure(folder, plan, say)
    tokens = options.steps * options.batch * options.context
    return Report(
        settings=vars(options),
        machine=machine(),
        load=os.getloadavg()[0],
        compiled=options.compiled,
        tokens_per_round=tokens,
        rows=rows(courses, tokens_per_round=tokens),
        courses=courses,
    )


def main(words: Sequence[str] | None = None) -> None:
    """Entry point."""
    carry_out("training", _arguments(words), run=run, show=show, refused=BenchmarkError)
