"""From a path in a run file to the source that it names."""

from pathlib import Path

from coordinator.pretrained.folder import Folder
from coordinator.pretrained.gguf_file import GgufFile
from coordinator.pretrained.source import Anatomy, Source, SourceError, check_tensors


def open_source(path: Path) -> Source:
    """The model at `path`: a Hugging Face directory, or a .gguf file; its tensors are complete.

    Raises SourceError for what is neither, and for a model that is no Llama as we compute it.
    """
    source = _source(path)
    check_tensors(source, str(path))
    return source


def read_anatomy(path: Path) -> Anatomy:
    """What the configuration of the model at `path` says; of its weights nothing is read.

    Raises SourceError as `open_source` does, but for the weights.
    """
    return _source(path).anatomy


def _source(path: Path) -> Source:
    if path.is_dir():
        return Folder(path)
    if path.suffix == ".gguf" and path.is_file():
        return GgufFile(path)
    raise SourceError(f"{path}: expected a Hugging Face directory or a .gguf file")
