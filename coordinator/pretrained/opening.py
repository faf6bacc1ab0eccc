"""From a path in a run file to the source that it names."""

from pathlib import Path

from coordinator.pretrained.folder import Folder
from coordinator.pretrained.gguf_file import GgufFile
from coordinator.pretrained.source import Source, SourceError, check_tensors


def open_source(path: Path) -> Source:
    """The model at `path`: a Hugging Face directory, or a .gguf file; its tensors are complete.

    Raises SourceError for what is neither, and for a model that is no Llama as we compute it.
    """
    source: Source
    if path.is_dir():
        source = Folder(path)
    elif path.suffix == ".gguf" and path.is_file():
        source = GgufFile(path)
    else:
        raise SourceError(f"{path}: expected a Hugging Face directory or a .gguf file")
    check_tensors(source, str(path))
    return source
