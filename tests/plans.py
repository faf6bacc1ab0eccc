"""A run file of any plan with its shards, as values: nothing is read, trained or measured."""

import itertools

from coordinator.planning.blends import blends_of
from coordinator.planning.dealing import order_of
from coordinator.planning.measured import NOTHING
from coordinator.planning.plan import make_plan
from coordinator.planning.recipes import seed_specs
from coordinator.runfile import RunFile
from coordinator.text.prepared import Prepared
from protocol.blobs import BlobRef, ShardManifest

SCHEMES = ["MHo-IHo", "MHo-IHe", "MHe-IHo", "MHe-IHe", "adaptive"]
TRAINED = ["cooking", "drama", "geography", "law", "physics", "python"]
HELD_OUT = ["music", "poetry"]


def run_of(plan: dict, *, domains=TRAINED, **sections) -> RunFile:
    """A run file with this [plan] over 400 homogeneous steps of 600, as in the paper."""
    recipe = {
        "warmup_steps": 5,
        "peak_learning_rate": 1e-3,
        "final_learning_rate": 1e-4,
        "micro_batch": 2,
        "sequence_length": 32,
    }
    text = {"sources": [{"path": "a", "document": "file"}]}
    texts = dict.fromkeys(domains, text)
    texts |= {name: {**text, "role": "held-out"} for name in HELD_OUT}
    values = {
        "run": {"name": "small"},
        "tokenizer": {"vocab_size": 320},
        "shape": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "context_length": 32},
        "widths": {"S": 72, "M": 96, "L": 120},
        "general": text,
        "domains": texts,
        "seed": {"kind": "nested", "recipe": {**recipe, "num_steps": 800}},
        "recipe": {**recipe, "schedule_steps": 600},
        "plan": {"homogeneous_steps": 400, **plan},
    }
    return RunFile.model_validate({**values, **sections})


def lineages_of(schemes=SCHEMES, **more) -> dict:
    """A [plan] of two rounds along lineages, with everything that these schemes need."""
    plan = {"schemes": schemes, "experts": "lineages", "rounds": 2, **more}
    if {"MHo-IHe", "MHe-IHe"} & set(schemes):
        plan["steps"] = {"easy": 300, "moderate": 400, "difficult": 500}
    if "adaptive" in schemes:
        plan["probe_steps"] = [200, 300]
    return plan


CLASSES = {
    "cooking": "easy",
    "drama": "easy",
    "geography": "moderate",
    "law": "moderate",
    "physics": "difficult",
    "python": "difficult",
}


def prepared_for(run: RunFile, classes=CLASSES) -> Prepared:
    """Shards of 9,000 train tokens a domain, and the blends that the plan needs."""
    digests = (f"{number:064x}" for number in itertools.count(1))

    def shard(name: str, split: str) -> ShardManifest:
        return ShardManifest(
            domain=name,
            split=split,
            blob=BlobRef(digest=next(digests), size=9),
            num_documents=40,
            num_tokens=9000,
            num_bytes=20_000,
            vocab_size=320,
        )

    shards = [shard("general", split) for split in ("train", "dev")]
    shards += [
        shard(name, split) for name in run.domains for split in ("train", "dev", "gate", "test")
    ]
    shards += [shard(blend.name, "train") for blend in blends_of(run, order_of(run, classes))]
    tokenizer = BlobRef(digest="f" * 64, size=9)
    return Prepared(tokenizer=tokenizer, vocab_size=320, shards=tuple(shards))


def plan_of(run: RunFile, classes=CLASSES, measured=NOTHING):
    """The plan of `run`, and the seed M that it starts from."""
    prepared = prepared_for(run, classes)
    seeds = seed_specs(run, prepared)
    return make_plan(run, prepared, seeds, classes, measured)
