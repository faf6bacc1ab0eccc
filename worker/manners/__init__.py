"""When this machine may train: its owner comes first."""
