"""A whole run on one machine, without a network: `hdee-coordinator train-local`.

occupancy   who uses a run's folder: one train-local, or the processes of `serve`
choosing    which assignment a free trainer takes, and what keeps the rest from being done
leases      the local workers' leases, through the ledger's own functions
slot        one trainer after another assignment, from its inputs to its submission
scoring     the scorer's steps, in a thread beside the trainers
tally       how far the run is, as far as it is planned
screen      lines that stay, and one that moves
session     all of these until the run is finished, stalled or stopped
train       keys, lock, text, and then a session
replicates  the same run with other random numbers, in folders of their own

The ledger, the scorer, the trainer and every file are those of a run that is served; what the api,
the network role and the workers do there is done here by one process and its trainer children.
"""
