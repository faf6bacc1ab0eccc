"""`generate` of a mixture: with a cache as without one, padded as unpadded, by beams too."""

import pytest
import torch
from transformers.cache_utils import DynamicCache

from shared.mixing.hub.configuration_hdee_moe import OWNABLE

NEW = 12
ALL = list(OWNABLE)
KINDS = [
    {"router": "prefix", "owned": ALL, "prefix_decay": 0.9},
    {"router": "prefix", "selection": "top_k", "gate_top_k": 1, "owned": ["embeddings", "head"]},
    {"router": "gateless", "owned": ALL},
    {"router": "linear", "selection": "top_k"},
    {"router": "global", "selection": "top_p"},
    {"router": "fine"},
    {"router": "deep", "always_on": 0},
]


def greedy(model, ids, **others):
    return model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0, **others)


@pytest.mark.parametrize("changes", KINDS)
def test_a_cache_changes_no_token(tiny_mixture, tokens, changes) -> None:
    model = tiny_mixture(**changes)
    ids = tokens(3, 7)
    cached = greedy(model, ids)
    assert torch.equal(cached, greedy(model, ids, use_cache=False))
    assert cached.shape == (3, 7 + NEW)
    assert len(cached[:, 7:].unique()) > 3


@pytest.mark.parametrize("changes", KINDS)
def test_a_step_with_a_cache_computes_what_the_whole_text_does(
    tiny_mixture, tokens, changes
) -> None:
    model = tiny_mixture(**changes)
    ids = tokens(2, 15)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        whole = model(input_ids=ids)
        for begin, end in ((0, 6), (6, 7), (7, 8), (8, 12), (12, 13), (13, 15)):
            step = model(
                input_ids=ids[:, begin:end], prefix_ids=ids[:, :end], past_key_values=cache
            )
            assert (step.logits - whole.logits[:, begin:end]).abs().max() < 1e-4
            assert torch.allclose(
                step.expert_probabilities, whole.expert_probabilities[:, begin:end], atol=1e-5
            )


@pytest.mark.parametrize("changes", KINDS)
def test_padding_to_the_left_changes_no_token(tiny_mixture, tokens, changes) -> None:
    model = tiny_mixture(**changes)
    ids = tokens(1, 7)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.int64), ids], dim=1)
    longer = tokens(1, 11, rng_seed=5)
    mask = torch.ones(2, 11, dtype=torch.int64)
    mask[0, :4] = 0
    made = greedy(model, torch.cat([padded, longer]), attention_mask=mask)
    assert torch.equal(made[0, 11:], greedy(model, ids)[0, 7:])
    assert torch.equal(made[1], greedy(model, longer)[0])


@pytest.mark.parametrize("changes", KINDS[:4])
def test_beams_follow_their_own_tokens(tiny_mixture, tokens, changes) -> None:
    model = tiny_mixture(**changes)
    ids = tokens(2, 6)
    beams = greedy(model, ids, num_beams=3)
    assert torch.equal(beams, greedy(model, ids, num_beams=3, use_cache=False))


def test_sampling_repeats_with_its_seed(tiny_mixture, tokens) -> None:
    model = tiny_mixture(owned=ALL)
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        drawn.append(model.generate(tokens(2, 5), max_new_tokens=8, do_sample=True))
    assert torch.equal(*drawn)


def test_how_gates_are_chosen_is_no_setting_of_generation(tiny_mixture) -> None:
    settings = tiny_mixture(selection="top_k", gate_top_k=1).generation_config
    assert settings.top_k is None or settings.top_k > 3
    assert settings.top_p in (None, 1.0)


def test_forced_gates_hold_for_every_step(tiny_mixture, tokens) -> None:
    model = tiny_mixture(owned=ALL)
    ids = tokens(2, 5)
    forced = [greedy(model, ids, gates=model.forced(name, like=ids)[:, :1]) for name in range(3)]
    again = greedy(model, ids, gates=model.forced(2, like=ids)[:, :1], use_cache=False)
    assert torch.equal(forced[2], again)
    assert not torch.equal(forced[0], forced[1])


def test_a_prefix_router_asks_for_the_tokens_in_its_cache(tiny_mixture, tokens) -> None:
    model = tiny_mixture()
    ids = tokens(2, 8)
    cache = model(input_ids=ids[:, :7]).past_key_values
    with pytest.raises(ValueError, match="prefix_ids: None after 7 cached positions"):
        model(input_ids=ids[:, 7:], past_key_values=cache)
    with pytest.raises(ValueError, match=r"prefix_ids: \(2, 7\), expected \(2, 8\)"):
        model(input_ids=ids[:, 7:], prefix_ids=ids[:, :7], past_key_values=cache)


