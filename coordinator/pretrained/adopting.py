"""Whether a pretrained model fits its run file, and what prepare keeps of it."""

from dataclasses import dataclass

from coordinator.pretrained.opening import open_source
from coordinator.pretrained.source import Anatomy, SourceError, origin_of
from coordinator.runfile import RunFile
from protocol.ids import Digest
from shared.text.vocabulary import Vocabulary, open_vocabulary, read_given

MAX_PADDING = 1 / 32
"""Share of a model's vocabulary that its tokenizer may leave unused: some round their size up."""


@dataclass(frozen=True)
class Adopted:
    """What prepare needs of a pretrained model: the file of its tokenizer, and its vocabulary.

    `origin` is the digest of its files.
    """

    tokenizer: bytes
    vocab_size: int
    origin: Digest


def adopt(run: RunFile) -> Adopted | None:
    """Read the pretrained model of `run`, if its seed is one, and check that both agree.

    Raises PrepareError, which names each key of the run file, its value and the model's.
    """
    if run.seed.pretrained is None:
        return None
    source = open_source(run.origin / run.seed.pretrained.path)
    anatomy = source.anatomy
    check_shape(run, anatomy)
    given = run.tokenizer.model
    tokenizer = (
        source.tokenizer()
        if given is None
        else read_given(run.origin / given, bos_id=anatomy.bos_id, eos_id=anatomy.eos_id)
    )
    _check_vocabulary(open_vocabulary(tokenizer), anatomy)
    return Adopted(tokenizer, anatomy.shape.vocab_size, origin_of(source))


def check_shape(run: RunFile, anatomy: Anatomy) -> None:
    """Raises SourceError, which names each key, for a run file with other numbers than its seed."""
    problems = _shape_problems(run, anatomy)
    if problems:
        raise SourceError(
            "the run file does not fit its pretrained seed:\n  " + "\n  ".join(problems)
        )


def _shape_problems(run: RunFile, anatomy: Anatomy) -> list[str]:
    own = anatomy.shape
    problems = []
    for name, value in run.shape.model_dump().items():
        expected = getattr(own, name)
        if name == "context_length":
            if value > expected:
                problems.append(f"shape.context_length = {value}: the seed has at most {expected}")
            continue
        if name == "num_kv_heads":
            value = value or run.shape.num_heads
        if value != expected:
            problems.append(f"shape.{name} = {value}: the seed has {expected}")
    if own.ffn_width != run.widths.M:
        problems.append(f"widths.M = {run.widths.M}: the seed has {own.ffn_width}")
    return problems


def _check_vocabulary(vocabulary: Vocabulary, anatomy: Anatomy) -> None:
    size = anatomy.shape.vocab_size
    if not size * (1 - MAX_PADDING) <= vocabulary.size <= size:
        raise SourceError(
            f"the tokenizer has {vocabulary.size} ids, the pretrained seed {size}: expected the "
            "seed's own tokenizer"
        )
    if vocabulary.bos_id != anatomy.bos_id:
        raise SourceError(
            f"the tokenizer begins documents with id {vocabulary.bos_id}, the pretrained seed with "
            f"{anatomy.bos_id}: expected the seed's own tokenizer"
        )
