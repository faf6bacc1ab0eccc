"""Every mode of an ensemble, and averages of weights, against whole distributions."""

import math

import numpy as np
import pytest
import torch

from coordinator.scoring.outcome import MODES, WEIGHTS_BY_POSTERIOR, WEIGHTS_UNIFORM
from coordinator.sections import Evaluation
from shared.blobs import BlobStore
from shared.ensemble import cached_prior, heaviest, perplexity
from shared.model import save
from shared.shards import Shard, scoring_windows
from tests.integration.scorer.bench import CONTEXT, keep_all


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
