"""From a stranger's mixture a new one takes tokenizer and statistics: no code, no other file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mixables
import pytest
import tunables
from tunables import trained

from protocol.digests import digest_bytes
from shared.mixing.changing import remove_expert
from shared.mixing.ingredients import MixingError
from shared.mixing.tuning import apply_tuning

Change = Callable[[Path, Path], Any]


def narrower(mixture: Path, into: Path) -> None:
    remove_expert(mixture, "law", into=into)


def tuned(mixture: Path, into: Path) -> None:
    apply_tuning(mixture, trained(mixture), into)


CHANGES = pytest.mark.parametrize("change", [narrower, tuned])


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    return tunables.mixture(tmp_path)


def name_as_tokenizer(mixture: Path, name: str, data: bytes) -> None:
    path = mixture / "mixture.json"
    facts = json.loads(path.read_bytes())
    facts["tokenizer"][name] = digest_bytes(data)
    path.write_text(json.dumps(facts))


@CHANGES
@pytest.mark.parametrize("name", ["../payload", "model.safetensors", "evil.py", "a/tokenizer.json"])
def test_a_file_that_no_tokenizer_has_is_not_taken_over(
    mixture: Path, change: Change, name: str
) -> None:
    for folder in (mixture, mixture.parent):
        (folder / "payload").write_bytes(b"payload")
    name_as_tokenizer(mixture, name, b"payload")
    into = mixture.parent / "elsewhere" / "deeper" / "new"
    with pytest.raises(MixingError, match=r"mixture\.json: tokenizer\."):
        change(mixture, into)
    assert not (into.parent / "payload").exists()
    assert not into.exists()


@CHANGES
def test_a_tokenizer_that_wants_code_to_be_run_is_refused(mixture: Path, change: Change) -> None:
    path = mixture / "tokenizer_config.json"
    said = {**json.loads(path.read_bytes()), "auto_map": {"AutoTokenizer": ["evil--x.Y", None]}}
    path.write_text(json.dumps(said).replace("auto_map", "auto\\u005fmap"))
    name_as_tokenizer(mixture, path.name, path.read_bytes())
    with pytest.raises(MixingError, match=r"tokenizer_config\.json: auto_map"):
        change(mixture, mixture.with_name("new"))
    assert not [one for one in mixture.parent.iterdir() if "new" in one.name]


@CHANGES
def test_code_links_and_what_else_lies_there_stay_behind(mixture: Path, change: Change) -> None:
    honest, new = mixture.with_name("honest"), mixture.with_name("new")
    change(mixture, honest)
    wanted = mixables.bytes_of(honest)
    if change is tuned:
        trained_once = mixture.parent / "trained"
        trained_once.rename(mixture.parent / "before")
    (mixture.parent / "secret").write_text("secret")
    (mixture / "linked.txt").symlink_to(mixture.parent / "secret")
    (mixture / "statistics" / "linked.safetensors").symlink_to(mixture.parent / "secret")
    for path in mixture.glob("*.py"):
        path.write_text("raise SystemExit('this code is a stranger')\n")
    (mixture / "extra.py").write_text("raise SystemExit")
    config = json.loads((mixture / "config.json").read_bytes())
    config["auto_map"] = {"AutoModelForCausalLM": "strangers/repository--modeling.Model"}
    (mixture / "config.json").write_text(json.dumps(config))
    change(mixture, new)
    assert mixables.bytes_of(new) == wanted