def test_arguments_that_do_not_fit_are_refused_by_name(tiny_mixture, tokens) -> None:
    model = tiny_mixture()
    ids = tokens(2, 8)
    embedded = torch.zeros(2, 8, 16)
    with pytest.raises(ValueError, match="input_ids, inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="input_ids, inputs_embeds"):
        model(input_ids=ids, inputs_embeds=embedded)
    with pytest.raises(ValueError, match="inputs_embeds: the prefix router reads tokens"):
        model(inputs_embeds=embedded)
    with pytest.raises(ValueError, match=r"gates: \(2, 8, 2\), expected \(2, 8, 3\)"):
        model(input_ids=ids, gates=torch.ones(2, 8, 2) / 2)
    with pytest.raises(ValueError, match="gates: no expert"):
        model(input_ids=ids, gates=torch.zeros(3))
    for stranger in ("poetry", 3, -1, None):
        with pytest.raises(ValueError, match="expert: "):
            model.forced(stranger, like=ids)


def test_other_routers_take_embeddings(tiny_mixture, tokens) -> None:
    model = tiny_mixture(router="linear")
    ids = tokens(2, 8)
    embedded = model.model.embed_tokens(ids)
    assert torch.equal(model(inputs_embeds=embedded).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("changes", [{"router": "linear"}, {"router": "gateless"}, {}])
def test_generation_begins_with_embeddings(tiny_mixture, tokens, changes) -> None:
    model = tiny_mixture(**changes)
    ids = tokens(2, 7)
    embedded = model.get_input_embeddings()(ids)
    expected = greedy(model, ids)
    assert torch.equal(greedy(model, ids, inputs_embeds=embedded), expected)
    if model.config.router != "prefix":
        assert torch.equal(greedy(model, None, inputs_embeds=embedded), expected[:, 7:])
        return
    with pytest.raises(ValueError, match="inputs_embeds: the prefix router reads tokens"):
        greedy(model, None, inputs_embeds=embedded)


def test_a_prompt_in_chunks_is_refused_by_the_prefix_router_alone(tiny_mixture, tokens) -> None:
    ids = tokens(2, 9)
    model = tiny_mixture(router="linear")
    assert torch.equal(greedy(model, ids, prefill_chunk_size=4), greedy(model, ids))
    with pytest.raises(ValueError, match="takes no prompt in chunks"):
        greedy(tiny_mixture(), ids, prefill_chunk_size=4)


def test_an_assistant_changes_no_token(tiny_mixture, tokens) -> None:
    model, assistant = tiny_mixture(owned=ALL), tiny_mixture(owned=ALL, rng_seed=1)
    ids = tokens(1, 7)
    assert torch.equal(greedy(model, ids, assistant_model=assistant), greedy(model, ids))


def test_only_the_logits_that_are_asked_for_are_made(tiny_mixture, tokens) -> None:
    ids = tokens(2, 8)
    for owned in ([], ["head"]):
        model = tiny_mixture(owned=owned, prefix_sharpness=0.02)
        whole = model(input_ids=ids).logits
        last = model(input_ids=ids, logits_to_keep=3).logits
        assert last.shape == (2, 3, 48)
        assert (last - whole[:, -3:]).abs().max() < 1e-5


def test_hidden_states_and_tuples_are_given_as_by_other_models(tiny_mixture, tokens) -> None:
    model = tiny_mixture(attn_implementation="eager")
    ids = tokens(2, 8)
    output = model(input_ids=ids, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == [(2, 8, 16)] * 3
    assert [weights.shape for weights in output.attentions] == [(2, 4, 8, 8)] * 2
    assert torch.equal(model(input_ids=ids, return_dict=False)[0], output.logits)


@pytest.mark.parametrize("changes", KINDS[:3])
def test_a_cache_of_fixed_size_changes_no_token(tiny_mixture, tokens, changes) -> None:
    model = tiny_mixture(**changes)
    ids = tokens(2, 7)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    grown = greedy(model, ids, attention_mask=mask)
    fixed = greedy(model, ids, attention_mask=mask, cache_implementation="static")
    assert torch.equal(grown, fixed)
