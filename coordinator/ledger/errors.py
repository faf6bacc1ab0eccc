"""What goes wrong with a ledger."""


class LedgerError(ValueError):
    """The ledger cannot be used as asked; the message says what was found and what was expected."""
