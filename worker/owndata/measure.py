"""The measuring child: how well two models predict the own dev shard. It has no network.

`python -m worker.owndata.measure --shard FILE --spec JSON --parent FILE --expert FILE --threads N`
prints the SelfReport as one JSON line, or {"error"} with exit code 1. It computes on the CPU.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from protocol.owndata import SelfReport
from protocol.specs import ExpertSpec
from shared.likelihood import label_log_likelihoods
from shared.model import load
from shared.shards import Shard, ShardError
from shared.tensorfiles import TensorFileError

BATCH_LABELS = 2048
WORST = 600.0
"""Nats per token: what a model that overflows is worth. A perplexity of exp(600) is a float64."""


def perplexity(model_file: Path, spec: ExpertSpec, shard: Shard) -> float:
    """exp of the mean negative log-likelihood of the shard's labels, 1 or more.

    The file is narrowed to the spec's width. Raises TensorFileError for one that does not fit.
    """
    length = spec.shape.context_length
    model = load(model_file, spec.shape)
    computed = label_log_likelihoods(
        model, shard, length=length, batch=max(1, BATCH_LABELS // length)
    )
    mean = float(np.mean(computed, dtype=np.float64))
    nats = -mean if np.isfinite(mean) else WORST
    return float(np.exp(min(max(nats, 0.0), WORST)))


def main(arguments: Sequence[str]) -> int:
    """Prints the report or the error; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker.owndata.measure")
    for name in ("--shard", "--spec", "--parent", "--expert"):
        parser.add_argument(name, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        spec = ExpertSpec.model_validate_json(options.spec)
        shard = Shard.read(Path(options.shard), vocab_size=spec.shape.vocab_size)
        report = SelfReport(
            perplexity_before=perplexity(Path(options.parent), spec, shard),
            perplexity_after=perplexity(Path(options.expert), spec, shard),
        )
    except (ShardError, TensorFileError, ValidationError, OSError) as error:
        _print(json.dumps({"error": str(error)}))
        return 1
    _print(report.model_dump_json())
    return 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
