"""How the verbs of `hdee-worker` reach the worker that runs: one socket, one question each."""
