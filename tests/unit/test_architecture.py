"""Rules of the house that a test can keep."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def modules_after(statement: str) -> set[str]:
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(done.stdout))


def test_the_api_process_imports_neither_torch_nor_hivemind():
    loaded = modules_after("import coordinator.roles.api, coordinator.api.app")
    assert "coordinator.api.routes.leasing" in loaded
    assert not {"torch", "hivemind", "transformers"} & loaded


def test_the_protocol_imports_nothing_beyond_pydantic():
    loaded = modules_after(
        "import protocol.messages, protocol.records, protocol.specs, protocol.manifests"
    )
    assert not {"torch", "hivemind", "fastapi", "httpx", "sqlalchemy", "numpy"} & loaded


def test_the_architecture_page_names_every_module():
    page = (ROOT / "docs" / "architecture.md").read_text()
    sections = {section.split("/`", 1)[0]: section for section in page.split("\n### `")[1:]}
    for package in ("protocol", "shared", "worker", "coordinator"):
        for path in (ROOT / package).rglob("*.py"):
            if not path.name.startswith("__"):
                folder = str(path.parent.relative_to(ROOT))
                assert f"`{path.name}`" in sections[folder], f"{folder}/{path.name}"
