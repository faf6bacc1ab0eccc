"""The report of a finished run, or of several replicates: one page, its figures, and its numbers.

Reads results.json alone. Nothing here needs the ledger, a model or the network.
"""
