"""A run whose tiny checkpoints are made, not trained, for tests of what is measured of them."""

import logging
import threading

import torch

from coordinator.ledger import queries
from coordinator.scoring.likelihood_cache import LikelihoodCache
from coordinator.scoring.lineup import Lineup, SchemeLineup
from coordinator.scoring.measuring import Measurer
from coordinator.scoring.pulse import Pulse
from coordinator.scoring.scores import Scoring
from coordinator.sections import Evaluation
from protocol.manifests import CheckpointManifest, ManifestFile
from protocol.specs import ExpertSpec, TrainSpec
from shared.blobs import BlobStore
from shared.model import build, load, save

CONTEXT = 32


class Bench:
    """A run whose checkpoints are made and not trained: the seed, with noise of one's own."""

    def __init__(self, tiny, *, held_out=("python",), weight_averages=False):
        domains = {
            name: one.model_copy(update={"role": "held-out"}) if name in held_out else one
            for name, one in tiny.run.domains.items()
        }
        evaluation = Evaluation(weight_averages=weight_averages)
        self.tiny = tiny
        self.run = tiny.run.model_copy(update={"domains": domains, "evaluation": evaluation})
        self.folders, self.prepared, self.store = tiny.folders, tiny.prepared, tiny.store
        self.cache = self.folders.sealed / "likelihoods"
        self.accepted = {}
        self.shape = tiny.rows("seed")[0].spec.shape
        self.seed = self.add("seed", "general", None, nested=(32, 48, 64))
        self.scoring = self.new_scoring()

    def new_scoring(self):
        """As after a restart: nothing is remembered but what is in the cache."""
        sealed = BlobStore(self.folders.sealed)
        measurer = Measurer(public=self.store, sealed=sealed, cache=LikelihoodCache(self.cache))
        log = logging.getLogger("test.scores")
        pulse = Pulse(beat=print, stop=threading.Event(), now=lambda: 0.0, log=log)
        return Scoring(
            run=self.run,
            prepared=self.prepared,
            store=self.store,
            measurer=measurer,
            pulse=pulse,
        )

    def add(self, kind, domain, parent, *, width=48, nested=()):
        """An accepted checkpoint: its spec's digest."""
        number = len(self.accepted)
        wide = self.shape.ffn_width if nested else width
        spec = ExpertSpec(
            kind=kind,
            domain=domain,
            shape=self.shape.model_copy(update={"ffn_width": wide}),
            nested_widths=nested,
            train_shard=self.prepared.shard("general", "train").blob.digest,
            parent=parent,
            trains="all",
            train=TrainSpec(
                num_steps=10 + number,
                schedule_steps=100,
                warmup_steps=0,
                peak_learning_rate=0.1,
                final_learning_rate=0.1,
                micro_batch=1,
                accumulation=1,
                sequence_length=CONTEXT,
                clip_norm=1.0,
                rng_seed=0,
                compile=False,
            ),
        )
        path = self.folders.root / "made.safetensors"
        if parent is None:
            model = build(spec.shape, rng_seed=0)
            scale, generator = 5.0, torch.Generator().manual_seed(0)
        else:
            model = load(self.path(parent), spec.shape)
            scale, generator = 1.0, torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale if parameter.ndim > 1 else 1.0)
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * (0.0 if parent is None else 0.02))
        save(model, path)
        manifest = CheckpointManifest(
            kind="expert",
            spec=spec.digest,
            worker=self.tiny.workers[0],
            step=spec.train.num_steps,
            loss=1.0,
            files=(ManifestFile(name="model.safetensors", blob=self.store.add_file(path)),),
        )
        self.accepted[spec.digest] = queries.AcceptedRow(
            spec=spec,
            manifest=manifest,
            manifest_digest="0" * 64,
            worker=self.tiny.workers[0],
            folder="",
        )
        return spec.digest

    def file(self, digest):
        return self.accepted[digest].manifest.blob("model.safetensors").digest

    def path(self, digest):
        return self.store.path(self.file(digest))

    def model(self, digest):
        spec = self.accepted[digest].spec
        width = 48 if spec.nested_widths else spec.shape.ffn_width
        return load(self.path(digest), spec.shape.model_copy(update={"ffn_width": width}))

    def entries(self):
        """Names of the cache's entries to when they were written."""
        return {path.name: path.stat().st_mtime_ns for path in self.cache.glob("*.npy")}

    def score(self, lineup):
        return self.scoring.score(lineup, self.accepted, ()).results


def lineages(bench):
    """One lineage over two rounds in scheme A, with the first expert shared by scheme B."""
    first = bench.add("expert", "cooking", bench.seed)
    second = bench.add("expert", "drama", first)
    other = bench.add("expert", "drama", first, width=32)
    dense = bench.add("dense", "all", bench.seed)
    probe = bench.add("expert", "cooking", bench.seed)
    lineup = Lineup(
        seed=bench.seed,
        dense=dense,
        schemes={
            "MHo-IHo": SchemeLineup((second,), {"cooking": first, "drama": second}),
            "MHe-IHo": SchemeLineup((other,), {"cooking": first, "drama": other}),
        },
        rounds={"cooking": 1, "drama": 2},
        others=(probe,),
        classes={"cooking": "difficult", "drama": "easy"},
    )
    return lineup, first, second


def keep_all(bench, experts, schemes=("MHo-IHo",)):
    return Lineup(
        seed=bench.seed,
        dense=None,
        schemes={scheme: SchemeLineup(tuple(experts.values()), experts) for scheme in schemes},
        rounds=dict.fromkeys(experts, 1),
    )
