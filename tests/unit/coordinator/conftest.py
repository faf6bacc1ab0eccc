"""A small run on disk: three domains of numbered sentences, and a run file to change."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

RUN_FILE = """
[run]
name = "small"
[tokenizer]
vocab_size = 320
[shape]
hidden_size = 16
num_layers = 1
num_heads = 2
context_length = 32
[widths]
S = 16
M = 24
L = 32
[general]
sources = [{path = "general/*.txt", document = "paragraphs:300"}]
[domains.cooking]
sources = [{path = "cooking/*.txt", document = "split:(?m)^#"}]
[domains.drama]
sources = [{path = "drama/*.txt", document = "split:(?m)^#"}]
[domains.python]
sources = [{path = "python/*.txt", document = "split:(?m)^#"}]
[seed]
kind = "nested"
[seed.recipe]
num_steps = 8
warmup_steps = 2
peak_learning_rate = 3e-3
final_learning_rate = 3e-4
micro_batch = 2
sequence_length = 32
[recipe]
warmup_steps = 1
peak_learning_rate = 1e-3
final_learning_rate = 5e-4
micro_batch = 2
sequence_length = 32
schedule_steps = 12
[plan]
schemes = ["MHo-IHo", "MHe-IHo"]
homogeneous_steps = 8
"""

WORDS = {
    "general": "the land has a river and people who trade in the town by the sea",
    "cooking": "stir the onion with salt and oil then add water to the pan",
    "drama": "O my lord thy crown is lost what news of the king and his sword",
    "python": "def return self value for item in list if not None raise class",
}

WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Writes the run's texts, split key and run file, with each (old, new) replaced in it."""

    def write(*changes: tuple[str, str], num_documents: int = 600) -> Path:
        draw = random.Random(7)
        for name, words in WORDS.items():
            (tmp_path / name).mkdir(exist_ok=True)
            documents = [
                f"# {number} " + " ".join(draw.choices(words.split(), k=30))
                for number in range(num_documents)
            ]
            separator = "\n\n" if name == "general" else "\n"
            half = len(documents) // 2
            for part, chunk in enumerate((documents[:half], documents[half:])):
                (tmp_path / name / f"{part}.txt").write_text(separator.join(chunk), "utf-8")
        (tmp_path / "keys").mkdir(exist_ok=True)
        (tmp_path / "keys" / "split.key").write_text("ab" * 32, "ascii")
        text = RUN_FILE
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / "run.toml"
        path.write_text(text, "utf-8")
        return path

    return write
