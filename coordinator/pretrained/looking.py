"""How large a run's vocabulary is, looked up before anything is prepared; no weights are read."""

from coordinator.folders import RunFolders
from coordinator.planning.outlook import VocabularySize
from coordinator.pretrained.adopting import check_shape
from coordinator.pretrained.opening import read_anatomy
from coordinator.pretrained.source import Anatomy
from coordinator.runfile import RunFile
from coordinator.text.prepared import read_prepared
from shared.text.tokenizer import read_model
from shared.text.vocabulary import open_vocabulary


def prepared_vocabulary(run: RunFile) -> VocabularySize | None:
    """As the run was prepared; None before. Raises PrepareError for a damaged prepared.json."""
    found = read_prepared(RunFolders(run.folder).prepared)
    if found is None:
        return None
    return VocabularySize(found.prepared.vocab_size, "as it was prepared")


def given_vocabulary(run: RunFile) -> VocabularySize | None:
    """As the run's pretrained seed has it, or the tokenizer that it is given; None: neither is
    there.

    Raises PrepareError for a seed or a tokenizer that preparing would refuse for the same reason.
    """
    if run.seed.pretrained is not None:
        path = run.origin / run.seed.pretrained.path
        if not path.exists():
            return None
        anatomy = read_anatomy(path)
        check_shape(run, anatomy)
        words = f"as the seed {run.seed.pretrained.path} says ({_words(anatomy)})"
        return VocabularySize(anatomy.shape.vocab_size, words)
    model = run.tokenizer.model
    if model is None or not (run.origin / model).exists():
        return None
    vocabulary = open_vocabulary(read_model(run.origin / model))
    return VocabularySize(vocabulary.size, f"as the tokenizer {model} says")


def _words(anatomy: Anatomy) -> str:
    shape = anatomy.shape
    return (
        f"{shape.num_layers} layers of {shape.hidden_size}, FFN {shape.ffn_width}, "
        f"context {shape.context_length}"
    )
