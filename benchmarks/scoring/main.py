"""The command line of the scoring benchmark."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.load.report import machine
from benchmarks.scoring.ground import Size, make_ground
from benchmarks.scoring.report import Report, report, show
from benchmarks.scoring.rounds import BenchmarkError, measure
from benchmarks.terminal import carry_out, say
from protocol.specs import ModelShape

DESCRIPTION = """\
What scoring costs: three ensembles of three experts (the paper's schemes; seven experts in all),
each by the true probability average, the posterior from a uniform prior, and the posterior from a
prior that was estimated on dev text; on made-up text of nine domains.

Ours measures each checkpoint once on each shard and makes all ensembles from what it kept. Beside
it, in turns: its forward passes alone, with models and batches ready before the clock runs; the
same with the labels' log-likelihoods, which any pass that scores must compute; and every mode of
every ensemble from its models again, as the paper's code does, over the whole vocabulary.

CPU seconds are those of all threads. Ratios are geometric means over pairs, with 95 % intervals by
Student's t on their logarithms. Perplexities of the two ways must agree to 1e-6, or there are no
figures. Then: the passes that an eighth checkpoint costs, and the models in memory at a time.
"""


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, default=30, help="beside forward passes (30)")
    add("--recomputed-rounds", type=int, default=5, help="2 or more, or 0: none (5)")
    add("--domains", type=int, default=9, help="(9)")
    add("--test-windows", type=int, default=24, help="of each domain (24)")
    add("--dev-windows", type=int, default=8, help="of each domain (8)")
    add("--hidden", type=int, default=64, help="features, in heads of 32 (64)")
    add("--layers", type=int, default=2, help="(2)")
    add("--ffn", type=int, default=192, help="width M, a multiple of 4; S and L are 3:4:5 (192)")
    add("--vocab", type=int, default=2048, help="tokens in the vocabulary (2048)")
    add("--context", type=int, default=128, help="tokens in a window (128)")
    add("--threads", type=int, default=1, help="(1)")
    add("--format", choices=("text", "json"), default="text", help="of standard output (text)")
    return parser.parse_args(words)


def run(options: argparse.Namespace, folder: Path) -> Report:
    """The whole benchmark in the empty folder. Raises BenchmarkError."""
    torch.set_num_threads(options.threads)
    size = Size(
        shape=ModelShape(
            vocab_size=options.vocab,
            hidden_size=options.hidden,
            num_layers=options.layers,
            num_heads=max(1, options.hidden // 32),
            ffn_width=options.ffn,
            context_length=options.context,
        ),
        num_domains=options.domains,
        test_documents=options.test_windows,
        dev_documents=options.dev_windows,
        document_tokens=options.context,
    )
    found = measure(
        make_ground(folder, size),
        rounds=options.rounds,
        recomputed_rounds=options.recomputed_rounds,
        say=say,
    )
    return report(found, settings=vars(options), machine=machine(), load=os.getloadavg()[0])


def main(words: Sequence[str] | None = None) -> None:
    """Entry point."""
    carry_out("scoring", _arguments(words), run=run, show=show, refused=BenchmarkError)
