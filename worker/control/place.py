"""Where a worker's control socket is: in its folder, or where a path is short enough.

The path of a Unix socket has room for about a hundred bytes. Where the folder's is longer, or its
file system knows no sockets, the socket lies in the user's runtime folder, and a link in the
worker's folder leads there.
"""

import contextlib
import hashlib
import os
import socket
import stat
from pathlib import Path

NAME = "control.sock"
MAX_PATH_BYTES = 100
"""Of `sun_path`: 104 bytes on macOS, 108 on Linux, each with the zero at the end."""


class NoPlace(Exception):
    """The socket can be nowhere; the message says why."""


def bind(root: Path, *, runtime: Path) -> tuple[socket.socket, Path]:
    """A listening socket for the worker in `root`, for its owner alone, and where it is.

    The folder's lock must be held: what lies there is of a worker that is dead. Raises NoPlace.
    """
    link = root / NAME
    problem = f"{link}: longer than {MAX_PATH_BYTES} bytes"
    if _fits(link):
        try:
            return _bind(link), link
        except OSError as error:
            problem = f"{link}: {error.strerror}"
    path = short_path(root, runtime=runtime)
    try:
        _own_folder(path.parent)
        listening = _bind(path)
    except OSError as error:
        raise NoPlace(f"{problem}; {path}: {error.strerror or error}") from error
    # A verb that finds no link looks at the same short path.
    with contextlib.suppress(OSError):
        _clear(link)
        link.symlink_to(path)
    return listening, path


def find(root: Path, *, runtime: Path) -> Path | None:
    """Where the socket of the worker in `root` is, if there is one and it is this user's."""
    link = root / NAME
    target = Path(os.readlink(link)) if link.is_symlink() else link
    for path in (target, short_path(root, runtime=runtime)):
        with contextlib.suppress(OSError):
            found = path.lstat()
            if stat.S_ISSOCK(found.st_mode) and found.st_uid == os.getuid() and _fits(path):
                return path
    return None


def remove(root: Path, path: Path) -> None:
    """Takes the socket away, and the link that leads to it."""
    for one in (path, root / NAME):
        with contextlib.suppress(OSError):
            _clear(one)


def runtime_folder() -> Path:
    """Where this user's sockets may lie, by the environment; it need not be there."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given.startswith("/") and len(os.fsencode(given)) <= MAX_PATH_BYTES // 2:
        return Path(given) / "hdee"
    return Path("/tmp") / f"hdee-{os.getuid()}"


def short_path(root: Path, *, runtime: Path) -> Path:
    """The short path that belongs to a worker's folder."""
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return runtime / f"{name}.sock"


def _bind(path: Path) -> socket.socket:
    _clear(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        # Nobody can connect before it listens.
        path.chmod(0o600)
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return listening


def _clear(path: Path) -> None:
    """Removes what a dead worker left; anything else than a socket or a link stays."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISSOCK(mode) and not stat.S_ISLNK(mode):
            raise FileExistsError(0, "something else than a socket is there")
        path.unlink()


def _own_folder(folder: Path) -> None:
    """Makes it for this user alone. Raises OSError if somebody else could reach into it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(0, f"{folder} is not this user's alone")


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= MAX_PATH_BYTES
