"""What goes wrong with a ledger."""


class LedgerError(Exception):
    """The ledger cannot be used as asked; the message says what was found and what was expected."""


class LedgerUnavailable(LedgerError):
    """The database does not answer, or did not commit. The same again may succeed later."""


class LedgerBusy(LedgerUnavailable):
    """More want to read or write than may at once. The same again succeeds once they are done."""
