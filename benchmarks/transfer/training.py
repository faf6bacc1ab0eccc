"""The trainer's process: the real training loop's steps on one thread, counted for a while.

The model is small: what is measured is who gets the cores, not how fast they are.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.seeds import seed_assignment
from benchmarks.transfer.orders import say
from protocol.specs import ModelShape
from shared.shards import BOS_ID, write_shard
from shared.training.assignment import TrainerAssignment
from worker.trainer import loop

STEPS = 1_000_000
VOCAB_SIZE = 512
SHAPE = ModelShape(
    vocab_size=VOCAB_SIZE,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    ffn_width=256,
    context_length=64,
)


def make_assignment(folder: Path) -> TrainerAssignment:
    """A small seed to be trained on made-up text, for longer than anybody watches."""
    shard = folder / "train.safetensors"
    tokens = np.random.default_rng(1).integers(BOS_ID + 1, VOCAB_SIZE, size=8 * 600)
    documents = [(np.concatenate([[BOS_ID], part]), 900) for part in np.split(tokens, 8)]
    write_shard(shard, documents, vocab_size=VOCAB_SIZE)
    return seed_assignment(shard, SHAPE, num_steps=STEPS, batch=4)


def main() -> None:
    """Trains for as long as each line of standard input says, and then waits for the next."""
    assignment = make_assignment(Path(sys.argv[1]))
    loop.prepare_torch(assignment.device, assignment.num_threads)
    stepper, step = loop.Stepper(loop.load(assignment)), 0
    say({})
    for line in sys.stdin:
        seconds = json.loads(line)["seconds"]
        first, started = step, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            stepper.step(step)
            step += 1
        say({"steps_per_second": (step - first) / elapsed})


if __name__ == "__main__":
    main()
