"""Where everything of a run lies on disk. Names only: nothing here reads or decides."""

from pathlib import Path

PRIVATE_MODE = 0o700


class RunFolders:
    """The folders and files of the run whose folder is `root`.

    `sealed` holds gate and test shards and likelihood caches: no path that serves a network may be
    given it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.state = self.root / "state"
        self.keys = self.root / "keys"
        self.coordinator_key = self.keys / "coordinator.key"
        self.split_key = self.keys / "split.key"
        self.admin_token = self.keys / "admin.token"
        self.ledger = self.state / "ledger.sqlite"
        self.prepared = self.state / "prepared.json"
        self.overlap = self.state / "overlap.json"
        self.tokenizer = self.state / "tokenizer.model"
        self.blobs = self.state / "blobs"
        self.sealed = self.state / "sealed"
        self.experts = self.state / "experts"
        self.averages = self.state / "averages"
        self.logs = self.state / "logs"
        self.packages = self.state / "packages"

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy's URL of the embedded ledger."""
        return f"sqlite:///{self.ledger}"

    def create(self) -> None:
        """Make what is missing. Only the owner may enter the keys and the sealed blobs."""
        for folder in (self.state, self.blobs, self.experts, self.logs, self.packages):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.keys, self.sealed):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(PRIVATE_MODE)
