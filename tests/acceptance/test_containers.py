"""The commands of the containers do outside a container what they are meant to do inside."""

import json
from pathlib import Path

import pytest
from swarm import Swarm

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

DOCKER = Path(__file__).parents[2] / "docker"


def command_of(name: str) -> list[str]:
    lines = (DOCKER / f"{name}.Dockerfile").read_text().splitlines()
    return json.loads(next(line for line in lines if line.startswith("CMD")).removeprefix("CMD"))


def test_the_containers_commands_serve_a_run_and_join_it(tmp_path):
    with Swarm(tmp_path, steps=20) as swarm:
        serve = [
            word.replace("/run-folder", str(swarm.run_folder)) for word in command_of("coordinator")
        ]
        swarm.start("coordinator", *serve)
        swarm.wait_for("the coordinator is ready", swarm.ready, seconds=240)
        join = [
            word.replace("http://coordinator:8700", swarm.url).replace(
                "/worker-folder", str(tmp_path / "worker")
            )
            for word in command_of("worker")
        ]
        swarm.start("worker", *join)
        swarm.wait_for(
            "the worker has work",
            lambda: any(view["worker"] for view in swarm.assignments()),
            seconds=240,
        )
