"""Real tiny checkpoints to results: what is measured, how often, and that it is what it says."""

import json
import logging
import math
import os
import threading

import numpy as np
import pytest
import torch

from coordinator.ledger import queries
from coordinator.report.reading import read_results
from coordinator.scoring.likelihood_cache import LikelihoodCache
from coordinator.scoring.lineup import Lineup, SchemeLineup
from coordinator.scoring.measuring import Measurer
from coordinator.scoring.outcome import MODES, WEIGHTS_BY_POSTERIOR, WEIGHTS_UNIFORM
from coordinator.scoring.pulse import Pulse
from coordinator.scoring.scores import Scoring
from coordinator.scoring.table import results_json
from coordinator.sections import Dense, Evaluation
from protocol.manifests import CheckpointManifest, ManifestFile
from protocol.specs import ExpertSpec, TrainSpec
from shared.blobs import BlobStore
from shared.ensemble import cached_prior, heaviest, perplexity
from shared.model import build, load, save
from shared.shards import Shard, scoring_windows

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


@pytest.fixture
def bench(tiny):
    tiny.settle()
    return Bench(tiny)


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


def test_a_run_of_lineages_gives_results_that_the_report_reads(bench, tmp_path):
    lineup, first, second = lineages(bench)
    results = bench.score(lineup)
    assert [one.role for one in results.domains] == ["trained", "trained", "held-out"]
    name = {one.spec: one.name for one in results.checkpoints}
    by_domain = {one.domain: one for one in results.domains}
    for domain, scores in by_domain.items():
        assert set(scores.columns) == {
            *("seed M", "dense", "dense+seed"),
            *("MHo-IHo", "MHe-IHo", "MHo-IHo+seed", "MHe-IHo+seed"),
        }
        assert (name[first] in scores.models) == (domain == "cooking")
    assert by_domain["cooking"].tied == ()
    assert [(one.expert, one.domain) for one in results.remembered if one.scheme == "MHo-IHo"] == [
        (name[first], "cooking"),
        (name[second], "cooking"),
        (name[second], "drama"),
    ]
    assert {one.where for one in results.comparisons} == {
        *("cooking", "drama", "python", "own", "held-out", "all")
    }
    facts = {one.spec: one for one in results.checkpoints}
    assert facts.keys() == bench.accepted.keys()
    assert facts[second].parent == name[first]
    assert (facts[second].round, facts[second].schemes) == (2, ("MHo-IHo",))
    assert facts[first].schemes == ("MHo-IHo", "MHe-IHo")
    assert set(facts[first].dev_perplexity) == {"cooking"}
    path = tmp_path / "results.json"
    path.write_bytes(results_json(results))
    assert read_results(path) == results
    assert json.loads(path.read_text())["table"]["columns"][:4] == [
        *("seed M", "dense", "best single", "oracle")
    ]


def test_scoring_a_second_time_passes_through_no_model(bench):
    bench.run = bench.run.model_copy(update={"evaluation": Evaluation(weight_averages=True)})
    bench.scoring = bench.new_scoring()
    experts = {domain: bench.add("expert", domain, bench.seed) for domain in ("cooking", "drama")}
    lineup = keep_all(bench, experts)
    results = bench.score(lineup)
    before = bench.entries()
    for digest in bench.accepted:
        path = bench.path(digest)
        path.unlink()
        path.write_bytes(b"gone")
    bench.scoring = bench.new_scoring()
    assert bench.score(lineup) == results
    assert bench.entries() == before


def test_one_more_expert_costs_only_its_own_passes(bench):
    experts = {domain: bench.add("expert", domain, bench.seed) for domain in ("cooking", "drama")}
    bench.score(keep_all(bench, experts))
    before = bench.entries()
    experts["python"] = bench.add("expert", "python", bench.seed)
    bench.score(keep_all(bench, experts))
    after = bench.entries()
    assert before.items() < after.items()
    new = after.keys() - before.keys()
    assert len(new) == 2 * 3, "dev and test of three domains"
    assert {name.split("-")[0] for name in new} == {bench.file(experts["python"])}


def limit_with(*, free):
    """The bound on numbers of open files below which `free` are not taken."""
    number = 0
    while free:
        try:
            os.fstat(number)
        except OSError:
            free -= 1
        number += 1
    return number


