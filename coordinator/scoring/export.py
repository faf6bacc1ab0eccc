"""An accepted checkpoint as a Hugging Face directory, which `from_pretrained` loads.

Only the weights come from a worker; configuration, generation settings and tokenizer are written
here.
"""

import os
import shutil
from pathlib import Path

from transformers import GenerationConfig
from transformers.utils.logging import disable_progress_bar

from coordinator.scoring.measuring import Checkpoint
from coordinator.text.tokenizer import BOS, EOS, write_hf_tokenizer
from shared.files import sync_folder
from shared.model import load


def export_checkpoint(checkpoint: Checkpoint, *, name: str, experts: Path, tokenizer: Path) -> None:
    """Write the folder `experts`/`name`, which must not be there: whole, or not at all.

    A wider file is narrowed to the checkpoint's width. Raises TensorFileError for a file that does
    not fit.
    """
    experts.mkdir(parents=True, exist_ok=True)
    draft = experts / f".{name}.writing"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    model = load(checkpoint.path, checkpoint.shape)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS)
    disable_progress_bar()
    model.save_pretrained(draft)
    write_hf_tokenizer(tokenizer, draft)
    for path in draft.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(draft)
    draft.rename(experts / name)
    sync_folder(experts)
