"""Evidence, probabilities and gates: each against a slow and plain reference."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.mixing.evidence import pair_buckets
from shared.mixing.hub.routing_hdee_moe import HdeeMoePrefixRouter, Routes, Selection

BOS, PADDING, VOCAB = 1, -1, 48


def plain_terms(ids, s, *, bos, pairs, vocab_size=9):
    """Rows of the table that the position s names: its token's, and that of the pair it ends."""
    if ids[s] in (bos, PADDING):
        return [None, None]
    if not pairs or s == 0 or ids[s - 1] in (bos, PADDING):
        return [ids[s], None]
    bucket = pair_buckets(np.array([ids[s - 1]]), np.array([ids[s]]), pairs)[0]
    return [ids[s], vocab_size + int(bucket)]


def plain_evidence(ids, table, *, bos, window, decay, pairs):
    """[length][N + 1], written as its definition reads; the last is the amount."""
    result = []
    for t in range(len(ids)):
        start = max((s for s in range(t + 1) if ids[s] == bos), default=0)
        sums = [0.0] * (len(table[0]) + 1)
        for s, kind in product(range(start, t + 1), (0, 1)):
            term = plain_terms(ids, s, bos=bos, pairs=pairs)[kind]
            before = [
                plain_terms(ids, r, bos=bos, pairs=pairs)[kind]
                for r in range(max(start, s - window), s)
            ]
            if term is None or term in before:
                continue
            for expert, value in enumerate([*table[term], 1.0]):
                sums[expert] += decay ** (t - s) * value
        result.append(sums)
    return result


@settings(max_examples=80)
@given(
    rows=st.integers(1, 24).flatmap(
        lambda length: st.lists(
            st.lists(st.integers(0, 8), min_size=length, max_size=length), min_size=1, max_size=3
        )
    ),
    window=st.integers(1, 30),
    decay=st.sampled_from([1.0, 0.97, 0.5, 0.01]),
    bos=st.sampled_from([BOS, None]),
    pairs=st.sampled_from([0, 5, 40]),
    data=st.data(),
)
def test_evidence_is_what_its_definition_says(
    mixture_config, rows, window, decay, bos, pairs, data
) -> None:
    padded = [data.draw(st.integers(0, len(row) - 1)) for row in rows]
    ids = [[PADDING] * skipped + row[skipped:] for row, skipped in zip(rows, padded, strict=True)]
    table = np.random.default_rng(0).normal(-6, 2, (9 + pairs, 3)).astype(np.float32)
    rule = {"window": window, "decay": decay, "pairs": pairs}
    expected = torch.tensor([plain_evidence(row, table.tolist(), bos=bos, **rule) for row in ids])
    names = {f"prefix_{name}": value for name, value in rule.items()}
    config = mixture_config(vocab_size=9, bos_token_id=bos, **names)
    router = HdeeMoePrefixRouter(config)
    router.log_likelihoods.copy_(torch.from_numpy(table))
    last = data.draw(st.integers(1, len(ids[0])))
    for wanted in {1, last, len(ids[0])}:
        said, amount = router.evidence(torch.tensor(ids), last=wanted)
        assert said.shape == (len(ids), wanted, 3)
        assert amount.shape == (len(ids), wanted, 1)
        made = torch.cat([said, amount], dim=-1)
        assert (made - expected[:, -wanted:]).abs().max() < 1e-3


def test_much_evidence_counts_less_than_its_sum(mixture_config) -> None:
    table = torch.zeros(VOCAB, 3)
    table[:, 0] = 0.1
    said = {}
    for saturation in (0.0, 0.5, 1.0):
        config = mixture_config(prefix_saturation=saturation, prefix_decay=1.0)
        router = HdeeMoePrefixRouter(config)
        router.log_likelihoods.copy_(table)
        odds = router(torch.arange(10, 26)[None], 16).log()
        said[saturation] = (odds[0, :, 0] - odds[0, :, 1]).tolist()
    counts = [0.1 * count for count in range(1, 17)]
    assert said[0.0] == pytest.approx(counts, abs=1e-5)
    assert said[0.5] == pytest.approx([c / (1 + 10 * c) ** 0.5 for c in counts], abs=1e-5)
    assert said[1.0] == pytest.approx([c / (1 + 10 * c) for c in counts], abs=1e-5)