def test_few_files_are_open_at_a_time_however_much_is_scored(bench):
    resource = pytest.importorskip("resource")
    experts = {domain: bench.add("expert", domain, bench.seed) for domain in ("cooking", "drama")}
    members = tuple(bench.add("expert", "drama", bench.seed) for _ in range(14))
    lineup = Lineup(
        seed=bench.seed,
        dense=None,
        schemes={"MHo-IHo": SchemeLineup((*members, *experts.values()), experts)},
        rounds=dict.fromkeys(experts, 1),
    )
    while bench.scoring.score_ahead(lineup, bench.accepted):
        pass
    entries = len(bench.entries())
    assert entries == 17 * 2 * 3
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit_with(free=85), hard))
    try:
        results = bench.score(lineup)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(results.members["MHo-IHo"]) == 16


def test_schemes_share_the_passes_of_their_experts(bench):
    experts = {domain: bench.add("expert", domain, bench.seed) for domain in ("cooking", "drama")}
    results = bench.score(keep_all(bench, experts, ("MHo-IHo", "MHe-IHo")))
    assert len(bench.entries()) == 3 * 2 * 3, "seed and two experts on dev and test"
    for scores in results.domains:
        assert scores.columns["MHo-IHo"] == scores.columns["MHe-IHo"]
    verdicts = {
        one.verdict for one in results.comparisons if (one.a, one.b) == ("MHe-IHo", "MHo-IHo")
    }
    assert verdicts == {"tie"}


def test_what_is_measured_ahead_is_all_that_scoring_needs(bench):
    lineup, first, _ = lineages(bench)
    held_back = bench.accepted.pop(lineup.dense)
    while bench.scoring.score_ahead(lineup, bench.accepted):
        pass
    assert len([one for one in bench.entries() if one.startswith(bench.file(first))]) == 2
    bench.accepted[lineup.dense] = held_back
    while bench.scoring.score_ahead(lineup, bench.accepted):
        pass
    before = bench.entries()
    bench.score(lineup)
    assert bench.entries() == before


def distributions(bench, digests, shard):
    """Windows of (distributions [models, labels, vocabulary] in fp64, labels)."""
    windows = scoring_windows(shard, CONTEXT)
    models = [bench.model(digest) for digest in digests]
    found = []
    for start, length in zip(windows.starts, windows.lengths, strict=True):
        tokens = torch.tensor(shard.tokens[start : start + length + 1].astype(np.int64))
        with torch.inference_mode():
            stack = [
                model(input_ids=tokens[None, :-1]).logits[0].double().softmax(-1).numpy()
                for model in models
            ]
        found.append((np.stack(stack), tokens[1:].numpy()))
    return found, windows.label_starts


def direct_perplexity(windows, weights_of, prior):
    """From whole distributions, mixed with what `weights_of` makes of the posterior so far."""
    nats, count = 0.0, 0
    for stack, labels in windows:
        posterior = prior.copy()
        for position, label in enumerate(labels):
            mixed = weights_of(posterior) @ stack[:, position]
            assert abs(mixed.sum() - 1) < 1e-12
            nats -= math.log(mixed[label])
            posterior = posterior * stack[:, position, label]
            posterior /= posterior.sum()
        count += len(labels)
    return math.exp(nats / count)


def top(top_k):
    def keep(weights):
        kept = np.where(weights >= np.sort(weights)[-top_k] * (1 - 1e-9), weights, 0.0)
        return kept / kept.sum()

    return keep


