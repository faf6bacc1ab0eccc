"""A checkpoint of a finished run, written for others to load."""

from pathlib import Path

from coordinator.mixing.run import FinishedRun, Member
from coordinator.scoring.export import ADAPTER, Adapter, export_checkpoint

_ADAPTER_FILE = "adapter_model.safetensors"


def export_member(run: FinishedRun, member: Member, *, into: Path) -> None:
    """Write the checkpoint as the folder `into`, which must not be there: whole, or not at all.

    The adapter of a LoRA expert comes from the run's own export, where that has it. Raises
    TensorFileError for a file that does not fit, and OSError.
    """
    target = into.absolute()
    export_checkpoint(
        member.checkpoint,
        name=target.name,
        experts=target.parent,
        tokenizer=run.folders.tokenizer,
        adapter=_adapter(run, member),
    )


def _adapter(run: FinishedRun, member: Member) -> Adapter | None:
    facts = member.facts
    path = run.folders.experts / facts.name / ADAPTER / _ADAPTER_FILE
    if facts.lora is None or facts.parent is None or not path.is_file():
        return None
    return Adapter(path=path, lora=facts.lora, base=facts.parent)
