"""What a new mixture takes over from the folder of an old one, beside weights; never its code.

A folder may come from strangers: names in its mixture.json lead nowhere else, nothing is copied
unread, and a tokenizer that wants code to be run is refused.
"""

import json
from collections.abc import Collection
from pathlib import Path

from protocol.digests import digest_bytes
from shared.mixing.agreement import damage_in
from shared.mixing.facts import FACTS, MixtureFacts
from shared.mixing.hub.configuration_hdee_moe import HdeeMoeConfig
from shared.mixing.ingredients import MixingError
from shared.mixing.statistics import ExpertStatistics
from shared.mixing.writing import STATISTICS, Tokens
from shared.text.vocabulary import MAX_FAST_BYTES

_SETTINGS = "tokenizer_config.json"
_TOKENIZER = ("tokenizer.json", "tokenizer.model", _SETTINGS)


def carried_tokens(folder: Path, facts: MixtureFacts, config: HdeeMoeConfig) -> Tokens:
    """The tokenizer's files, read when they are written, and the ids of BOS and EOS.

    Raises MixingError for a file that no tokenizer of ours has and, when they are written, for one
    that is not what mixture.json says, or that names code.
    """
    for name in facts.tokenizer:
        if name not in _TOKENIZER:
            raise MixingError(
                f"{folder / FACTS}: tokenizer.{name:.80}: expected some of {list(_TOKENIZER)}"
            )
    bos, eos = config.bos_token_id, config.eos_token_id
    if not isinstance(bos, int) or not isinstance(eos, int):
        raise MixingError(f"{folder}: bos_token_id {bos}, eos_token_id {eos}: expected one id each")

    def write(into: Path) -> None:
        for name, digest in facts.tokenizer.items():
            (into / name).write_bytes(_tokenizer_file(folder / name, digest))

    return Tokens(bos, eos, write)


def carried_statistics(folder: Path, facts: MixtureFacts) -> dict[str, ExpertStatistics]:
    """What is known of the experts' domains, by expert.

    A file that is missing is left out. Raises MixingError for one that is damaged.
    """
    shape, found = facts.seed.shape, {}
    for name in facts.names:
        path = folder / STATISTICS / f"{name}.safetensors"
        if path.is_file():
            with damage_in(folder):
                found[name] = ExpertStatistics.read(
                    path,
                    vocab_size=shape.vocab_size,
                    hidden_size=shape.hidden_size,
                    num_layers=shape.num_layers,
                )
    return found


def check_statistics_of(
    folder: Path, facts: MixtureFacts, names: Collection[str], known: Collection[str]
) -> None:
    """Raises MixingError naming the file of the first of `names` of whom nothing is `known`.

    Only where the router is made of what is known of them.
    """
    source = facts.recipe.router.source
    for name in sorted(set(names) - set(known)):
        if source in ("counts", "hidden", "ridge"):
            raise MixingError(
                f"{folder / STATISTICS / name}.safetensors: is missing, of which the router of "
                f"{name} is made: put it back from a copy, or make the mixture again; without it "
                "no expert can join or leave"
            )


def _tokenizer_file(path: Path, digest: str) -> bytes:
    if path.stat().st_size > MAX_FAST_BYTES:
        raise MixingError(f"{path}: expected at most {MAX_FAST_BYTES} bytes")
    data = path.read_bytes()
    found = digest_bytes(data)
    if found != digest:
        raise MixingError(f"{path}: digest {found}, expected {digest}")
    if path.name == _SETTINGS and "auto_map" in _settings(path, data):
        raise MixingError(f"{path}: auto_map: names code to be run, expected none")
    return data


def _settings(path: Path, data: bytes) -> dict[str, object]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MixingError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise MixingError(f"{path}: expected a JSON object")
    return found
