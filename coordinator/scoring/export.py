"""An accepted checkpoint as a Hugging Face directory, which `from_pretrained` loads.

Only the weights come from a worker; configuration, generation settings and tokenizer are written
here. An expert that was trained with LoRA has its adapter below it, as PEFT loads it.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig
from transformers.utils.logging import disable_progress_bar

from coordinator.scoring.measuring import Checkpoint
from protocol.specs import Lora
from shared.files import sync_folder
from shared.model import load
from shared.text.vocabulary import open_vocabulary

MARKER = "SELF_REPORTED.md"
"""In the folder of an expert on own data: what it is, and what nobody could verify of it."""

ADAPTER = "adapter"
"""The folder below an expert's with its adapter: beside the weights it would be added to them."""


@dataclass(frozen=True)
class Adapter:
    """A checked file of an adapter, what it holds, and the folder's name of what it belongs to."""

    path: Path
    lora: Lora
    base: str


def export_checkpoint(
    checkpoint: Checkpoint,
    *,
    name: str,
    experts: Path,
    tokenizer: Path,
    adapter: Adapter | None = None,
    marker: str | None = None,
) -> None:
    """Write the folder `experts`/`name`, which must not be there: whole, or not at all.

    `marker` is the text of MARKER, None: the expert is the run's own. A wider file is narrowed to
    the checkpoint's width. Raises TensorFileError for a file that does not fit.
    """
    experts.mkdir(parents=True, exist_ok=True)
    draft = experts / f".{name}.writing"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    model = load(checkpoint.path, checkpoint.shape)
    vocabulary = open_vocabulary(tokenizer.read_bytes())
    bos, eos = vocabulary.bos_id, vocabulary.eos_id
    model.config.bos_token_id, model.config.eos_token_id = bos, eos
    model.generation_config = GenerationConfig(bos_token_id=bos, eos_token_id=eos, pad_token_id=eos)
    disable_progress_bar()
    model.save_pretrained(draft)
    vocabulary.write_hf(draft)
    if adapter is not None:
        _write_adapter(adapter, draft / ADAPTER)
        _sync(draft / ADAPTER)
    if marker is not None:
        (draft / MARKER).write_text(marker, "utf-8")
    _sync(draft)
    draft.rename(experts / name)
    sync_folder(experts)


def _write_adapter(adapter: Adapter, folder: Path) -> None:
    """What `peft.PeftModel.from_pretrained(model, folder)` loads."""
    folder.mkdir()
    shutil.copyfile(adapter.path, folder / "adapter_model.safetensors")
    lora = adapter.lora
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(lora.projections),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
