"""What a clumsy call is told: the file, and what to name instead; nothing is ignored in silence."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from coordinator.cli.errors import VerbError, WrongUsage
from coordinator.cli.mixture_words import mixing
from coordinator.main import app


def ended(*arguments: str) -> VerbError:
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, VerbError), error
    return error


def test_a_file_that_is_missing_is_named_without_an_error_number(tmp_path: Path) -> None:
    with pytest.raises(VerbError) as raised, mixing():
        (tmp_path / "none").read_bytes()
    assert str(raised.value) == f"{tmp_path / 'none'}: No such file or directory"
    with pytest.raises(VerbError, match="no room"), mixing():
        raise OSError("no room")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("adapter_config.json", "a LoRA adapter alone"),
        ("run.toml", "expected the run file"),
        ("README.md", "no config.json there"),
    ],
)
def test_a_folder_without_a_model_is_told_what_to_name(
    tmp_path: Path, file: str, words: str
) -> None:
    (tmp_path / file).write_text("")
    error = ended("generate", str(tmp_path), "--prompt", "o")
    assert words in str(error)
    assert error.exit_code == 1


@pytest.mark.parametrize("flags", [("--with-seed",), ("--scheme", "MHe-IHo")])
def test_what_is_meant_for_a_run_is_refused_for_a_folder(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    error = ended("generate", str(tmp_path), "--prompt", "o", *flags)
    assert isinstance(error, WrongUsage)
    assert "no run file" in str(error)


def test_prompts_that_no_router_would_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.toml"
    path.write_text('[law]\npositive = ["the court"]\n')
    error = ended("mix", "make", str(tmp_path / "run.toml"), "--prompts", str(path))
    assert isinstance(error, WrongUsage)
    assert 'router.source = "prompts"' in str(error)


@pytest.mark.parametrize("verb", ["make", "compare"])
def test_a_run_folder_in_place_of_its_file_is_told_of(tmp_path: Path, verb: str) -> None:
    error = ended("mix", verb, str(tmp_path))
    assert isinstance(error, WrongUsage)
    assert "expected a run file" in str(error)
    (tmp_path / "run.toml").write_text("")
    error = ended("mix", verb, str(tmp_path))
    assert str(error) == (
        f"{tmp_path}: a run's folder: expected the run file, {tmp_path / 'run.toml'}"
    )


@pytest.mark.parametrize(
    ("verb", "option", "text", "key", "known"),
    [
        ("make", "--recipe", "anchors = true", "anchors", "'anchor', 'expert_layers'"),
        ("make", "--recipe", '[router]\nkindd = "prefix"', "router.kindd", "'kind', 'pairs'"),
        ("compare", "--levers", 'rooters = ["prefix"]', "rooters", "'routers', 'saturations'"),
    ],
)
def test_an_unknown_key_is_named_beside_those_that_are_known(
    tmp_path: Path, verb: str, option: str, text: str, key: str, known: str
) -> None:
    path = tmp_path / "file.toml"
    path.write_text(text)
    error = ended("mix", verb, str(tmp_path / "run.toml"), option, str(path))
    assert isinstance(error, WrongUsage)
    assert str(error).startswith(f"{path}: ")
    assert f"{key}: unknown key, expected one of [" in str(error)
    assert known in str(error)
    assert "\n" not in str(error)
