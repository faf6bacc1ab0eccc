"""The real trainer child with a mixture: its lines, its deaths, and what is left after each."""

import json
import os
import signal
from pathlib import Path

import pytest
import tunables

from shared.training.assignment import MixtureAssignment
from shared.training.runner import Event, TrainerProcess
from worker.trainer import loop


@pytest.fixture
def assignment(tmp_path: Path) -> MixtureAssignment:
    return tunables.assignment(
        tunables.mixture(tmp_path),
        tunables.shard(tmp_path),
        trains="router_attention",
        train={"num_steps": 300, "schedule_steps": 300},
        losses={"penalty": 0.1, "balance": 0.01},
        checkpoint_seconds=0.05,
    )


async def until(assignment: MixtureAssignment, kind: str, number: signal.Signals) -> list[Event]:
    """The events of a child that gets a signal at the first event of a kind."""
    log = Path(assignment.folder).with_name("log")
    found: list[Event] = []
    async with TrainerProcess(assignment, log=log) as child:
        async for event in child.events():
            if event["event"] == kind and not any(one["event"] == kind for one in found):
                os.kill(child.pid, number)
            found.append(event)
    return found


async def whole(assignment: MixtureAssignment) -> list[Event]:
    async with TrainerProcess(assignment, log=Path(assignment.folder).with_name("log")) as child:
        return [event async for event in child.events()]


@pytest.mark.timeout(300)
async def test_a_killed_and_a_stopped_training_end_as_one_that_was_neither(
    assignment: MixtureAssignment, tmp_path: Path
) -> None:
    killed = await until(assignment, "checkpoint", signal.SIGKILL)
    assert (killed[-1]["event"], killed[-1]["exit_code"]) == ("failed", -signal.SIGKILL)
    saved = [event for event in killed if event["event"] == "checkpoint"][-1]
    calmly = assignment.model_copy(update={"checkpoint_seconds": 3600.0})
    resumed = calmly.model_copy(update={"resume": saved["folder"]})
    halted = await until(resumed, "progress", signal.SIGTERM)
    assert halted[0] == {"event": "started", "step": saved["step"], "num_steps": 300}
    assert [event["event"] for event in halted[-2:]] == ["checkpoint", "stopped"]
    assert 0 < saved["step"] < halted[-1]["step"] < 300
    last = (await whole(calmly.model_copy(update={"resume": halted[-2]["folder"]})))[-1]
    assert (last["event"], last["step"], last["inexact_from"]) == ("finished", 300, None)

    straight = calmly.model_copy(update={"folder": str(tmp_path / "straight")})
    loop.prepare_torch("cpu", 1)
    tunables.run(straight)
    calm = Path(straight.folder) / "trained" / "trained.safetensors"
    assert Path(last["file"]).read_bytes() == calm.read_bytes()
    said = json.loads(Path(last["file"]).with_name("trained.json").read_bytes())
    assert said["train_seconds"] == last["train_seconds"] > 0


async def test_a_wrong_field_is_an_event_that_names_it(assignment: MixtureAssignment) -> None:
    (last,) = await whole(assignment.model_copy(update={"trains": "heads"}))
    assert (last["event"], last["code"]) == ("failed", "bad_input")
    assert "trains" in last["message"]
