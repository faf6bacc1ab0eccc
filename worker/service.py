"""A worker as a service of its user: systemd's unit, or launchd's agent. Pure.

systemd.syntax(7), systemd.service(5) and launchd.plist(5) say what the files mean.
"""

import plistlib
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from worker.settings import BadSetting

STOP_SECONDS = 300
"""A step, a checkpoint of gigabytes and its upload must fit into it."""

RESTART_SECONDS = 30
MAX_NAME = 60
PLAIN = re.compile(r"[A-Za-z0-9_@:,./=+-]+")

UNIT = """\
# Written by `hdee-worker install-service`, which writes it again with other flags.
[Unit]
Description=HDEE worker for {about}
StartLimitIntervalSec=1h
StartLimitBurst=20

[Service]
Type=exec
ExecStart={command}
Environment=PYTHONUNBUFFERED=1
UMask=0077
Nice=10
IOSchedulingClass=idle
# As Ctrl-C: finish the step, write a checkpoint, give the work back. The trainer hears of it by us.
KillSignal=SIGINT
KillMode=mixed
TimeoutStopSec={stop_seconds}
Restart=on-failure
RestartSec={restart_seconds}
# Wrong usage and a refusal stay wrong.
RestartPreventExitStatus=2 4

[Install]
WantedBy=default.target
"""


def service_name(url: str, name: str) -> str:
    """`hdee-worker-NAME`: the worker's name, else the coordinator's host and port."""
    text = re.sub(r"[^A-Za-z0-9_.-]+", "-", name or urlsplit(url).netloc).strip("-.")[:MAX_NAME]
    return f"hdee-worker-{text or 'worker'}"


def systemd_unit(command: Sequence[str], *, about: str) -> str:
    """The unit file that runs `command`, whose first word is an absolute path.

    Raises BadSetting for what a unit file cannot hold.
    """
    for word in (*command, about):
        check_word(word)
    program, *arguments = command
    # Only arguments are searched for variables, so that only there a dollar is doubled.
    words = [quote(program), *(quote(word).replace("$", "$$") for word in arguments)]
    return UNIT.format(
        about=about.replace("%", "%%"),
        command=" ".join(words),
        stop_seconds=STOP_SECONDS,
        restart_seconds=RESTART_SECONDS,
    )


def quote(word: str) -> str:
    """One word of a unit's command line: quotes and backslashes escaped, `%` doubled."""
    if PLAIN.fullmatch(word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def check_word(word: str) -> None:
    """Raises BadSetting for a word that would not stay one word on one line."""
    if not word.isprintable():
        raise BadSetting(
            f"{word!r}: a service's file is lines of printable text; expected no line breaks or "
            "control characters"
        )


def launchd_plist(command: Sequence[str], *, label: str, log: Path) -> bytes:
    """The property list of an agent that runs `command` while its user is logged in.

    Raises BadSetting for what a service's file cannot hold.
    """
    for word in command:
        check_word(word)
    return plistlib.dumps(
        {
            "Label": label,
            "ProgramArguments": list(command),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": RESTART_SECONDS,
            "ExitTimeOut": STOP_SECONDS,
            "ProcessType": "Background",
            "LowPriorityIO": True,
            "Nice": 10,
            "Umask": 0o077,
            "StandardOutPath": str(log),
            "StandardErrorPath": str(log),
        }
    )
