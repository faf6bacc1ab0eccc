"""Hidden states as sums: each against the model's own, whatever the batches."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from shared.mixing.evidence import count_tokens
from shared.mixing.hidden_states import hidden_products, prompt_states, spread_windows
from shared.mixing.hub.configuration_hdee_moe import HdeeMoeConfig
from shared.mixing.hub.modeling_hdee_moe import HdeeMoeForCausalLM
from shared.mixing.routers import ridge_rows
from shared.mixing.statistics import GRID, ExpertStatistics
from shared.shards import BOS_ID, Shard

VOCAB, HIDDEN, LAYERS = 40, 8, 2


@pytest.fixture(scope="module")
def model() -> HdeeMoeForCausalLM:
    torch.manual_seed(0)
    config = HdeeMoeConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        expert_names=["cooking", "python"],
        expert_widths=[12, 20],
        owned=["embeddings"],
    )
    return HdeeMoeForCausalLM(config).eval()


@pytest.fixture(scope="module")
def precise(model: HdeeMoeForCausalLM) -> HdeeMoeForCausalLM:
    again = HdeeMoeForCausalLM(model.config)
    again.load_state_dict(model.state_dict())
    return again.double().eval()


@pytest.fixture(scope="module")
def shard() -> Shard:
    rng = np.random.default_rng(1)
    lengths = [1, 20, 7, 33, 2, 64, 11]
    offsets = np.cumsum([0, *lengths])
    tokens = rng.integers(2, VOCAB, offsets[-1]).astype(np.uint16)
    tokens[offsets[:-1]] = BOS_ID
    return Shard(tokens, offsets, np.asarray(lengths))


def slow_products(model: HdeeMoeForCausalLM, shard: Shard, length: int, expert: int) -> np.ndarray:
    """One window at a time, from the hidden states that the model itself gives out."""
    total = np.zeros((LAYERS + 1, HIDDEN + 1, HIDDEN + 1))
    for begin, end in pairwise(shard.document_offsets):
        for start in range(begin, end - 1, length):
            window = shard.tokens[start : min(start + length, end - 1)].astype(np.int64)
            ids = torch.from_numpy(window)[None]
            seen: list[torch.Tensor] = []
            hooks = [
                layer.post_attention_layernorm.register_forward_hook(
                    lambda _, __, made, seen=seen: seen.append(made)
                )
                for layer in model.model.layers
            ]
            with torch.no_grad():
                model(input_ids=ids, gates=model.forced(expert, like=ids))
                embedded = model.model.embed_tokens.experts[expert](ids)
            for hook in hooks:
                hook.remove()
            for number, states in enumerate([embedded, *seen]):
                some = states[0][ids[0] != BOS_ID].double().numpy()
                some = np.concatenate([np.rint(some / GRID) * GRID, np.ones((len(some), 1))], 1)
                total[number] += some.T @ some
    return total


@pytest.mark.parametrize("expert", [0, 1])
def test_sums_are_those_of_the_models_own_hidden_states(precise, shard, expert) -> None:
    windows = spread_windows(shard, length=16, most=1000)
    found = hidden_products(precise, shard, windows, expert=expert, batch=3)
    assert np.allclose(found, slow_products(precise, shard, 16, expert), rtol=1e-9, atol=1e-12)
    inputs = shard.num_tokens - shard.num_documents
    starts = (np.diff(shard.document_offsets) > 1).sum()
    assert ExpertStatistics(count_tokens(shard, vocab_size=VOCAB), found).num_positions == (
        inputs - starts
    )


@pytest.mark.parametrize("batch", [2, 5, 100])
def test_sums_do_not_depend_on_how_text_is_cut_into_batches(precise, shard, batch) -> None:
    windows = spread_windows(shard, length=16, most=1000)
    one = hidden_products(precise, shard, windows, expert="python", batch=1)
    other = hidden_products(precise, shard, windows, expert="python", batch=batch)
    assert np.abs(one - other).max() <= 1e-9 * np.abs(one).max()


def test_sums_in_fp32_differ_no_more_than_its_rounding(model, precise, shard) -> None:
    windows = spread_windows(shard, length=16, most=1000)
    single = hidden_products(model, shard, windows, expert=0, batch=4)
    double = hidden_products(precise, shard, windows, expert=0, batch=4)
    assert np.abs(single - double).max() <= 1e-4 * np.abs(double).max()


def test_sums_of_two_experts_make_routers(model, shard) -> None:
    windows = spread_windows(shard, length=16, most=1000)
    counts = count_tokens(shard, vocab_size=VOCAB)
    rows = ridge_rows(
        {
            name: ExpertStatistics(
                counts, hidden_products(model, shard, windows, expert=name, batch=8)
            )
            for name in model.config.expert_names
        },
        bias=True,
    )
    assert rows.rows.shape == (LAYERS + 1, 2, HIDDEN)
    assert np.isfinite(rows.rows).all()


def test_progress_counts_windows_to_the_last(model, shard) -> None:
    windows = spread_windows(shard, length=16, most=7)
    told: list[tuple[int, int]] = []
    hidden_products(
        model,
        shard,
        windows,
        expert=0,
        batch=3,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(3, 7), (6, 7), (7, 7)]


def test_few_windows_are_spread_over_the_whole_shard(shard) -> None:
    whole = spread_windows(shard, length=4, most=1000)
    few = spread_windows(shard, length=4, most=5)
    assert len(few.lengths) == 5
    assert few.starts[0] == whole.starts[0]
    assert few.documents[-1] >= whole.documents[-1] - 1
    assert set(few.starts) <= set(whole.starts)


def test_a_prompt_is_its_last_token_or_the_mean_of_all_but_bos(model) -> None:
    prompt = [BOS_ID, 5, 9, 12]
    seen: list[torch.Tensor] = []
    hook = model.model.layers[1].mlp.register_forward_pre_hook(lambda _, i: seen.append(i[0]))
    ids = torch.tensor([prompt])
    with torch.no_grad():
        model(input_ids=ids, gates=model.forced(1, like=ids))
    hook.remove()
    states = seen[0][0].double().numpy()
    last = prompt_states(model, [prompt], expert="python")
    assert last.shape == (LAYERS + 1, HIDDEN)
    assert np.allclose(last[2], states[-1])
    mean = prompt_states(model, [prompt], expert="python", pooling="mean")
    assert np.allclose(mean[2], states[1:].mean(0))


def test_prompts_of_unequal_length_count_alike(model) -> None:
    prompts = [[BOS_ID, 5], [BOS_ID, 7, 8, 9]]
    both = prompt_states(model, prompts, expert=0)
    apart = [prompt_states(model, [prompt], expert=0) for prompt in prompts]
    assert np.allclose(both, (apart[0] + apart[1]) / 2)


def test_what_cannot_be_is_refused_by_name(model, shard) -> None:
    windows = spread_windows(shard, length=16, most=3)
    with pytest.raises(ValueError, match="expert: 'law'"):
        hidden_products(model, shard, windows, expert="law", batch=1)
    with pytest.raises(ValueError, match="batch 0"):
        hidden_products(model, shard, windows, expert=0, batch=0)
    with pytest.raises(ValueError, match="most 0"):
        spread_windows(shard, length=16, most=0)
    with pytest.raises(ValueError, match="prompts: none"):
        prompt_states(model, [], expert=0)
    with pytest.raises(ValueError, match="number 1 is empty"):
        prompt_states(model, [[BOS_ID, 3], [BOS_ID]], expert=0)
