"""hdee-worker: the agent (network) and the trainer (compute)."""
