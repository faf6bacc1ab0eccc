"""hdee-coordinator: the ledger, the roles that serve it, and the pure decisions between them."""