def test_padding_to_the_left_changes_no_probability(mixture_config) -> None:
    router = HdeeMoePrefixRouter(mixture_config())
    router.log_likelihoods.normal_(generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[BOS, 5, 6, 5, 7]])
    padded = torch.tensor([[PADDING, PADDING, BOS, 5, 6, 5, 7]])
    assert torch.equal(router(ids, 5), router(padded, 5))


def test_a_new_document_forgets_the_one_before(mixture_config) -> None:
    router = HdeeMoePrefixRouter(mixture_config())
    router.log_likelihoods.normal_(generator=torch.Generator().manual_seed(0))
    alone = router(torch.tensor([[BOS, 5, 6]]), 3)
    after = router(torch.tensor([[BOS, 9, 8, 5, 11, BOS, 5, 6]]), 3)
    assert torch.allclose(alone, after, atol=1e-6)
    assert torch.allclose(alone[0, 0], torch.full((3,), 1 / 3))


SHARES = st.integers(1, 7).flatmap(
    lambda number: st.lists(st.floats(0.01, 1), min_size=number, max_size=number)
)


@settings(max_examples=60)
@given(shares=SHARES, mass=st.floats(0.05, 1))
def test_top_p_takes_the_fewest_experts_that_reach_the_mass(mixture_config, shares, mass) -> None:
    probabilities = torch.tensor(shares, dtype=torch.float32)
    probabilities /= probabilities.sum()
    config = configured(mixture_config, shares, selection="top_p", gate_top_p=mass)
    gates = Selection(config)(probabilities[None])[0]
    taken = int((gates > 0).sum())
    ordered = sorted(probabilities.tolist(), reverse=True)
    assert sum(ordered[:taken]) >= mass - 1e-5
    assert sum(ordered[: taken - 1]) < mass + 1e-5
    assert_renormalised(gates, probabilities)
    assert probabilities[gates > 0].min() >= max(probabilities[gates == 0].tolist(), default=0.0)


@settings(max_examples=60)
@given(shares=SHARES, data=st.data())
def test_top_k_takes_the_k_largest(mixture_config, shares, data) -> None:
    probabilities = torch.tensor(shares, dtype=torch.float32).softmax(-1)
    top_k = data.draw(st.integers(1, len(shares)))
    config = configured(mixture_config, shares, selection="top_k", gate_top_k=top_k)
    gates = Selection(config)(probabilities[None])[0]
    assert int((gates > 0).sum()) == top_k
    assert_renormalised(gates, probabilities)


@settings(max_examples=60)
@given(shares=SHARES, threshold=st.floats(0, 0.99))
def test_soft_selection_keeps_what_reaches_the_threshold_or_is_largest(
    mixture_config, shares, threshold
) -> None:
    probabilities = torch.tensor(shares, dtype=torch.float32)
    probabilities /= probabilities.sum()
    config = configured(mixture_config, shares, selection="soft", threshold=threshold)
    gates = Selection(config)(probabilities[None])[0]
    kept = (probabilities >= threshold) | (probabilities == probabilities.max())
    assert torch.equal(gates > 0, kept)
    assert_renormalised(gates, probabilities)


@settings(max_examples=60)
@given(
    shares=st.lists(st.floats(0.01, 1), min_size=2, max_size=7),
    selection=st.sampled_from(["soft", "top_k", "top_p"]),
    data=st.data(),
)
def test_the_expert_that_is_always_on_stands_beside_the_others(
    mixture_config, shares, selection, data
) -> None:
    always_on = data.draw(st.integers(0, len(shares) - 1))
    probabilities = torch.tensor(shares, dtype=torch.float32)
    probabilities /= probabilities.sum()
    settings_ = {"selection": selection, "gate_top_k": 1, "gate_top_p": 0.5}
    config = configured(mixture_config, shares, always_on=always_on, **settings_)
    gates = Selection(config)(probabilities[None])[0]
    assert gates[always_on] > 0
    assert_renormalised(gates, probabilities)
    others = [number for number in range(len(shares)) if number != always_on]
    alone = probabilities[others] / (1 if selection == "soft" else probabilities[others].sum())
    expected = Selection(configured(mixture_config, others, **settings_))(alone[None])[0]
    assert torch.equal(gates[others] > 0, expected > 0)


