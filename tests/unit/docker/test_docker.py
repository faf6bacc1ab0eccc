"""The containers' files parse, and their commands are ours. That an image builds is not tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
DOCKERFILES = ("coordinator", "worker")
INSTRUCTIONS = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "EXPOSE", "CMD"}


def instructions(name: str) -> list[tuple[str, str]]:
    text = (ROOT / "docker" / f"{name}.Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def commands() -> list[list[str]]:
    found = [
        json.loads(rest)
        for name in DOCKERFILES
        for word, rest in instructions(name)
        if word == "CMD"
    ]
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    return found + [service["command"] for service in services.values()]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_uses_known_instructions_and_copies_what_exists(name):
    parsed = instructions(name)
    assert {word for word, _ in parsed} <= INSTRUCTIONS
    for word, rest in parsed:
        if word == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
    assert sum(word == "CMD" for word, _ in parsed) == 1
    assert any(word == "USER" for word, _ in parsed), "containers do not run as root"


def test_compose_builds_from_the_dockerfiles_and_mounts_what_they_declare():
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    for service in compose["services"].values():
        dockerfile = ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]
        assert dockerfile.resolve().exists()
        for volume in service["volumes"]:
            name, target = volume.split(":")
            assert name in compose["volumes"]
            assert target in dockerfile.resolve().read_text()
        assert service["networks"] == ["swarm"]


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command)[:60])
def test_each_command_is_ours_with_flags_that_it_knows(command):
    done = subprocess.run(
        [str(BIN / command[0]), command[1], "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    for flag in (word for word in command if word.startswith("--")):
        assert flag in done.stdout
