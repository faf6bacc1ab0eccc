"""`--offer-domain NAME=PATH`: read, explained and agreed to, before anything is offered."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from worker.errors import WorkerError
from worker.owndata.texts import OwnText, OwnTexts
from worker.settings import BadSetting

FLAG = "--offer-domain"
MAX_DOMAINS = 4
QUESTION = "Offer it? You are asked this once for each name. [y/N] "
YES = frozenset({"y", "yes"})

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")

WHAT_LEAVES = """\
own data {names}: the text stays on this machine. What leaves it:
  - the expert: weights that were trained on the text. Models memorise: whoever has the weights may
    get passages of the text back out of them. Once it is accepted, anybody in the run can fetch it.
    Do not offer text that must stay secret
  - the name, how many documents and tokens there are, the digests and sizes of the two token files
  - while it trains: step, training loss and speed; in the end, how well the seed and the expert
    predict the part of the text that was held back (self-reported perplexity)
Not sent: the text, its tokens, file names, digests of documents, training checkpoints."""


class NotOffered(WorkerError):
    """Nobody has agreed to offer own text, and there is nobody to ask."""

    exit_code = 2


def parse_own_texts(values: Sequence[str] | None) -> tuple[OwnText, ...]:
    """The domains in the flag's values. Raises BadSetting."""
    texts = tuple(_parse(value) for value in values or ())
    names = [text.domain for text in texts]
    if len(set(names)) != len(names):
        raise BadSetting(f"{FLAG}: {', '.join(names)}: expected each name once")
    if len(texts) > MAX_DOMAINS:
        raise BadSetting(f"{FLAG}: {len(texts)} domains, expected at most {MAX_DOMAINS}")
    return texts


def _parse(value: str) -> OwnText:
    name, separator, place = value.partition("=")
    if not separator or not place or not _NAME.fullmatch(name):
        raise BadSetting(
            f"{FLAG} {value!r}: expected NAME=PATH, the name in small letters, digits, '_', '.' "
            "and '-', such as recipes=/home/me/recipes"
        )
    path = Path(place).expanduser().absolute()
    if not path.exists():
        raise BadSetting(f"{FLAG} {value!r}: there is no {path}, expected a text file or a folder")
    return OwnText(name, path)


def what_leaves(texts: Sequence[OwnText]) -> str:
    """What the volunteer reads before anything is offered."""
    return WHAT_LEAVES.format(names=", ".join(text.domain for text in texts))


def agreed_to_offer(texts: OwnTexts, *, given: bool) -> bool:
    """Shows what leaves the machine, and asks where that was not agreed to before.

    `given`: the answer is yes, it is shown all the same. Raises NotOffered where there is no
    terminal to ask on.
    """
    sys.stdout.write(f"{what_leaves(texts.offered)}\n")
    sys.stdout.flush()
    if given or all(texts.note(text.domain) is not None for text in texts.offered):
        return True
    if not sys.stdin.isatty():
        raise NotOffered(
            f"{FLAG}: nobody has agreed yet to what leaves this machine, and there is no terminal "
            "to ask on: read it above, and say --yes"
        )
    if not _ask():
        sys.stdout.write("nothing was offered, and nothing was started\n")
        return False
    return True


def _ask() -> bool:
    try:
        return input(QUESTION).strip().lower() in YES
    except EOFError:
        return False
