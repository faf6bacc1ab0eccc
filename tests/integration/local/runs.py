"""A tiny run file whose text is a few invented languages, and train-local as a real process."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from coordinator.folders import RunFolders
from coordinator.ledger import Ledger, queries

RUN_FILE = """
[run]
name = "tiny"
[timing]
checkpoint_seconds = 0.1
[tokenizer]
vocab_size = 320
[shape]
hidden_size = 32
num_layers = 2
num_heads = 2
context_length = 32
[widths]
S = 32
M = 48
L = 64
[general]
sources = [{path = "general/*.txt", document = "split:(?m)^#"}]
[domains.drama]
sources = [{path = "drama/*.txt", document = "split:(?m)^#"}]
difficulty = "easy"
[domains.python]
sources = [{path = "python/*.txt", document = "split:(?m)^#"}]
difficulty = "difficult"
[seed]
kind = "nested"
[seed.recipe]
num_steps = 80
warmup_steps = 5
peak_learning_rate = 1e-2
final_learning_rate = 1e-3
micro_batch = 8
sequence_length = 32
[recipe]
warmup_steps = 2
peak_learning_rate = 1e-2
final_learning_rate = 1e-3
micro_batch = 8
sequence_length = 32
schedule_steps = 400
max_epochs = 10.0
[plan]
schemes = ["MHo-IHo", "MHo-IHe"]
homogeneous_steps = 200
[plan.steps]
easy = 100
moderate = 200
difficult = 300
"""
WORDS = {
    "drama": ["o", "my", "lord", "thy", "crown", "is", "lost", "what", "news", "of", "king"],
    "python": ["def", "return", "self", "value", "for", "item", "in", "list", "if", "not", "none"],
}
BIN = Path(sys.executable).parent
POLL = threading.Event()
"""Never set: waiting on it spaces two looks at a condition."""


def chain(words: list[str], draw: random.Random) -> str:
    """A sentence in which a word is mostly followed by the same one: what an expert can learn."""
    index, said = draw.randrange(len(words)), []
    for _ in range(14):
        said.append(words[index])
        index = index + 1 if draw.random() < 0.9 else draw.randrange(len(words))
        index %= len(words)
    return " ".join(said)


def write_run(root: Path) -> Path:
    draw = random.Random(11)
    everything = [word for words in WORDS.values() for word in words]
    texts = {name: [chain(words, draw) for _ in range(700)] for name, words in WORDS.items()}
    texts["general"] = [" ".join(draw.choices(everything, k=14)) for _ in range(400)]
    for name, documents in texts.items():
        (root / name).mkdir(parents=True)
        (root / name / "0.txt").write_text("".join(f"# {text}\n" for text in documents), "utf-8")
    (root / "keys").mkdir()
    (root / "keys" / "split.key").write_text("ab" * 32, "ascii")
    (root / "run.toml").write_text(RUN_FILE, "utf-8")
    return root / "run.toml"


class Local:
    """One folder with a run, and calls of train-local on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run_file = root / "run.toml"
        self.folders = RunFolders(root)
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *flags: str) -> "subprocess.Popen[str]":
        with (self.root / "said.txt").open("a") as said:
            process = subprocess.Popen(
                [str(BIN / "hdee-coordinator"), "train-local", str(self.run_file), *flags],
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self._started.append(process)
        return process

    def finish(self, *flags: str) -> None:
        assert self.start(*flags).wait(500) == 0, self.said()

    def said(self) -> str:
        return (self.root / "said.txt").read_text()

    def look(self, read: Callable[[Any], Any]) -> Any:
        with closing(Ledger(self.folders.ledger_url)) as ledger, ledger.read() as connection:
            return read(connection)

    def experts(self) -> dict[str, str]:
        """The digest of every accepted expert's weights, by spec digest."""
        rows = self.look(queries.accepted)
        return {spec: row.manifest.files[0].blob.digest for spec, row in rows.items()}

    def checkpoints(self) -> list[Path]:
        """Training checkpoints of what is under way, experts' only."""
        return sorted((self.folders.state / "local" / "work").glob("*/checkpoints/step-*"))

    def wait_for(
        self, process: "subprocess.Popen[str]", what: str, condition: Callable[[], Any]
    ) -> Any:
        """What `condition` returns once it is true, while `process` lives."""
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            if value := condition():
                return value
            assert process.poll() is None, f"{what}: it ended\n{self.said()}"
            POLL.wait(0.02)
        raise AssertionError(f"not within 100 s: {what}\n{self.said()}")

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
