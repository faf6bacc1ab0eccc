"""What is shown of a mixture is what it computes: files that contradict each other are refused."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import mixables
import pytest

from coordinator.mixing.looking import looked_at, show_mixture
from shared.mixing.ingredients import MixingError
from shared.mixing.making import make_mixture
from shared.mixing.recipe import make_recipe


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    make_mixture(
        [mixables.expert(tmp_path, name, trains="all") for name in ("law", "python")],
        mixables.seed(tmp_path),
        make_recipe({"owned": [], "router": {"kind": "linear", "source": "noisy"}}),
        statistics={},
        vocabulary=mixables.vocabulary(),
        into=tmp_path / "mixture",
    )
    return tmp_path / "mixture"


def edit(path: Path, change: Any) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_experts_that_lost_the_same_share_a_line(
    mixture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    look = looked_at(mixture)
    assert [one.ffn_width for one in look.experts] == [12, 24]
    show_mixture(look)
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "not taken over" in one]
    assert line.startswith("not taken over of law, python, changed there: embeddings")


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (
            "mixture.json",
            lambda one: one["experts"].append({**one["experts"][0], "name": "wizard"}),
            "experts ['law', 'python', 'wizard']",
        ),
        ("mixture.json", lambda one: one["experts"][0].update(ffn_width=13), "widths [13, 24]"),
        ("mixture.json", lambda one: one["recipe"]["router"].update(top_k=99), "router.top_k 99"),
        ("config.json", lambda one: one.update(expert_names=["law", "sea"]), "has ['law', 'sea']"),
        ("config.json", lambda one: one.update(selection="top_p"), "has 'top_p'"),
    ],
)
def test_files_of_which_one_was_edited_are_named_with_the_value(
    mixture: Path, file: str, change: Any, words: str
) -> None:
    edit(mixture / file, change)
    with pytest.raises(MixingError, match="make the mixture again") as raised:
        looked_at(mixture)
    assert words in str(raised.value)
    assert str(mixture / "mixture.json") in str(raised.value)


def test_a_mixture_of_many_experts_fits_a_screen_of_80_columns(
    mixture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = looked_at(mixture)
    names = [
        f"{word}-ffn640-1a2b3c4d" for word in ("python", "law", "sea", "news", "wiki", "drama")
    ]
    experts = [
        look.experts[number % 2].model_copy(
            update={"name": name, "parameters": 6_738_415_616 + number, "flops": 13_476e6}
        )
        for number, name in enumerate(names)
    ]
    layers = [
        one.model_copy(
            update={
                "expert_parameters": one.expert_parameters * 3,
                "expert_flops": one.expert_flops * 3,
            }
        )
        for one in look.layers
    ]
    look = look.model_copy(update={"experts": tuple(experts), "layers": tuple(layers)})
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_mixture(look)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, shown.splitlines())) <= 80
    words = shown.replace(",", " ").replace(":", " ").split()
    for name in names:
        assert words.count(name) >= 4
    assert words.count("6738.416M") == len(names)
    assert [line.split()[:3] for line in shown.splitlines() if " to " in line][-1] == [
        *("0", "to", "1")
    ]