def test_probabilities_that_vanish_leave_gates_that_sum_to_one(mixture_config) -> None:
    logits = torch.tensor([[-1e4, 0.0, 1e4]])
    for selection in ("soft", "top_k", "top_p"):
        gates = Selection(mixture_config(selection=selection))(logits.softmax(-1))
        assert gates.tolist() == [[0.0, 0.0, 1.0]]


def test_gateless_experts_are_all_in_use_however_many(mixture_config) -> None:
    config = mixture_config(
        expert_names=[str(number) for number in range(150)],
        expert_widths=[1] * 150,
        router="gateless",
    )
    even = torch.full((1, 150), 1 / 150)
    assert torch.equal(Selection(config)(even), even)


def test_one_expert_everywhere_needs_no_index() -> None:
    gates = torch.zeros(2, 3, 4)
    gates[..., 2] = 1
    assert Routes(gates).sole == 2
    gates[0, 0, 2], gates[0, 0, 1] = 0, 1
    routes = Routes(gates)
    assert routes.sole is None
    assert [(expert, index.tolist()) for expert, index, _ in routes.parts] == [
        (1, [0]),
        (2, [1, 2, 3, 4, 5]),
    ]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"expert_names": [], "expert_widths": []}, "expert_names: .*at least one expert"),
        ({"expert_names": ["a", "a", "b"]}, "expert_names: .*each name once"),
        ({"expert_widths": [8, 12]}, "expert_widths: .*one for each of 3"),
        ({"expert_widths": [8, 12, 0]}, "expert_widths: .*from 1 to"),
        ({"owned": ["ffn"]}, "owned: .*some of"),
        ({"owned": ["head", "head"]}, "owned: .*each once"),
        ({"owned": ["head"], "tie_word_embeddings": True}, "owned: .*together"),
        ({"owned": ["head"], "router": "linear"}, "owned: .*'linear'"),
        ({"expert_layers": []}, "expert_layers"),
        ({"expert_layers": [1, 0]}, "expert_layers: .*rising"),
        ({"expert_layers": [2], "base_width": 3}, "expert_layers: .*from 0 to 1"),
        ({"expert_layers": [0]}, "base_width: None"),
        ({"router": "oracle"}, "router: 'oracle'"),
        ({"router_bias": True}, "router_bias: True"),
        ({"router_hidden_size": 0}, "router_hidden_size: 0"),
        ({"selection": "top_q"}, "selection: 'top_q'"),
        ({"router": "gateless", "selection": "top_k"}, "selection: 'top_k', expected soft"),
        ({"router": "gateless", "always_on": 0}, "selection: .*always_on=0"),
        ({"selection": "top_k", "gate_top_k": 4}, "gate_top_k: 4, expected from 1 to the 3"),
        ({"selection": "top_k", "gate_top_k": 3, "always_on": 0}, "gate_top_k: 3, .*the 2"),
        ({"selection": "top_k", "gate_top_k": 0}, "gate_top_k: 0"),
        ({"gate_top_p": 0.0}, "gate_top_p: 0.0"),
        ({"threshold": 1.0}, "threshold: 1.0"),
        ({"always_on": 3}, "always_on: 3, expected .*from 0 to 2"),
        ({"prefix_sharpness": math.nan}, "prefix_sharpness: nan"),
        ({"prefix_window": 0}, "prefix_window: 0"),
        ({"prefix_decay": 1.1}, "prefix_decay: 1.1"),
        ({"prefix_saturation": 1.5}, "prefix_saturation: 1.5"),
        ({"prefix_pairs": -1}, "prefix_pairs: -1"),
        ({"penalty_weight": -1.0}, "penalty_weight: -1.0"),
        ({"entropy_weight": math.inf}, "entropy_weight: inf"),
        ({"top_k": 2}, "top_k: 2, expected the name gate_top_k"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(mixture_config, changes, word) -> None:
    with pytest.raises(ValueError, match=word):
        mixture_config(**changes)


def configured(mixture_config, experts, **changes):
    return mixture_config(
        expert_names=[str(number) for number in range(len(experts))],
        expert_widths=[4] * len(experts),
        **changes,
    )


def assert_renormalised(gates, probabilities) -> None:
    kept = probabilities * (gates > 0)
    assert torch.allclose(gates, kept / kept.sum(), atol=1e-6)