def test_every_mode_in_the_results_agrees_with_whole_distributions(bench):
    experts = {
        domain: bench.add("expert", domain, bench.seed, width=width)
        for domain, width in (("cooking", 32), ("drama", 48), ("python", 64))
    }
    results = bench.score(keep_all(bench, experts))
    (scores,) = [one for one in results.domains if one.domain == "drama"]
    modes = scores.schemes["MHo-IHo"].modes
    name = {one.spec: one.name for one in results.checkpoints}
    shards = [
        Shard.read(store.path(manifest.blob.digest), vocab_size=manifest.vocab_size)
        for store, manifest in (
            (bench.store, bench.prepared.shard("drama", "dev")),
            (BlobStore(bench.folders.sealed), bench.prepared.shard("drama", "test")),
        )
    ]
    members = sorted(experts.values(), key=name.__getitem__)
    for some, ending in ((members, ""), ([*members, bench.seed], "+seed")):
        (dev, starts), (test, _) = (distributions(bench, some, shard) for shard in shards)
        rows = np.concatenate(
            [np.log(stack[:, range(len(labels)), labels]) for stack, labels in dev], axis=1
        )
        prior = cached_prior(rows, starts)
        uniform = np.full(len(some), 1 / len(some))
        for top_k in (None, 1, 2):
            keep = top(len(some) if top_k is None else top_k)
            chosen = np.isin(range(len(some)), heaviest(prior, top_k or len(some)))
            fixed = chosen / chosen.sum()
            direct = {
                "average": direct_perplexity(test, lambda _, fixed=fixed: fixed, uniform),
                "posterior": direct_perplexity(test, keep, uniform),
                "cached-prior": direct_perplexity(test, keep, np.exp(prior)),
            }
            assert tuple(direct) == MODES
            for mode, expected in direct.items():
                key = mode + ("" if top_k is None else f" top-{top_k}") + ending
                assert modes[key].perplexity == pytest.approx(expected, rel=1e-6), key


def test_averages_of_weights_are_measured_and_leave_no_file(bench):
    bench.run = bench.run.model_copy(update={"evaluation": Evaluation(weight_averages=True)})
    bench.scoring = bench.new_scoring()
    experts = {"cooking": bench.add("expert", "cooking", bench.seed)}
    experts["drama"] = bench.add("expert", "drama", bench.seed)
    results = bench.score(keep_all(bench, experts))
    assert list(bench.folders.averages.iterdir()) == []
    first, second = (bench.model(digest) for digest in experts.values())
    mean = bench.model(experts["cooking"])
    shard = bench.prepared.shard("cooking", "test")
    for mode, shares in (
        (WEIGHTS_UNIFORM, (0.5, 0.5)),
        (
            WEIGHTS_BY_POSTERIOR,
            bench.scoring.dev_posterior(tuple(experts.values()), "cooking", bench.accepted),
        ),
    ):
        assert sum(shares) == pytest.approx(1)
        with torch.no_grad():
            for one, a, b in zip(
                mean.parameters(), first.parameters(), second.parameters(), strict=True
            ):
                one.copy_((shares[0] * a.double() + shares[1] * b.double()).float())
        save(mean, bench.folders.root / "mean")
        expected = perplexity(direct_labels(bench, mean, shard))
        (scores,) = [one for one in results.domains if one.domain == "cooking"]
        found = scores.schemes["MHo-IHo"].modes[mode]
        assert found.perplexity == pytest.approx(expected, rel=1e-5)


def direct_labels(bench, model, manifest):
    shard = Shard.read(
        BlobStore(bench.folders.sealed).path(manifest.blob.digest), vocab_size=manifest.vocab_size
    )
    windows = scoring_windows(shard, CONTEXT)
    labels = []
    for start, length in zip(windows.starts, windows.lengths, strict=True):
        tokens = torch.tensor(shard.tokens[start : start + length + 1].astype(np.int64))
        with torch.inference_mode():
            logs = model(input_ids=tokens[None, :-1]).logits[0].log_softmax(-1)
        labels += logs[range(length), tokens[1:]].tolist()
    return labels


def test_per_size_seeds_share_no_basis_so_that_no_weights_are_averaged(bench):
    seed = bench.run.seed.model_copy(update={"kind": "per-size"})
    update = {"seed": seed, "evaluation": Evaluation(weight_averages=True)}
    bench.run = bench.run.model_copy(update=update)
    bench.scoring = bench.new_scoring()
    experts = {domain: bench.add("expert", domain, bench.seed) for domain in ("cooking", "drama")}
    modes = bench.score(keep_all(bench, experts)).domains[0].schemes["MHo-IHo"].modes
    assert WEIGHTS_UNIFORM not in modes


