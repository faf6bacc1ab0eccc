"""The api role: REST over the ledger. Neither torch nor hivemind."""
