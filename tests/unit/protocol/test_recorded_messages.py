"""Messages of the versions that are still understood, as they were recorded, are accepted."""

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import PROTOCOL_VERSION
from protocol.versions import KEPT, NoVersion, is_understood, problem_of, read_version

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "record_messages.py"
VERSIONS = range(max(1, PROTOCOL_VERSION - KEPT), PROTOCOL_VERSION + 1)

spec = importlib.util.spec_from_file_location("record_messages", SCRIPT)
assert spec is not None
assert spec.loader is not None
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
KINDS = {kind.__name__: kind for kind in recorder.messages()}
RECORDED = [
    path for version in VERSIONS for path in sorted((recorder.FOLDER / str(version)).glob("*.json"))
]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recorded_message_is_accepted(path: Path) -> None:
    recorded = json.loads(path.read_text())
    understood = KINDS[path.stem].model_validate_json(path.read_bytes())
    told = json.loads(understood.model_dump_json())
    assert {name: told[name] for name in recorded} == recorded


def test_every_version_that_is_understood_was_recorded() -> None:
    assert {int(path.parent.name) for path in RECORDED} == set(VERSIONS)


def test_no_message_changed_without_a_new_recording() -> None:
    folder = recorder.FOLDER / str(PROTOCOL_VERSION)
    recorded = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    present = {name: recorder.sample(kind) for name, kind in KINDS.items()}
    changed = sorted(
        name for name in recorded.keys() | present.keys() if recorded.get(name) != present.get(name)
    )
    assert not changed, (
        f"{changed} changed since version {PROTOCOL_VERSION} was recorded: read docs/protocol.md, "
        "then run python scripts/record_messages.py"
    )


@given(coordinator=st.integers(1, 50), worker=st.integers(1, 60))
def test_a_coordinator_understands_its_own_version_and_those_kept(
    coordinator: int, worker: int
) -> None:
    expected = worker in range(max(1, coordinator - KEPT), coordinator + 1)
    assert is_understood(worker=worker, coordinator=coordinator) == expected


def test_who_is_too_new_or_too_old_is_told_what_to_install(monkeypatch) -> None:
    newer = problem_of(PROTOCOL_VERSION + 1, software="0.9.0")
    assert newer is not None
    assert f"which speaks {PROTOCOL_VERSION}" in newer
    assert "pip install 'hdee==0.9.0'" in newer
    monkeypatch.setattr("protocol.versions.PROTOCOL_VERSION", 9)
    older = problem_of(6, software="0.9.0")
    assert older is not None
    assert "speaks 9 and understands 7 to it" in older
    assert "pip install 'hdee>=0.9.0'" in older
    assert problem_of(7, software="0.9.0") is None


def test_a_request_without_the_header_is_of_version_one() -> None:
    assert read_version(None) == 1
    assert read_version(" 2 ") == 2


@pytest.mark.parametrize("header", ["", "two", "-1", "0", "1.0", "²", "1" * 99])
def test_a_header_that_names_no_version_is_refused(header: str) -> None:
    with pytest.raises(NoVersion, match="HDEE-Protocol"):
        read_version(header)