def test_a_mean_left_by_a_killed_process_is_removed(bench):
    bench.run = bench.run.model_copy(update={"evaluation": Evaluation(weight_averages=True)})
    bench.scoring = bench.new_scoring()
    bench.folders.averages.mkdir()
    (bench.folders.averages / ".half.partial").write_bytes(b"half")
    experts = {domain: bench.add("expert", domain, bench.seed) for domain in ("cooking", "drama")}
    bench.score(keep_all(bench, experts))
    assert list(bench.folders.averages.iterdir()) == []


def test_dev_losses_are_means_in_nats_and_are_written_down(bench):
    expert = bench.add("expert", "cooking", bench.seed)
    wants = [(expert, "cooking"), (bench.seed, "drama"), (expert, "drama")]
    losses = bench.scoring.measure_dev(wants, bench.accepted)
    assert losses.keys() == set(wants)
    results = bench.score(keep_all(bench, {"cooking": expert}))
    facts = {one.spec: one for one in results.checkpoints}
    for (digest, domain), loss in losses.items():
        assert math.exp(loss) == pytest.approx(facts[digest].dev_perplexity[domain])
    with bench.tiny.ledger.begin() as connection:
        for row in bench.accepted.values():
            shard = bench.prepared.shard("general", "train").blob
            queries.add_assignment(connection, row.spec, shard=shard, schemes=(), now=4.0)
        bench.scoring.record_dev(connection, losses, now=5.0)
    evaluations = bench.tiny.snapshot().evaluations
    assert {-one.mean_log_likelihood for one in evaluations} == set(losses.values())
    perplexities = sorted(math.exp(one) for one in losses.values())
    assert sorted(one.perplexity for one in evaluations) == pytest.approx(perplexities)


def test_what_is_traced_is_test_text_with_the_weights_of_its_members(bench):
    experts = {domain: bench.add("expert", domain, bench.seed) for domain in ("cooking", "drama")}
    results = bench.score(keep_all(bench, experts))
    assert [one.domain for one in results.traces] == ["cooking", "drama"]
    words = set((bench.folders.root / "cooking" / "0.txt").read_text().split())
    for trace in results.traces:
        assert trace.members == results.members["MHo-IHo"]
        assert np.allclose(np.sum(trace.weights, axis=0), 1, atol=1e-5)
        assert np.allclose(np.asarray(trace.weights)[:, 0], 0.5)
        assert len(trace.tokens) == len(trace.weights[0])
    assert set("".join(results.traces[0].tokens).split()[:-1]) <= words


def test_a_run_with_a_dense_baseline_and_a_held_out_domain_goes_to_its_results(tiny):
    domains = {
        **tiny.run.domains,
        "python": tiny.run.domains["python"].model_copy(update={"role": "held-out"}),
    }
    update = {
        "domains": domains,
        "dense": Dense(learning_rates=(1e-2,)),
        "evaluation": Evaluation(weight_averages=True),
        "plan": tiny.run.plan.model_copy(update={"schemes": ("MHo-IHo",)}),
    }
    tiny.run = tiny.run.model_copy(update=update)
    tiny.scorer = tiny.new_scorer()
    tiny.to_the_end()
    for row in tiny.rows("dense"):
        tiny.hand_in(row)
        tiny.settle()
    assert tiny.snapshot().phase == "finished"
    results = read_results(tiny.folders.state / "results.json")
    assert results.dense is not None
    assert {one.kind for one in results.checkpoints} == {"seed", "dense", "expert"}
    by_domain = {one.domain: one for one in results.domains}
    for domain in ("cooking", "drama"):
        columns = by_domain[domain].columns
        assert columns["MHo-IHo"].perplexity < columns["dense"].perplexity
        assert columns["dense"].perplexity < columns["seed M"].perplexity
        modes = by_domain[domain].schemes["MHo-IHo"].modes
        assert modes[WEIGHTS_BY_POSTERIOR].perplexity < columns["seed M"].perplexity
    verdicts = {(one.a, one.b, one.where): one.verdict for one in results.comparisons}
    assert verdicts["dense", "seed M", "own"] == "better"
    assert verdicts["dense", "seed M", "held-out"] == "worse"
    assert by_domain["python"].columns["MHo-IHo"].perplexity > 10
    assert by_domain["python"].columns["MHo-IHo+seed"].perplexity < 5, "the seed protects it"
    assert len(results.budgets) == 1
    table = tiny.snapshot().results
    assert [row.held_out for row in table.rows] == [False, False, True]
