"""What a training of part of a mixture changed, put into a new mixture: whole, or not at all.

A trainer leaves two files: trained.safetensors holds the tensors that it trained, and no others,
trained.json says of which mixture they are, and what they were trained on.
"""

import shutil
from pathlib import Path

from pydantic import ValidationError

from shared.blobs import piece_list_of
from shared.files import sync_folder
from shared.mixing.carrying import carried_statistics, carried_tokens
from shared.mixing.facts import FACTS, MixtureFacts, Tuning, read_facts
from shared.mixing.hub.configuration_hdee_moe import HdeeMoeConfig
from shared.mixing.ingredients import MixingError
from shared.mixing.names import part_of
from shared.mixing.opening import mixture_tensors, read_config
from shared.mixing.router_tensors import LIKELIHOODS
from shared.mixing.writing import WEIGHTS, sync_tree, write_known, write_settings
from shared.tensorfiles import (
    TensorForm,
    check_file,
    check_finite,
    read_header,
    read_tensors,
    stream_tensors,
)
from shared.training.assignment import MixtureTrains, RouterLosses

TRAINED = "trained.safetensors"
TUNING = "trained.json"
"""Written last: what TRAINED holds is whole where it is there."""

_MAX_BYTES = 65_536
_ROUTER = "router"
_EMBEDDINGS, _ATTENTION = ("embeddings", "head"), ("q_proj", "k_proj", "v_proj", "o_proj")
_PARTS: dict[MixtureTrains, tuple[str, ...]] = {
    "router": (_ROUTER,),
    "router_embeddings": (_ROUTER, *_EMBEDDINGS),
    "router_attention": (_ROUTER, *_ATTENTION),
    "all": (_ROUTER, *_EMBEDDINGS, *_ATTENTION, "norms", "ffn"),
}
_TRAINABLE = ("linear", "global", "fine", "deep")


def is_trained(trains: MixtureTrains, name: str) -> bool:
    """Whether a training of these may change the mixture's tensor called `name`.

    The table of a prefix router is counted, never trained.
    """
    if name == LIKELIHOODS:
        return False
    return (_ROUTER if ".router." in name else part_of(name)) in _PARTS[trains]


def trained_tensors(config: HdeeMoeConfig, trains: MixtureTrains) -> dict[str, TensorForm]:
    """Name and form of the tensors that are trained, in the order of the mixture's."""
    forms = mixture_tensors(config)
    return {name: form for name, form in forms.items() if is_trained(trains, name)}


def check_trainable(
    config: HdeeMoeConfig, trains: MixtureTrains, losses: RouterLosses | None
) -> None:
    """Raises MixingError where a training would reach nothing, naming the field.

    `losses` are those that an assignment asks for, if it does.
    """
    router = config.router
    if router not in _TRAINABLE:
        if trains == "router":
            raise MixingError(
                f"trains 'router': a {router} router has no weights to train, expected one of "
                f"{_TRAINABLE} in the mixture, or more to be trained"
            )
        if losses is not None and losses != RouterLosses():
            raise MixingError(
                f"losses {losses}: a {router} router has no weights that they could move, expected "
                "none"
            )
        return
    if config.num_experts == 1:
        raise MixingError(f"mixture: 1 expert, expected at least 2 for a {router} router to learn")
    if config.selection == "top_k" and config.gate_top_k == 1 and config.always_on is None:
        raise MixingError(
            f"gate_top_k 1: the gate of the one that is chosen is 1 whatever a {router} router "
            "says, so it learns nothing from text: expected at least 2, always_on, top_p or soft"
        )


def newest_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that a trainer completed in `folder`, its own of an assignment, if any.

    An assignment that names it as `resume` goes on from there.
    """
    states = sorted((folder / "checkpoints").glob("step-*/state.json"))
    return states[-1].parent if states else None


def read_tuning(folder: Path) -> Tuning:
    """What the trainer says of what it left in `folder`. Raises MixingError, OSError."""
    path = folder / TUNING
    with path.open("rb") as file:
        text = file.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise MixingError(f"{path}: expected at most {_MAX_BYTES} bytes")
    try:
        return Tuning.model_validate_json(text)
    except ValidationError as error:
        raise MixingError(f"{path}: {error}") from error


def apply_tuning(mixture: Path, trained: Path, into: Path) -> MixtureFacts:
    """Writes the mixture in `mixture` with what lies in the folder `trained` into a new folder.

    Tokenizer and statistics are taken over; the code is ours. Returns what the new mixture.json
    says. Raises MixingError where the training was of another mixture or `into` is there,
    TensorFileError naming the first tensor that is missing, not expected, of another form or not
    finite, and OSError. Nothing is left of a folder that was begun.
    """
    if into.exists():
        raise MixingError(f"{into}: is there already, expected a new folder")
    facts, config, tuning = read_facts(mixture), read_config(mixture), read_tuning(trained)
    digest = piece_list_of(mixture / WEIGHTS).ref().digest
    if tuning.mixture != digest:
        raise MixingError(
            f"{trained / TUNING}: mixture {tuning.mixture}, expected {digest}: it was trained from "
            "other weights"
        )
    check_file(mixture / WEIGHTS, mixture_tensors(config))
    check_file(trained / TRAINED, trained_tensors(config, tuning.trains))
    check_finite(trained / TRAINED)
    facts = facts.model_copy(update={"tunings": (*facts.tunings, tuning)})
    tokens, statistics = carried_tokens(mixture, facts, config), carried_statistics(mixture, facts)
    forms = {name: entry.form for name, entry in read_header(mixture / WEIGHTS).items()}
    tensors = {**read_tensors(mixture / WEIGHTS), **read_tensors(trained / TRAINED)}
    into.parent.mkdir(parents=True, exist_ok=True)
    draft = into.with_name(f".{into.name}.writing")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir()
        stream_tensors(draft / WEIGHTS, forms, tensors.__getitem__)
        tokens.write(draft)
        write_known(statistics, draft)
        write_settings(config, draft)
        sync_tree(draft)
        (draft / FACTS).write_bytes(facts.to_bytes())
        sync_tree(draft)
        draft.rename(into)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(into.parent)
    return facts
