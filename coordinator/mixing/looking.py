"""What is known of a mixture's folder, and what a token costs in it."""

import textwrap
from itertools import groupby
from pathlib import Path

from protocol.values import Amount, Count, Items, Positive, Value
from shared.mixing.agreement import check_agreement
from shared.mixing.facts import MixtureFacts, read_facts
from shared.mixing.opening import read_config
from shared.mixing.sizes import mixture_sizes
from shared.tables import show, show_table


class ExpertLook(Value):
    """An expert. `parameters` are its own; `active` and `flops` a token costs if it is in use
    alone, beside one that is always on. `lost` are the parts that it had changed and are shared.
    """

    name: str
    domain: str
    ffn_width: Positive
    origin: str
    parameters: Count
    active: Amount
    flops: Amount
    lost: Items[str]


class LayerLook(Value):
    """A layer, None for what is in none: parameters that all positions use, and each expert's.

    `flops` and `expert_flops` are those of their matrices, a token.
    """

    layer: int | None
    parameters: Count
    flops: Amount
    expert_parameters: Items[Count]
    expert_flops: Items[Amount]


class MixtureLook(Value):
    """A mixture. `all_active` and `all_flops` are what a token costs with all experts in use."""

    folder: str
    experts: Items[ExpertLook]
    layers: Items[LayerLook]
    owned: Items[str]
    shared_from: str
    router: str
    source: str
    selection: str
    parameters: Positive
    shared_parameters: Count
    all_active: Amount
    all_flops: Amount
    context_length: Positive
    warning: str | None
    tunings: Items[str]


def looked_at(folder: Path) -> MixtureLook:
    """The mixture in `folder`.

    Raises MixingError where there is none, and where its two files tell of different ones.
    """
    facts, config = read_facts(folder), read_config(folder)
    check_agreement(folder, facts, config)
    sizes, context = mixture_sizes(config), int(config.max_position_embeddings)
    everyone = [1.0] * len(facts.experts)
    return MixtureLook(
        folder=str(folder),
        experts=tuple(
            ExpertLook(
                name=one.name,
                domain=one.domain,
                ffn_width=one.ffn_width,
                origin=one.origin,
                parameters=sizes.experts[number].parameters,
                active=sizes.active_parameters(sizes.alone(number)),
                flops=sizes.flops(sizes.alone(number), context=context),
                lost=facts.lost(one.name),
            )
            for number, one in enumerate(facts.experts)
        ),
        layers=tuple(
            LayerLook(
                layer=one.layer,
                parameters=one.shared.parameters,
                flops=2.0 * one.shared.multiplied,
                expert_parameters=tuple(size.parameters for size in one.experts),
                expert_flops=tuple(2.0 * size.multiplied for size in one.experts),
            )
            for one in sizes.layers
        ),
        owned=facts.owned,
        shared_from=facts.recipe.shared_from,
        router=config.router,
        source=facts.recipe.router.source,
        selection=_selection(facts),
        parameters=sizes.parameters,
        shared_parameters=sizes.shared.parameters,
        all_active=sizes.active_parameters(everyone),
        all_flops=sizes.flops(everyone, context=context),
        context_length=context,
        warning=facts.warning,
        tunings=tuple(f"{one.trains}, {one.train.num_steps} steps" for one in facts.tunings),
    )


def show_mixture(look: MixtureLook) -> None:
    """The same for people."""
    show_table(
        ("expert", ">FFN width", ">own", ">active", ">FLOPs"),
        [
            (
                one.name,
                str(one.ffn_width),
                _millions(one.parameters),
                _millions(one.active),
                _millions(one.flops),
            )
            for one in look.experts
        ],
    )
    show("")
    _tell(
        "own: an expert's parameters; active: those that a token is computed with where it is "
        f"in use alone; FLOPs: a token's then (forward, texts of {look.context_length} tokens)"
    )
    for one in look.experts:
        domain = "" if one.domain == one.name else f", for {one.domain}"
        _tell(f"{one.name}{domain}: from {one.origin}")
    owned = ", ".join(("FFNs", *look.owned))
    show("")
    _tell(f"each expert owns its {owned}; all else is shared: {_SHARED[look.shared_from]}")
    for lost in dict.fromkeys(one.lost for one in look.experts if one.lost):
        names = ", ".join(one.name for one in look.experts if one.lost == lost)
        _tell(f"not taken over of {names}, changed there: {', '.join(lost)}")
    source = "" if look.source == "none" else f" from {look.source}"
    _tell(f"router {look.router}{source}, selection {look.selection}")
    _tell(
        f"{_millions(look.parameters)} parameters, {_millions(look.shared_parameters)} shared; "
        f"with all experts in use a token costs {_millions(look.all_flops)} FLOPs"
    )
    for words in look.tunings:
        _tell(f"trained as one since: {words}")
    if look.warning is not None:
        _tell(f"warning: {look.warning}")
    show("\nby layer, and FLOPs a token of the matrices there:\n")
    show_table(("layers", "whose", ">parameters", ">FLOPs"), _by_layer(look))


def _by_layer(look: MixtureLook) -> list[tuple[str, str, str, str]]:
    """A row for what is shared and one for each expert; layers in a row that are alike are one."""
    groups = [
        list(alike)
        for _, alike in groupby(
            look.layers,
            key=lambda one: (one.layer is None, one.model_copy(update={"layer": None})),
        )
    ]
    rows = []
    for layers in groups:
        first, last = layers[0], layers[-1]
        where = "none" if first.layer is None else str(first.layer)
        if last.layer != first.layer:
            where += f" to {last.layer}"
        rows.append((where, "all", _millions(first.parameters), _millions(first.flops)))
        rows += [
            ("", one.name, _millions(parameters), _millions(flops))
            for one, parameters, flops in zip(
                look.experts, first.expert_parameters, first.expert_flops, strict=True
            )
        ]
    return rows


def _tell(text: str) -> None:
    """A line, or as many as fit a screen, broken between words."""
    show(
        textwrap.fill(
            text, _SCREEN, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    )


_SCREEN = 80
"""Columns of the narrowest screen that is reckoned with."""

_SHARED = {"seed": "the seed's", "average": "their average", "posterior": "their weighted average"}


def _selection(facts: MixtureFacts) -> str:
    router = facts.recipe.router
    if router.kind == "gateless":
        return "all, equally"
    words = {
        "soft": f"soft (at least {router.threshold:g})",
        "top_k": f"top {router.top_k}",
        "top_p": f"top p {router.top_p:g}",
    }[router.selection]
    return words if router.always_on is None else f"{words}, {router.always_on} always on"


def _millions(number: float) -> str:
    return f"{number / 1e6:.3f}M"
