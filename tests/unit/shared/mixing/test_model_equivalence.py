"""A mixture is what it stands for: Mixtral's layer, its only expert, the one that is forced."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from protocol.specs import ModelShape
from shared import model as models
from shared.mixing.hub.configuration_hdee_moe import OWNABLE
from shared.mixing.hub.experts_hdee_moe import HdeeMoeExpertFFN
from shared.mixing.hub.routing_hdee_moe import Routes
from shared.mixing.names import expert_name, part_of

SHAPE = ModelShape(
    vocab_size=48,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    ffn_width=24,
    context_length=64,
)
WIDTHS = [8, 12, 20]


def llama(width: int, *, rng_seed: int, like=None, differs=("ffn", *OWNABLE)):
    """A Llama with large weights; what does not differ is copied from `like`."""
    model = models.build(SHAPE.model_copy(update={"ffn_width": width}), rng_seed=rng_seed)
    generator = torch.Generator().manual_seed(rng_seed)
    given = dict(like.named_parameters()) if like is not None else {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(15)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
            if given and part_of(name) not in differs:
                parameter.copy_(given[name])
    return model.eval()


def mix(tiny_mixture, llamas, owned=(), **changes):
    """The mixture of these Llamas; what is not owned comes from the first."""
    model = tiny_mixture(
        expert_names=[f"e{number}" for number in range(len(llamas))],
        expert_widths=[expert.config.intermediate_size for expert in llamas],
        owned=list(owned),
        rms_norm_eps=SHAPE.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": SHAPE.rope_theta},
        **changes,
    )
    tensors = {}
    for number, expert in enumerate(llamas):
        for name, parameter in expert.named_parameters():
            if part_of(name) in ("ffn", *owned):
                tensors[expert_name(name, number)] = parameter.detach()
            elif number == 0:
                tensors[name] = parameter.detach()
    routers = {name for name in model.state_dict() if ".router." in name}
    problems = model.load_state_dict(tensors, strict=False)
    assert set(problems.missing_keys) == routers
    assert not problems.unexpected_keys
    return model


@settings(max_examples=25)
@given(
    num_experts=st.integers(1, 6),
    hidden=st.integers(1, 24),
    width=st.integers(1, 40),
    batch=st.integers(1, 4),
    length=st.integers(1, 12),
    rng_seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_a_layer_of_equal_widths_is_mixtrals(
    mixture_config, num_experts, hidden, width, batch, length, rng_seed, data
) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    theirs = MixtralSparseMoeBlock(
        MixtralConfig(
            hidden_size=hidden,
            intermediate_size=width,
            num_local_experts=num_experts,
            num_experts_per_tok=top_k,
            experts_implementation="eager",
        )
    )
    generator = torch.Generator().manual_seed(rng_seed)
    ours = HdeeMoeExpertFFN(
        mixture_config(
            hidden_size=hidden,
            head_dim=2,
            expert_names=[str(number) for number in range(num_experts)],
            expert_widths=[width] * num_experts,
            router="linear",
            selection="top_k",
            gate_top_k=top_k,
        )
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, hidden**-0.5, generator=generator)
        ours.router.weight.copy_(theirs.gate.weight)
        for number, expert in enumerate(ours.experts):
            gate, up = theirs.experts.gate_up_proj[number].chunk(2)
            expert.gate_proj.weight.copy_(gate)
            expert.up_proj.weight.copy_(up)
            expert.down_proj.weight.copy_(theirs.experts.down_proj[number])
        inputs = torch.randn(batch, length, hidden, generator=generator)
        made, (probabilities, gates) = ours(inputs, None)
        assert (made - theirs(inputs)).abs().max() < 1e-5
        assert ((gates > 0).sum(-1) <= top_k).all()
        assert torch.allclose(probabilities.sum(-1), torch.ones(batch, length))


@pytest.mark.parametrize("owned", [(), OWNABLE])
@pytest.mark.parametrize("selection", ["soft", "top_p"])
def test_a_mixture_of_one_expert_is_that_expert(tiny_mixture, tokens, owned, selection) -> None:
    expert = llama(12, rng_seed=1)
    model = mix(tiny_mixture, [expert], owned, selection=selection)
    ids = tokens(3, 20)
    with torch.no_grad():
        difference = model(input_ids=ids).logits - expert(input_ids=ids).logits
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("owned", [(), ("embeddings", "head"), OWNABLE])
def test_gateless_mixing_of_identical_experts_is_the_expert(tiny_mixture, tokens, owned) -> None:
    expert = llama(12, rng_seed=1)
    model = mix(tiny_mixture, [expert] * 3, owned, router="gateless")
    ids = tokens(3, 20)
    with torch.no_grad():
        made = model(input_ids=ids).logits.log_softmax(-1)
        expected = expert(input_ids=ids).logits.log_softmax(-1)
    assert (made - expected).abs().max() < 1e-4


@pytest.mark.parametrize("router", ["prefix", "gateless", "linear", "global", "fine", "deep"])
def test_an_oracle_that_routes_to_an_expert_of_ffns_gives_its_logits(
    tiny_mixture, tokens, router
) -> None:
    first = llama(WIDTHS[0], rng_seed=1)
    experts = [first] + [
        llama(width, rng_seed=number, like=first, differs=("ffn",))
        for number, width in enumerate(WIDTHS[1:], start=2)
    ]
    model = mix(tiny_mixture, experts, router=router)
    ids = tokens(3, 20)
    for number, expert in enumerate(experts):
        with torch.no_grad():
            made = model(input_ids=ids, gates=model.forced(number, like=ids)).logits
            expected = expert(input_ids=ids).logits
        assert (made - expected).abs().max() < 1e-5


def test_an_expert_that_owns_everything_is_itself_where_it_is_forced(tiny_mixture, tokens) -> None:
    experts = [llama(width, rng_seed=number) for number, width in enumerate(WIDTHS)]
    model = mix(tiny_mixture, experts, OWNABLE)
    ids = tokens(3, 20)
    with torch.no_grad():
        expected = [expert(input_ids=ids).logits for expert in experts]
        for number, name in enumerate(model.config.expert_names):
            made = model(input_ids=ids, gates=model.forced(name, like=ids)).logits
            assert (made - expected[number]).abs().max() < 1e-5
        each = torch.cat([model.forced(number, like=ids[:1]) for number in range(3)])
        made = model(input_ids=ids, gates=each).logits
    for row in range(3):
        assert (made[row] - expected[row][row]).abs().max() < 1e-4
    for one, other in pairwise(expected):
        assert (one - other).abs().max() > 1


def test_a_head_of_several_experts_mixes_their_probabilities(tiny_mixture, tokens) -> None:
    first = llama(12, rng_seed=1)
    experts = [first, llama(12, rng_seed=2, like=first, differs=("head",))]
    model = mix(tiny_mixture, experts, ("head",))
    ids = tokens(2, 10)
    gates = torch.tensor([0.3, 0.7])
    with torch.no_grad():
        made = model(input_ids=ids, gates=gates).logits
        shares = [expert(input_ids=ids).logits.softmax(-1) for expert in experts]
        expected = (0.3 * shares[0] + 0.7 * shares[1]).log()
    assert (made - expected).abs().max() < 1e-4


def test_fine_routers_that_agree_mix_before_the_product(mixture_config) -> None:
    config = mixture_config(router="fine", selection="soft", threshold=0.0)
    layer = HdeeMoeExpertFFN(config)
    inputs = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made, _ = layer(inputs, None)
        shares = layer.router(inputs)
        widest = max(config.expert_widths)
        mixed = []
        for share, name in zip(shares[:2], ("gate_proj", "up_proj"), strict=True):
            total = torch.zeros(2, 5, widest)
            for number, expert in enumerate(layer.experts):
                part = getattr(expert, name)(inputs) * share[..., number : number + 1]
                total[..., : expert.width] += part
            mixed.append(total)
        features = torch.nn.functional.silu(mixed[0]) * mixed[1]
        expected = sum(
            expert.down_proj(features[..., : expert.width]) * shares[2][..., number : number + 1]
            for number, expert in enumerate(layer.experts)
        )
    assert (made - expected).abs().max() < 1e-6


@settings(max_examples=30)
@given(
    widths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    batch=st.integers(1, 4),
    length=st.integers(1, 10),
    rng_seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_computing_by_expert_is_computing_all_experts(
    mixture_config, widths, batch, length, rng_seed, data
) -> None:
    config = mixture_config(
        expert_names=[str(number) for number in range(len(widths))], expert_widths=widths
    )
    layer = HdeeMoeExpertFFN(config)
    generator = torch.Generator().manual_seed(rng_seed)
    few = data.draw(st.integers(1, len(widths)))
    shares = torch.rand(batch, length, len(widths), generator=generator)
    kept = shares * (shares >= shares.topk(few, dim=-1).values[..., -1:])
    gates = kept / kept.sum(-1, keepdim=True)
    inputs = torch.randn(batch, length, 16, generator=generator)
    with torch.no_grad():
        made, _ = layer(inputs, Routes(gates))
        every = torch.stack([expert(inputs) for expert in layer.experts], dim=-1)
        expected = (every * gates[:, :, None]).sum(-1)
    assert (made - expected).abs().max() < 1e-5


def test_layers_outside_the_experts_are_shared(tiny_mixture, tokens) -> None:
    model = tiny_mixture(expert_layers=[1], base_width=9, router="linear")
    assert model.model.layers[0].mlp.gate_proj.weight.shape == (9, 16)
    output = model(input_ids=tokens(2, 7), output_gates=True)
    assert len(output.gates) == 1
