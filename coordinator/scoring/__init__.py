"""The scorer role: verification, ensembles, results, exported experts. Torch, no network."""
